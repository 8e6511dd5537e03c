"""One worker process: its identity in the ledger, its heartbeat, its models, and its way to Postgres and Redis."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from pyfunq.entries import ClaimedJob, ModelVersion, Outcome, Page
from pyfunq.errors import LedgerUnavailable, PyFunQError, QueueUnavailable
from pyfunq.fault_points import FaultPoint, reach
from pyfunq.ids import new_id
from pyfunq.job import JobError, JobStatus
from pyfunq.ledger import Ledger
from pyfunq.local import identity
from pyfunq.migrate import require_current
from pyfunq.model_uri import check_allowed, parse_model_uri
from pyfunq.queue import FINISHED_CHANNEL, Publisher, make_app
from pyfunq.settings import Settings
from pyfunq.waiting import announcement
from worker.artifacts import ArtifactStore
from worker.draining import Drain
from worker.heartbeat import Heartbeat
from worker.loop import LoopThread
from worker.model_cache import LoadedModel, ModelCache
from worker.registry import Registry
from worker.watch import Watch

log = logging.getLogger(__name__)

R = TypeVar("R")

_PATIENCE_SECONDS = 300.0
# Below worker_proc_alive_timeout, after which Celery kills a child that has not started.
_STARTING_SECONDS = 90.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class WorkerProcess:
    """Made in the process that predicts, after any fork; `close` gives its identity back to the ledger."""

    def __init__(self, settings: Settings, drain: Drain | None = None) -> None:
        self.settings = settings
        self.id: UUID = new_id()
        self.drain = drain or Drain()
        self.registry = Registry(settings.mlflow)
        artifacts = ArtifactStore(settings.home / "models", settings.mlflow)
        self.models = ModelCache(
            max_count=settings.model_cache_count,
            max_bytes=settings.model_cache_bytes,
            failure_seconds=settings.load_failure_seconds,
            fetch=artifacts.ensure,
        )
        self._versions: dict[int, ModelVersion] = {}
        self._held: dict[UUID, ClaimedJob] = {}
        self.heartbeat = Heartbeat(settings.heartbeat_seconds)
        self._publisher = Publisher(make_app(settings))
        self._loop = LoopThread()
        self._stack = AsyncExitStack()
        self._patiently(self._open_ledger, _STARTING_SECONDS)
        self._loop.run(self._open())
        self._beating = self._loop.start(self._beat())
        self._watch = Watch(self, self.drain, max_memory_bytes=settings.max_memory_bytes)

    async def _open_ledger(self) -> None:
        await require_current(self.settings.database)
        self.ledger = await self._stack.enter_async_context(Ledger.open(self.settings.database, max_connections=4))

    async def _open(self) -> None:
        self._redis = Redis.from_url(self.settings.redis, socket_timeout=5, socket_connect_timeout=5)
        self._stack.push_async_callback(self._redis.aclose)
        await self._beat_once()

    def close(self) -> None:
        self._watch.close()
        self._publisher.close()
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
        self.heartbeat.arrived()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return self._loop.run(coroutine)

    def claim(self, page_id: UUID) -> list[ClaimedJob]:
        """Takes jobs; waits while Postgres is away. Empty when the page has nothing left for anyone."""
        s = self.settings
        jobs = self._patiently(
            lambda: self.ledger.claim(
                page_id,
                self.id,
                max_jobs=s.batch_max_jobs,
                max_rows=s.batch_max_rows,
                max_bytes=s.batch_max_bytes,
            )
        )
        self._held.update((job.id, job) for job in jobs)
        return jobs

    def call(self, jobs: Sequence[ClaimedJob], function: Callable[[], R]) -> R:
        """`function()`, on behalf of the jobs and within the shortest of their limits; see `Watch.run`."""
        limit = min(job.timeout_seconds or self.settings.timeout_seconds for job in jobs)
        return self._watch.run(jobs, limit, function)

    def load(self, jobs: Sequence[ClaimedJob], function: Callable[[], R]) -> R:
        """`function()`, which may load a model for the jobs."""
        return self._watch.run(jobs, self.settings.load_timeout_seconds, function)

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
        version = self._patiently(
            lambda: self.ledger.point(
                job.model_uri, found.version, confidence=confidence, timeout_seconds=found.timeout_seconds
            )
        )
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
        self._let_go(o.job for o in outcomes)
        lost = [o.job for o in outcomes if o.job.id not in recorded]
        if lost:
            log.warning("%d results were not kept: their jobs were cancelled or taken by another worker", len(lost))
        self.run(self._announce(recorded))
        return recorded

    def delay(self, jobs: Sequence[ClaimedJob], error: PyFunQError) -> None:
        """Lets jobs wait for what is away; no attempt is counted, and rescue publishes them when they are due."""
        s = self.settings
        why = JobError(code=error.code, message=error.message)
        given_up = self._patiently(
            lambda: self.ledger.delay(
                self.id, jobs, why, longest_seconds=s.longest_pause_seconds, give_up_seconds=s.dependency_wait_seconds
            )
        )
        self._let_go(jobs)
        if given_up:
            log.warning("%d jobs failed, having waited for %g s", len(given_up), s.dependency_wait_seconds)
            self.run(self._announce(given_up))

    def retry(self, jobs: Sequence[ClaimedJob]) -> None:
        """Lets failed jobs be tried again after a while, as their callers asked."""
        longest = self.settings.longest_pause_seconds
        self._patiently(lambda: self.ledger.retry(self.id, jobs, longest_seconds=longest))
        self._let_go(jobs)

    def crash(self, jobs: Sequence[ClaimedJob], how: str) -> None:
        """Counts an attempt against jobs that did not end; they are tried again, each alone, or dead."""
        ends = self._patiently(lambda: self.ledger.crash(self.id, jobs, [new_id() for _ in jobs], how))
        self._let_go(jobs)
        dead = {job_id for job_id, end in ends.items() if end.status is JobStatus.DEAD}
        log.warning("%d jobs %s: %d are tried again, %d dead", len(jobs), how, len(ends) - len(dead), len(dead))
        again = [(job, ends[job.id]) for job in jobs if job.id in ends.keys() - dead]
        self._publish(
            [
                Page(id=end.page_id, model_uri=job.model_uri, lane=job.lane, jobs=1, first=end.goes_first)
                for job, end in again
            ]
        )
        self.run(self._announce(dead))

    def give_back(self, jobs: Sequence[ClaimedJob]) -> None:
        """Hands jobs of one model and lane to other workers at once; no attempt is counted."""
        page_id = new_id()
        given = self._patiently(lambda: self.ledger.give_back(self.id, jobs, page_id))
        self._let_go(jobs)
        if given:
            model_uri, lane, first = jobs[0].model_uri, jobs[0].lane, jobs[0].crashes == 1
            self._publish([Page(id=page_id, model_uri=model_uri, lane=lane, jobs=len(given), first=first)])

    def pass_on(self, page_id: UUID) -> None:
        """Gives what is still queued of a page a new message, for other workers."""
        self._publish(self._patiently(lambda: self.ledger.repage([page_id], [new_id()])))

    def withdrawn(self, jobs: Sequence[ClaimedJob]) -> set[UUID]:
        return self.run(self.ledger.withdrawn([job.id for job in jobs]))

    def part_with(self, culprits: Sequence[ClaimedJob], reason: PyFunQError | None) -> None:
        """What a process does last, from its watch: counts an attempt against the culprits and gives the rest back."""
        blamed = {job.id for job in culprits}
        innocent = [job for job in list(self._held.values()) if job.id not in blamed]
        if innocent:
            self.give_back(innocent)
        if culprits:
            self.crash(culprits, str(reason))

    def _let_go(self, jobs: Iterable[ClaimedJob]) -> None:
        for job in jobs:
            self._held.pop(job.id, None)

    def _publish(self, pages: Sequence[Page]) -> None:
        if not pages:
            return
        try:
            self._publisher.publish_now(pages)
        except QueueUnavailable as exc:
            log.warning("%d pages wait for rescue to publish them: %s", len(pages), exc)

    def _version(self, version_id: int) -> ModelVersion:
        if version_id not in self._versions:
            self._versions[version_id] = self._patiently(lambda: self.ledger.version(version_id))
        return self._versions[version_id]

    async def _announce(self, ids: set[UUID]) -> None:
        if not ids:
            return
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
