"""PyFunQ's callers and the bare flow's, in short turns on a machine whose speed changes from minute to minute.

`python -m benchmarks.callers_in_turn [--turns 12]` starts servers of its own and both workers; who has no turn has
nothing to do. A turn is 16,000 calls of 64 callers. It prints of each how many jobs a second, what of the CPU the host
took meanwhile (stolen) and what idled, and what a job cost Postgres and the client.
"""

import argparse
import asyncio
import os
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import psutil

from benchmarks.bare_side import BareFlow
from benchmarks.disturbance import Stolen
from benchmarks.figures import percentile
from benchmarks.models import FOREST, LOGISTIC, TITLES, Model, check, quiet_mlflow, random_rows, register
from benchmarks.pyfunq_side import PyFunQ
from benchmarks.servers import Servers, Worker, embedded_servers, family, new_ledger
from benchmarks.sessions import Session

CALLERS, CALLS = 64, 16_000
REDIS_OF_PYFUNQ, REDIS_OF_BARE_FLOW = 1, 2


@dataclass(frozen=True)
class Turn:
    """Jobs a second, latencies in ms, shares of the cores' time, and µs of CPU a job."""

    rate: float
    p50: float
    p99: float
    stolen: float
    idle: float
    postgres: float
    client: float

    def __str__(self) -> str:
        return (
            f"{self.rate:5,.0f} jobs/s, p50 {self.p50:.1f}, p99 {self.p99:.1f} ms, {self.stolen:.0%} stolen, "
            f"{self.idle:.0%} idle, Postgres {self.postgres:.0f}, client {self.client:.0f} µs a job"
        )


def cpu_seconds(pid: int) -> float:
    """Of a process and of those that it started and that still run."""
    times = [process.cpu_times() for process in family(pid)]
    return sum(found.user + found.system for found in times)


async def turn(session: Session, model: Model, seed: int, servers: Servers) -> Turn:
    rows = random_rows(CALLS, seed)
    stolen = Stolen()
    machine, postgres, client = psutil.cpu_times(), cpu_seconds(servers.postgres_pid), time.process_time()
    answers = await session.callers(rows, CALLERS)
    client = time.process_time() - client
    postgres, now = cpu_seconds(servers.postgres_pid) - postgres, psutil.cpu_times()
    check(f"{CALLERS} callers, {model.name}", answers.predictions, model.truth(rows))
    cores = sum(now) - sum(machine)
    return Turn(
        rate=CALLS / answers.seconds,
        p50=1000 * percentile(answers.latencies, 50),
        p99=1000 * percentile(answers.latencies, 99),
        stolen=stolen.share(),
        idle=(now.idle - machine.idle) / cores,
        postgres=postgres / CALLS * 1e6,
        client=client / CALLS * 1e6,
    )


async def compare(pyfunq: PyFunQ, bare: BareFlow, model: Model, turns: int, servers: Servers) -> None:
    found: dict[str, list[Turn]] = {pyfunq.name: [], bare.name: []}
    async with AsyncExitStack() as stack:
        sessions: dict[str, Session] = {
            pyfunq.name: await stack.enter_async_context(pyfunq.serving(model)),
            bare.name: await stack.enter_async_context(bare.serving(model)),
        }
        for number in range(turns):
            for name in list(sessions)[:: 1 if number % 2 == 0 else -1]:
                found[name].append(await turn(sessions[name], model, number, servers))
                print(f"{TITLES[model.name]}, {name:13} {found[name][-1]}", flush=True)
    for name, made in found.items():
        rate, p99 = (statistics.median(getattr(one, what) for one in made) for what in ("rate", "p99"))
        print(f"{TITLES[model.name]}, {name}: medians {rate:,.0f} jobs/s, p99 {p99:.1f} ms")
    pairs = zip(*found.values(), strict=True)
    print(f"{TITLES[model.name]}: PyFunQ to the bare flow, median of {turns} turns", end=" ")
    print(f"{statistics.median(ours.rate / theirs.rate for ours, theirs in pairs):.2f}\n", flush=True)


async def run(turns: int) -> None:
    with embedded_servers() as servers:
        with quiet_mlflow():
            models = [register(servers.mlflow, kind, servers.home / "files" / kind) for kind in (LOGISTIC, FOREST)]
        bare = BareFlow(servers, REDIS_OF_BARE_FLOW)
        await bare.prepare()
        ledger = await new_ledger(servers.database, "ledger")
        worker = Worker("pyfunq", servers.settings(ledger, REDIS_OF_PYFUNQ))
        try:
            await worker.ready()
            await worker.rest()
            for model in models:
                await compare(PyFunQ(worker), bare, model, turns, servers)
        finally:
            worker.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=12)
    arguments = parser.parse_args()
    # For every program that is started: two on two cores must not fight for them with threads of their own.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    asyncio.run(run(arguments.turns))


if __name__ == "__main__":
    main()
