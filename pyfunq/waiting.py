"""Waiting for jobs: woken by Redis pub/sub, certain through polling."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from pyfunq.errors import LedgerUnavailable
from pyfunq.ids import ids_of
from pyfunq.ledger import Ledger

log = logging.getLogger(__name__)

R = TypeVar("R")

FINISHED_CHANNEL = "pyfunq:finished"
"""Redis channel on which workers announce the ids of final jobs: 16 bytes each, one after another. A hint only."""

_POLL_SECONDS = 1.0
_MOST_EXPECTED = 100_000
_RECONNECT_SECONDS = 1.0


class FinishedJobs:
    """Tells waiters when jobs become final. One subscription and one poll serve all the waiters of a process."""

    def __init__(self, ledger: Ledger, redis_url: str) -> None:
        self._ledger = ledger
        self._redis_url = redis_url
        self._waiters: dict[UUID, dict[asyncio.Future[Any], Callable[[], None]]] = {}
        """Who waits for a job, and what to do for them when it is final."""
        self._expected: dict[UUID, bool] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._listening = asyncio.Event()
        self._closing = False

    def expect(self, job_ids: Iterable[UUID]) -> None:
        """Says that jobs are about to be submitted here: whoever waits for them need not ask how they are now."""
        if self._listening.is_set():
            self._expected.update(dict.fromkeys(job_ids, False))
            if (too_many := len(self._expected) - _MOST_EXPECTED) > 0:
                # Half of them at once: the first key of a dict is behind all those that were deleted before it.
                self._expected = dict(islice(self._expected.items(), too_many + _MOST_EXPECTED // 2, None))

    def expects(self, job_id: UUID) -> bool:
        """Whether every announcement since the job was submitted has been heard."""
        return job_id in self._expected

    async def wait(self, job_id: UUID) -> None:
        """Returns once the job is final (or was, before this call); never gives up by itself."""
        await self.then(job_id, _tell_nothing)

    async def then(self, job_id: UUID, ask: Callable[[UUID, "asyncio.Future[R]"], None]) -> R:
        """What `ask` lets the future become; it is asked in the moment in which the job is known to be final.

        So who waits for a result is woken once, with the result.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._add(job_id, future, lambda: ask(job_id, future))
        try:
            await self._start()
            is_final = self._expected.pop(job_id, None)
            if is_final is None:
                is_final = bool(await self._ledger.final_among([job_id]))
            if is_final:
                self._wake([job_id])
            return await future
        finally:
            self._drop(job_id, future)

    async def any_of(self, job_ids: Sequence[UUID], seconds: float) -> set[UUID]:
        """Those that are final, as soon as one is; none after so many seconds."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for job_id in job_ids:
            self._add(job_id, woken, lambda: woken.set_result(None))
        try:
            await self._start()
            if final := await self._ledger.final_among(job_ids):
                return final
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await woken
            return await self._ledger.final_among(job_ids)
        finally:
            for job_id in job_ids:
                self._drop(job_id, woken)

    async def close(self) -> None:
        self._closing = True
        while pending := [task for task in self._tasks if not task.done()]:
            # More than once: redis-py can take a cancellation for the time-out that it was waiting for.
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=0.2)

    async def _start(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._poll())]
        if not self._listening.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._listening.wait(), timeout=0.5)

    async def _listen(self) -> None:
        while not self._closing:
            redis = Redis.from_url(self._redis_url, socket_connect_timeout=5, health_check_interval=15)
            try:
                async with redis.pubsub(ignore_subscribe_messages=False) as channel:
                    await channel.subscribe(FINISHED_CHANNEL)
                    async for message in channel.listen():
                        if message["type"] == "subscribe":
                            self._listening.set()
                        elif message["type"] == "message":
                            self._wake(ids_of(message["data"]))
            except (RedisError, OSError) as exc:
                log.debug("no wake-ups while Redis is away (%s); polling goes on", type(exc).__name__)
            finally:
                self._listening.clear()
                self._expected.clear()
                with contextlib.suppress(RedisError, OSError):
                    await redis.aclose()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if self._waiters:
                with contextlib.suppress(LedgerUnavailable):
                    self._wake(await self._ledger.final_among(list(self._waiters)))

    def _wake(self, ids: Iterable[UUID]) -> None:
        for job_id in ids:
            if job_id in self._expected:
                self._expected[job_id] = True
            for future, tell in self._waiters.pop(job_id, {}).items():
                if not future.done():
                    tell()

    def _add(self, job_id: UUID, future: asyncio.Future[Any], tell: Callable[[], None]) -> None:
        self._waiters.setdefault(job_id, {})[future] = tell

    def _drop(self, job_id: UUID, future: asyncio.Future[Any]) -> None:
        waiting = self._waiters.get(job_id)
        if waiting is not None:
            waiting.pop(future, None)
            if not waiting:
                del self._waiters[job_id]


def _tell_nothing(_: UUID, future: "asyncio.Future[None]") -> None:
    future.set_result(None)


def announcement(ids: Iterable[UUID]) -> bytes:
    """What a worker publishes on FINISHED_CHANNEL."""
    return b"".join(i.bytes for i in ids)
