"""Processes or threads, and whose BLAS threads: the same worker in three ways, on calls and on a backlog.

`python -m benchmarks.pools [--rounds 3]` starts servers of its own and three workers on databases of their own: of two
processes, which by default have their share of the cores for BLAS and OpenMP; the same with as many threads each as
there are cores; and one process of two threads. They take turns; who has none is stopped (SIGSTOP).
"""

import argparse
import asyncio
import os
import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.models import FOREST, LOGISTIC, NETWORK, TITLES, Model, as_frame, check, random_rows, register
from benchmarks.pyfunq_side import Ledger, PyFunQ, PyFunQSession
from benchmarks.servers import PROCESSES, Worker, embedded_servers, family, new_ledger
from producer.programs import thread_environment
from pyfunq.client import AsyncClient

SHARE, ALL_CORES, THREADS = "processes", "processes, all cores each", "threads"
CALLERS, CALLS = 64, 10_000
BACKLOG_ROWS = 200_000


@contextmanager
def workers() -> Iterator[tuple[dict[str, PyFunQ], dict[str, Model]]]:
    every = thread_environment(1)
    made: dict[str, PyFunQ] = {}
    with embedded_servers() as servers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the network need not converge to be multiplied
            kinds = (LOGISTIC, FOREST, NETWORK)
            models = {kind: register(servers.mlflow, kind, servers.home / "files" / kind) for kind in kinds}
        try:
            for number, name in enumerate((SHARE, ALL_CORES, THREADS)):
                settings = servers.settings(asyncio.run(new_ledger(servers.database, f"ledger{number}")), number)
                more = every if name == ALL_CORES else {}
                worker = Worker(f"worker{number}", settings, environment=more, threads=name == THREADS)
                made[name] = PyFunQ(worker)
            yield made, models
        finally:
            for side in made.values():
                side.worker.stop()


async def backlog_rows_a_second(session: PyFunQSession, model: Model, frame: Any, truth: Any) -> float:
    """By value, from the call of `submit_batch` to the return of `wait_batch`."""
    begun = asyncio.get_running_loop().time()
    batch = await session.client.submit_batch(model.uri, frame)
    await session.client.wait_batch(batch)
    seconds = asyncio.get_running_loop().time() - begun
    parts = [np.asarray(part.result).ravel() async for part in session.client.batch_results(batch)]
    check(f"a backlog for {model.name}", np.concatenate(parts), truth)
    await session.ledger.forget()
    return len(frame) / seconds


async def ask(side: PyFunQ, models: dict[str, Model]) -> dict[str, float]:
    """One round of one worker."""
    found: dict[str, float] = {}
    for kind in (LOGISTIC, FOREST):
        async with side.serving(models[kind]) as session:
            rows = random_rows(CALLS, seed=11)
            answers = await session.callers(rows, CALLERS)
            check(f"{CALLERS} callers, {kind}", answers.predictions, models[kind].truth(rows))
            found[f"{TITLES[kind]}, {CALLERS} callers, jobs/s"] = CALLS / answers.seconds
    rows = random_rows(BACKLOG_ROWS, seed=12)
    truth = models[NETWORK].truth(rows)
    async with side.worker.turn():
        async with AsyncClient(side.settings) as client, Ledger(side.settings) as ledger:
            session = PyFunQSession(client, ledger, models[NETWORK])
            await backlog_rows_a_second(session, models[NETWORK], as_frame(rows[:20_000]), truth[:20_000])
            rate = await backlog_rows_a_second(session, models[NETWORK], as_frame(rows), truth)
            found[f"{TITLES[NETWORK]}, backlog, rows/s"] = rate
        held = sum(p.memory_full_info().pss for p in family(side.worker.programs[0].pid))
        found["worker's memory, MB"] = held / 1e6
    return found


async def measure(sides: dict[str, PyFunQ], models: dict[str, Model], rounds: int) -> dict[str, list[dict[str, float]]]:
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for side in sides.values():
        await side.worker.ready()
        await side.worker.rest()
    for number in range(rounds):
        for name, side in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            figures[name].append(await ask(side, models))
            print(f"round {number + 1}, {name}: {figures[name][-1]}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with workers() as (sides, models):
        figures = asyncio.run(measure(sides, models, arguments.rounds))
    print(f"\n{os.cpu_count()} cores, {PROCESSES} processes or threads, medians of {arguments.rounds} rounds")
    for metric in figures[SHARE][0]:
        medians = {name: statistics.median(found[metric] for found in rounds) for name, rounds in figures.items()}
        print(f"{metric}: " + "; ".join(f"{name} {value:,.0f}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
