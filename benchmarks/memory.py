"""Workload (f): what a million queued single jobs weigh, in Redis, Postgres, producer and worker. On Linux only."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

from benchmarks.failure import BenchmarkFailed
from benchmarks.figures import Workload
from benchmarks.models import Model, random_rows
from benchmarks.producers import DISTINCT_ROWS, peak_bytes
from benchmarks.pyfunq_side import Ledger, PyFunQ
from benchmarks.servers import ROOT, Servers, family
from benchmarks.sessions import GIVE_UP_SECONDS, Conversation
from pyfunq.environment import child_environment

PRODUCERS = 8
SAMPLE_SECONDS = 1.0
MB = 1_000_000


@dataclass
class Weights:
    """Bytes now."""

    redis: int
    postgres: int


def weights(servers: Servers, redis: Redis) -> Weights:
    """Postgres: the proportional sets of its processes added, since they share most of their memory."""
    return Weights(int(redis.info("memory")["used_memory"]), sum(_share(p) for p in family(servers.postgres_pid)))


def _share(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return int(getattr(memory, "pss", memory.rss))


def forget_peak(process: psutil.Process) -> None:
    """Its largest resident set is that from now on."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def producer(pyfunq: PyFunQ, kind: str, model: Model, what: str | Path, number: int = 0) -> Conversation:
    command = [sys.executable, "-m", "benchmarks.producers", kind, model.uri, str(what)]
    log = pyfunq.settings.home / f"producer-{kind}-{number}.log"
    return Conversation(command, child_environment(pyfunq.settings), log, ROOT)


async def measure_memory(
    workload: Workload, pyfunq: PyFunQ, servers: Servers, model: Model, jobs: int, kind: str
) -> None:
    """`kind`: "many" for one producer with `submit_many`, "singles" for 8 with 64 callers each. The worker rests."""
    title, producers = ("submit_many", 1) if kind == "many" else (f"singles of {PRODUCERS} processes", PRODUCERS)
    share = jobs // producers
    async with Ledger(pyfunq.settings) as ledger:
        with Redis.from_url(pyfunq.settings.redis) as redis:
            await ledger.forget()
            before = weights(servers, redis)
            for process in pyfunq.worker.processes():
                forget_peak(process)
            running = [producer(pyfunq, kind, model, str(share), n) for n in range(producers)]
            answers, highest = await _watched(asyncio.gather(*(_finished(one) for one in running)), servers, redis)
            after = weights(servers, redis)
        begun = time.perf_counter()
        async with pyfunq.worker.turn():
            await ledger.until_done()
            seconds = time.perf_counter() - begun
            worker = max(peak_bytes(process.pid) for process in pyfunq.worker.processes())
        rows = random_rows(DISTINCT_ROWS, seed=3)
        distinct = model.truth(rows)
        await ledger.check_counts(_repeated(distinct, share, producers))
        await ledger.forget()
    for metric, value in {
        "Redis, grown by MB": (after.redis - before.redis) / MB,
        "Postgres before, MB": before.postgres / MB,
        "Postgres after, MB": after.postgres / MB,
        "Postgres, most, MB": max(highest, after.postgres) / MB,
        "producer, most, MB": max(a["peak_bytes"] for a in answers) / MB,
        "worker process, most, MB": worker / MB,
        "submitted, jobs/s": producers * share / max(a["seconds"] for a in answers),
        "worked off, jobs/s": producers * share / seconds,
    }.items():
        workload.add(title, model.name, metric, value)


def _repeated(distinct: Any, share: int, producers: int) -> Any:
    import numpy as np

    return np.tile(np.resize(distinct, share), producers)


async def _finished(conversation: Conversation) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await conversation.answer())
    await conversation.close()
    return answer


async def _watched(
    work: "Awaitable[list[dict[str, Any]]]", servers: Servers, redis: Redis
) -> tuple[list[dict[str, Any]], int]:
    """The answers, and the most that Postgres held meanwhile."""
    task, highest = asyncio.ensure_future(work), 0
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while not (await asyncio.wait([task], timeout=SAMPLE_SECONDS))[0]:
        highest = max(highest, weights(servers, redis).postgres)
        if time.monotonic() > deadline:
            raise BenchmarkFailed("PyFunQ: the producers do not end")
    return task.result(), highest


def allow_many_jobs() -> None:
    """For this process and those that it starts: a bound on queued jobs is not what is measured."""
    os.environ["PYFUNQ_MAX_QUEUED_JOBS"] = "100000000"
