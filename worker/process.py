"""One worker process: its identity in the ledger, its heartbeat, its models, and its way to Postgres and Redis."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from pyfunq.errors import LedgerUnavailable
from pyfunq.fault_points import FaultPoint, reach
from pyfunq.ids import new_id
from pyfunq.ledger import ClaimedJob, Ledger, ModelVersion, Outcome
from pyfunq.local import identity
from pyfunq.migrate import require_current
from pyfunq.model_uri import check_allowed, parse_model_uri
from pyfunq.queue import FINISHED_CHANNEL
from pyfunq.settings import Settings
from pyfunq.waiting import announcement
from worker.artifacts import ArtifactStore
from worker.loop import LoopThread
from worker.model_cache import LoadedModel, ModelCache
from worker.registry import Registry

log = logging.getLogger(__name__)

R = TypeVar("R")

_PATIENCE_SECONDS = 300.0
# Below worker_proc_alive_timeout, after which Celery kills a child that has not started.
_STARTING_SECONDS = 90.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class WorkerProcess:
    """Made in the process that predicts, after any fork; `close` gives its identity back to the ledger."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.id: UUID = new_id()
        self.registry = Registry(settings.mlflow)
        artifacts = ArtifactStore(settings.home / "models", settings.mlflow)
        self.models = ModelCache(
            max_count=settings.model_cache_count,
            max_bytes=settings.model_cache_bytes,
            failure_seconds=settings.load_failure_seconds,
            fetch=artifacts.ensure,
        )
        self._versions: dict[int, ModelVersion] = {}
        self._loop = LoopThread()
        self._stack = AsyncExitStack()
        self._patiently(self._open_ledger, _STARTING_SECONDS)
        self._loop.run(self._open())
        self._beating = self._loop.start(self._beat())

    async def _open_ledger(self) -> None:
        await require_current(self.settings.database)
        self.ledger = await self._stack.enter_async_context(Ledger.open(self.settings.database, max_connections=4))

    async def _open(self) -> None:
        self._redis = Redis.from_url(self.settings.redis, socket_timeout=5, socket_connect_timeout=5)
        self._stack.push_async_callback(self._redis.aclose)
        await self._beat_once()

    def close(self) -> None:
        self._beating.cancel()
        with contextlib.suppress(LedgerUnavailable):
            self._loop.run(self.ledger.stop_beating(self.id))
        self._loop.run(self._stack.aclose())
        self._loop.close()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.settings.heartbeat_seconds)
            try:
                await self._beat_once()
            except LedgerUnavailable as exc:
                log.warning("no heartbeat: %s", exc)

    async def _beat_once(self) -> None:
        pid = os.getpid()
        await self.ledger.beat(self.id, socket.gethostname(), pid, identity.started(pid))

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return self._loop.run(coroutine)

    def claim(self, page_id: UUID) -> list[ClaimedJob]:
        """Takes jobs; waits while Postgres is away. Empty when the page has nothing left for anyone."""
        s = self.settings
        return self._patiently(
            lambda: self.ledger.claim(
                page_id,
                self.id,
                max_jobs=s.batch_max_jobs,
                max_rows=s.batch_max_rows,
                max_bytes=s.batch_max_bytes,
            )
        )

    def resolve(self, job: ClaimedJob) -> tuple[ModelVersion, bool]:
        """The version that the job's model URI stands for, and whether confidence scores are wanted.

        The ledger's word counts; the registry is asked only for a URI that nobody has resolved yet. Raises
        ModelNotAllowed, ModelNotFound or RegistryUnavailable.
        """
        uri = parse_model_uri(job.model_uri)
        check_allowed(uri, self.settings.allowed_models)
        if job.version_id is not None:
            return self._version(job.version_id), job.confidence
        found = self.registry.resolve(uri)
        confidence = self.settings.confidence if found.confidence is None else found.confidence
        version = self._patiently(lambda: self.ledger.point(job.model_uri, found.version, confidence=confidence))
        return version, confidence

    def publish_signature(self, model: LoadedModel, version: ModelVersion) -> None:
        """Lets producers check inputs against the version's signature before they submit."""
        if model.signature is not None and version.signature is None:
            signature = model.signature
            self._patiently(lambda: self.ledger.set_signature(version.id, signature))
            self._versions.pop(version.id, None)

    def record(self, outcomes: Sequence[Outcome]) -> set[UUID]:
        """Writes results, waiting while Postgres is away; returns what was still this process's to write."""
        recorded = self._patiently(lambda: self.ledger.finish(self.id, outcomes))
        reach(FaultPoint.BEFORE_ACK)
        lost = [o.job for o in outcomes if o.job.id not in recorded]
        if lost:
            log.warning("%d results were not kept: their jobs were cancelled or taken by another worker", len(lost))
        self.run(self._announce(recorded))
        return recorded

    def release(self, jobs: Sequence[ClaimedJob], after_seconds: float) -> None:
        """Gives jobs back without burning their attempt; rescue publishes them again when they are due."""
        self._patiently(lambda: self.ledger.release(self.id, jobs, after_seconds=after_seconds))

    def _version(self, version_id: int) -> ModelVersion:
        if version_id not in self._versions:
            self._versions[version_id] = self._patiently(lambda: self.ledger.version(version_id))
        return self._versions[version_id]

    async def _announce(self, ids: set[UUID]) -> None:
        try:
            await self._redis.publish(FINISHED_CHANNEL, announcement(ids))
        except (RedisError, OSError) as exc:
            log.warning("%d finished jobs were not announced (%s); waiters poll", len(ids), type(exc).__name__)

    def _patiently(self, ask: Callable[[], Coroutine[Any, Any, R]], seconds: float = _PATIENCE_SECONDS) -> R:
        """Repeats a ledger call while Postgres is away.

        In the end this process takes a new identity, so that rescue gives what the old one had claimed to others.
        """
        deadline = time.monotonic() + seconds
        pause = _FIRST_PAUSE
        while True:
            try:
                return self.run(ask())
            except LedgerUnavailable as exc:
                if time.monotonic() > deadline:
                    self.id = new_id()
                    raise
                log.warning("%s; trying again in %.1f s", exc, pause)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
