"""Producers in processes of their own (`python -m benchmarks.producers`), where the one that measures must not be one.

`backlogs URI FILE` submits the file as a batch again and again, so that one is always being worked off, until its
input is closed. `many URI JOBS` and `singles URI JOBS` submit that many single-row jobs, by pages or by 64 callers.
Each prints a line of JSON; the addresses come from the environment, as for every program.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.models import random_rows, split_inputs
from pyfunq.client import AsyncClient
from pyfunq.environment import load_settings

DISTINCT_ROWS = 10_000
PAGE = 1_000
CALLERS = 64


def peak_bytes(pid: int) -> int:
    """The largest resident set that a process had, as Linux counts it.

    Not getrusage's: that one begins with what the process that started it had.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def backlogs(client: AsyncClient, model: str, path: str) -> dict[str, Any]:
    """At most two batches are under way at a time."""
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    done = 0
    before = await client.submit_batch(model, path)
    print(json.dumps({"first": str(before.id)}), flush=True)
    while not ended.done():
        batch = await client.submit_batch(model, path)
        await client.wait_batch(before)
        before, done = batch, done + 1
    await client.cancel_batch(before)
    return {"batches": done}


async def many(client: AsyncClient, model: str, jobs: str) -> dict[str, Any]:
    inputs = split_inputs(random_rows(DISTINCT_ROWS, seed=3))
    begun = time.perf_counter()
    for at in range(0, int(jobs), PAGE):
        page = min(PAGE, int(jobs) - at)
        await client.submit_many(model, [inputs[(at + i) % DISTINCT_ROWS] for i in range(page)])
    return {"seconds": time.perf_counter() - begun}


async def singles(client: AsyncClient, model: str, jobs: str) -> dict[str, Any]:
    inputs = split_inputs(random_rows(DISTINCT_ROWS, seed=3))
    numbers = iter(range(int(jobs)))

    async def caller() -> None:
        for number in numbers:
            await client.submit(model, inputs[number % DISTINCT_ROWS])

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CALLERS):
            tasks.create_task(caller())
    return {"seconds": time.perf_counter() - begun}


_PRODUCERS: dict[str, Callable[[AsyncClient, str, str], Coroutine[Any, Any, dict[str, Any]]]] = {
    "backlogs": backlogs,
    "many": many,
    "singles": singles,
}


async def produce(kind: str, model: str, what: str) -> dict[str, Any]:
    async with AsyncClient(load_settings()) as client:
        done = await _PRODUCERS[kind](client, model, what)
    return {**done, "peak_bytes": peak_bytes(os.getpid())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=_PRODUCERS)
    parser.add_argument("model")
    parser.add_argument("what")
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(produce(arguments.kind, arguments.model, arguments.what))), flush=True)


if __name__ == "__main__":
    main()
