"""Where the time of callers that wait goes: they move in step, and this prints how long each part of a step takes.

`python -m benchmarks.step [--calls 20000] [--callers 64]` starts servers of its own and a worker whose code stamps the
time where jobs pass (`benchmarks.stamped`), which costs some µs a stamp.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.models import FOREST, LOGISTIC, TITLES, Model, check, quiet_mlflow, random_rows, register
from benchmarks.pyfunq_side import PyFunQ
from benchmarks.servers import Worker, embedded_servers, new_ledger
from benchmarks.stamped import VARIABLE, Stamps, stamp_client

PARTS = (
    ("submit", "committed", "the jobs are committed"),
    ("submit", "message", "a worker's process has their message, sent meanwhile"),
    ("message", "claim", "it asks for them; where they were not there yet, again"),
    ("claim", "claimed", "they are claimed"),
    ("claimed", "predicted", "read, predicted and encoded"),
    ("predicted", "recorded", "their results are committed"),
    ("recorded", "announced", "the client hears of it"),
    ("announced", "answered", "it has read the results"),
    ("answered", "next", "the callers have them, and have submitted their next jobs"),
)
"""From which stamp to which, and what is so at its end."""


class Stamp(NamedTuple):
    seconds: float
    name: str
    jobs: int


def read_stamps(path: Path) -> list[Stamp]:
    """In the order of time."""
    words = (line.split() for line in path.read_text().splitlines())
    return sorted(Stamp(float(seconds), name, int(jobs)) for seconds, name, jobs in words)


def steps_of(stamps: Iterable[Stamp], callers: int) -> list[dict[str, float]]:
    """When each thing was so, of the steps in which all callers were together from the first to the last.

    What happens more than once in a step counts as of the last time: a claim that came too early found nothing.
    """
    steps: list[dict[str, float]] = []
    together: list[bool] = []
    for stamp in stamps:
        if stamp.name == "submit":
            if steps:
                steps[-1]["next"] = stamp.seconds
            steps.append({})
            together.append(stamp.jobs == callers)
        if not steps:
            continue
        steps[-1][stamp.name] = stamp.seconds
        if stamp.name == "claimed" and stamp.jobs not in (0, callers):
            together[-1] = False
    names = {name for part in PARTS for name in part[:2]}
    return [step for step, is_whole in zip(steps, together, strict=True) if is_whole and names <= step.keys()]


def medians(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Milliseconds of each part, by what is so at its end, and of the whole."""
    parts = [*PARTS, ("submit", "next", "a step")]
    return {title: statistics.median(1000 * (step[end] - step[begin]) for step in steps) for begin, end, title in parts}


async def measure(pyfunq: PyFunQ, model: Model, calls: int, callers: int, path: Path) -> None:
    async with pyfunq.serving(model) as session:
        await session.callers(random_rows(calls, seed=1), callers)
        rows, begun = random_rows(calls, seed=2), time.monotonic()
        answers = await session.callers(rows, callers)
    check(f"{callers} callers, {model.name}", answers.predictions, model.truth(rows))
    steps = steps_of((stamp for stamp in read_stamps(path) if stamp.seconds > begun), callers)
    sizes = f"{len(steps)} of about {calls // callers} steps had all {callers} callers together"
    print(f"{TITLES[model.name]}: {calls / answers.seconds:,.0f} jobs/s; {sizes}; of these the medians, in ms:")
    for title, milliseconds in medians(steps).items():
        print(f"  {milliseconds:5.2f}  {title}")


async def run(calls: int, callers: int) -> None:
    with embedded_servers() as servers:
        path = servers.home / "stamps"
        stamp_client(Stamps(str(path)))
        with quiet_mlflow():
            models = [register(servers.mlflow, kind, servers.home / "files" / kind) for kind in (LOGISTIC, FOREST)]
        settings = servers.settings(await new_ledger(servers.database, "ledger"), 1)
        worker = Worker("stamped", settings, "benchmarks.stamped", {VARIABLE: str(path)})
        try:
            await worker.ready()
            await worker.rest()
            for model in models:
                await measure(PyFunQ(worker), model, calls, callers, path)
        finally:
            worker.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--callers", type=int, default=64)
    arguments = parser.parse_args()
    # For every program that is started: two on two cores must not fight for them with threads of their own.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    asyncio.run(run(arguments.calls, arguments.callers))


if __name__ == "__main__":
    main()
