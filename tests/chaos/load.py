"""The producers: programs that submit without rest and write down what was accepted before they go on.

A record is a file of JSON lines, written with one system call each, so that a kill tears none: first what will be
tried, then what became of it. What was tried and has no end was cut off by a kill.
"""

import argparse
import asyncio
import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pandas as pd

from pyfunq.client import AsyncClient, Client
from pyfunq.environment import load_settings
from pyfunq.errors import LedgerUnavailable
from pyfunq.settings import Settings
from tests.chaos.models import MODELS, uri_of

TICK_SECONDS = 0.2
SINGLES, PAGE_JOBS = 5, 8
BATCH_EVERY_TICKS, BATCH_JOBS, BATCH_JOB_ROWS = 5, 4, 3
JOBS_PER_SECOND = (SINGLES + PAGE_JOBS + BATCH_JOBS / BATCH_EVERY_TICKS) / TICK_SECONDS
IN_FLIGHT = 40
KEYED_TRIES, RESUBMIT_SECONDS = 40, 0.5
POISON_ATTEMPTS = 3
TOKENS_A_RECORD = 10_000_000

# The connection was never made, so nothing can have been committed.
_NEVER_CONNECTED = (
    ConnectionRefusedError,
    FileNotFoundError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)


class Record:
    """What one producer tried, and what it was told; every number that it submits is used once."""

    def __init__(self, path: Path, base: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._next = base + 1

    def tokens(self, rows: int) -> list[float]:
        first, self._next = self._next, self._next + rows
        return [float(x) for x in range(first, first + rows)]

    def tried(self, kind: str, jobs: Sequence[Sequence[float]]) -> float:
        self._write({"tried": jobs[0][0], "kind": kind, "jobs": jobs})
        return jobs[0][0]

    def accepted(self, key: float, ids: Sequence[str]) -> None:
        """`ids` is of jobs, or, of a batch, its own."""
        self._write({"accepted": key, "ids": ids})

    def raised(self, key: float, exc: Exception, *, partly: bool = False) -> None:
        """`partly`: some of it can have been committed before, whatever was raised."""
        cause = exc.__cause__ or exc
        refused = isinstance(exc, LedgerUnavailable) and isinstance(cause, _NEVER_CONNECTED) and not partly
        expected = isinstance(exc, LedgerUnavailable)
        said = f"{type(exc).__name__} from {type(cause).__name__}"
        self._write({"refused" if refused else "in doubt": key, "cause": said, "expected": expected})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


async def produce(settings: Settings, record: Record, rng: random.Random, stop: asyncio.Event) -> None:
    """Submits at a bounded rate, and less while submits hang; returns when it is stopped and all have an answer."""
    room = asyncio.Semaphore(IN_FLIGHT)
    async with AsyncClient(settings) as client, asyncio.TaskGroup() as tasks:
        tick = 0
        while not stop.is_set():
            work = [_single(client, record, rng) for _ in range(SINGLES)] + [_page(client, record, rng)]
            if tick % BATCH_EVERY_TICKS == 0:
                work.append(_batch(client, record, rng))
            for submit in work:
                await room.acquire()
                tasks.create_task(submit).add_done_callback(lambda _: room.release())
            tick += 1
            await asyncio.sleep(TICK_SECONDS)


async def _single(client: AsyncClient, record: Record, rng: random.Random) -> None:
    """Every other one has an idempotency key, and is submitted again under it until it is surely accepted."""
    (x,) = record.tokens(1)
    key = record.tried("single", [[x]])
    uri, keyed = uri_of(rng.choice(MODELS)), x % 2 == 0
    for tries_left in reversed(range(KEYED_TRIES if keyed else 1)):
        try:
            job = await client.submit(uri, _json([x]), idempotency_key=f"single {x:.0f}" if keyed else None)
        except LedgerUnavailable as exc:
            if not tries_left:
                record.raised(key, exc, partly=keyed)
            await asyncio.sleep(RESUBMIT_SECONDS if tries_left else 0)
        except Exception as exc:  # what it was is the verdict's business
            record.raised(key, exc, partly=keyed)
            return
        else:
            record.accepted(key, [str(job.id)])
            return


async def _page(client: AsyncClient, record: Record, rng: random.Random) -> None:
    xs = record.tokens(PAGE_JOBS)
    key = record.tried("page", [[x] for x in xs])
    try:
        jobs = await client.submit_many(uri_of(rng.choice(MODELS)), [_json([x]) for x in xs])
    except Exception as exc:  # likewise
        record.raised(key, exc)
    else:
        record.accepted(key, [str(job.id) for job in jobs])


async def _batch(client: AsyncClient, record: Record, rng: random.Random) -> None:
    rows = BATCH_JOB_ROWS
    xs = record.tokens(BATCH_JOBS * rows)
    key = record.tried("batch", [xs[i : i + rows] for i in range(0, len(xs), rows)])
    try:
        batch = await client.submit_batch(uri_of(rng.choice(MODELS)), pd.DataFrame({"x": xs}), chunk_rows=rows)
    except Exception as exc:  # likewise
        record.raised(key, exc, partly=True)
    else:
        record.accepted(key, [str(batch.id)])


def submit_poison(client: Client, record: Record, model: str) -> None:
    """One job that kills or holds up its process each time; `client` must have `max_attempts` of POISON_ATTEMPTS."""
    x = -record.tokens(1)[0]
    key = record.tried("poison", [[x]])
    try:
        job = client.submit(uri_of(model), _json([x]))
    except Exception as exc:  # likewise
        record.raised(key, exc)
    else:
        record.accepted(key, [str(job.id)])


def _json(xs: Sequence[float]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": ["x"], "data": [[x] for x in xs]}}


async def _main(path: Path, base: int, seed: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    record, rng = Record(path, base), random.Random(seed + base)  # noqa: S311
    while not stop.is_set():
        try:
            await produce(load_settings(), record, rng, stop)
        except LedgerUnavailable:  # away when the client was opened
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--base", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    asyncio.run(_main(given.record, given.base, given.seed))
