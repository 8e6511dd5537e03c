"""One worker process: its identity in the ledger, its heartbeat, its models, and its way to Postgres and Redis."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from pyfunq.entries import ClaimedJob, Outcome, Page
from pyfunq.errors import LedgerUnavailable, PyFunQError, QueueUnavailable
from pyfunq.fault_points import FaultPoint, reach
from pyfunq.ids import new_id
from pyfunq.input_roots import InputRoots
from pyfunq.job import JobError, JobStatus
from pyfunq.lanes import moved, own_of, queues_before
from pyfunq.ledger import Ledger
from pyfunq.local import identity
from pyfunq.message import EARLY_SECONDS
from pyfunq.migrate import require_current
from pyfunq.publishing import Publisher, sending
from pyfunq.settings import Settings
from pyfunq.waiting import FINISHED_CHANNEL, announcement
from worker import metrics
from worker.artifacts import ArtifactStore
from worker.draining import Drain
from worker.heartbeat import Heartbeat
from worker.loading import Loader
from worker.loop import LoopThread
from worker.memory import cache_share
from worker.model_cache import ModelCache
from worker.model_desk import ModelDesk
from worker.model_envs import Environments
from worker.pace import Paces
from worker.preparing import Preparer
from worker.references import ReferenceReader
from worker.registry import Registry
from worker.serving import Serving
from worker.trust import Trust
from worker.watch import Watch

log = logging.getLogger(__name__)

R = TypeVar("R")

_PATIENCE_SECONDS = 300.0
# Below worker_proc_alive_timeout, after which Celery kills a child that has not started.
_STARTING_SECONDS = 90.0
_CLOSING_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 0.0005
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class OtherQueue(PyFunQError):
    """The jobs' model has a queue of its own, and other workers take from it."""

    code = "other_queue"
    retryable = True

    def __init__(self, own: str = "") -> None:
        super().__init__(f"jobs of this model wait in {own or 'a queue of its own'}")
        self.own = own


class WorkerProcess:
    """Made in the process that predicts, after any fork; `close` gives its identity back to the ledger."""

    def __init__(
        self, settings: Settings, drain: Drain | None = None, queues: Sequence[str] = (), *, processes: int = 1
    ) -> None:
        """`queues`: those that the worker takes from, the first one first. `processes`: so many share the memory."""
        self.settings = settings
        self._queues = queues
        self._processes = processes
        self._trust = Trust.of(settings)
        self.id: UUID = new_id()
        self.drain = drain or Drain()
        self.registry = Registry(settings.mlflow, fallback_latest=settings.fallback_latest)
        self.references = ReferenceReader(InputRoots(settings.input_roots))
        self._paces = Paces(longest_seconds=settings.batch_max_seconds, most_rows=settings.batch_max_rows)
        self._held: dict[UUID, ClaimedJob] = {}
        self._announcing: set[asyncio.Task[None]] = set()
        self.heartbeat = Heartbeat(settings.heartbeat_seconds)
        self.publisher = Publisher(settings.redis)
        self._loop = LoopThread()
        self._stack = AsyncExitStack()
        started_by = time.monotonic() + _STARTING_SECONDS
        self.patiently(self._open_ledger, _STARTING_SECONDS)
        self._loop.run(self._open())
        self._beating = self._loop.start(self._beat())
        telling = metrics.keep_telling(self.ledger, lambda: self.id, settings.heartbeat_seconds)
        self._telling = self._loop.start(telling)
        self._watch = Watch(self, self.drain, max_memory_bytes=settings.max_memory_bytes)
        self._prepare_models(started_by)

    def _prepare_models(self, started_by: float) -> None:
        s = self.settings
        self.desk = ModelDesk(self, self.registry)
        self.models = ModelCache(
            Loader(
                ArtifactStore(s.home / "models", s.mlflow, max_bytes=s.model_disk_bytes),
                self._environments(),
                self._trust,
            ),
            max_count=s.model_cache_count,
            max_bytes=s.model_cache_bytes or cache_share(self._processes),
            failure_seconds=s.load_failure_seconds,
            dropped=lambda version: self.serving.left_memory(version),
        )
        self.serving = Serving(self.models, self.desk, pinned=s.preload)
        self.preparer = Preparer(self.serving, self.models, self.desk, pause_seconds=s.load_failure_seconds)
        self.preparer.preload(list(s.preload), started_by - time.monotonic())
        self.preparer.start()

    def _environments(self) -> Environments | None:
        s = self.settings
        if s.model_envs == "off":
            return None
        # Within the time that loading may take: after it the jobs wait without this process.
        patience = min(60.0, s.load_timeout_seconds / 2)
        return Environments(s.home / "envs", max_bytes=s.model_envs_bytes, patience_seconds=patience)

    async def _open_ledger(self) -> None:
        await require_current(self.settings.database)
        self.ledger = await self._stack.enter_async_context(Ledger.open(self.settings.database, max_connections=4))

    async def _open(self) -> None:
        self._redis = Redis.from_url(self.settings.redis, socket_timeout=5, socket_connect_timeout=5)
        self._stack.push_async_callback(self._redis.aclose)
        await self._beat_once()

    def close(self) -> None:
        self.preparer.close()
        self._watch.close()
        self.models.close()
        self.publisher.close()
        self.references.close()
        self._beating.cancel()
        self._telling.cancel()
        self._loop.run(metrics.tell(self.ledger, self.id, within_seconds=_CLOSING_SECONDS))
        with contextlib.suppress(LedgerUnavailable):
            self._loop.run(self.ledger.stop_beating(self.id))
        self._loop.run(self._close())
        self._loop.close()

    async def _close(self) -> None:
        if self._announcing:
            await asyncio.wait(self._announcing, timeout=_CLOSING_SECONDS)
        await self._stack.aclose()

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

    def start_claim(self, page_id: UUID, *, early: bool = False) -> "Future[list[ClaimedJob]]":
        """Takes jobs of a page, waiting while Postgres is away; `claimed` says which.

        `early`: the page may be in the middle of its commit.
        """
        claim = self._claim_early if early else self._claim
        return self._loop.start(self._patient(lambda: claim(page_id)))

    async def _claim_early(self, page_id: UUID) -> list[ClaimedJob]:
        """Where its jobs went with another page's they are there."""
        give_up = time.monotonic() + EARLY_SECONDS
        if jobs := await self._claim(page_id):
            return jobs
        is_last_look = False
        while not is_last_look:
            is_last_look = time.monotonic() >= give_up
            if await self.ledger.is_there(page_id):
                return await self._claim(page_id)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        return []

    async def _claim(self, page_id: UUID) -> list[ClaimedJob]:
        s = self.settings
        jobs = await self.ledger.claim(
            page_id, self.id, max_jobs=s.batch_max_jobs, max_rows=s.batch_max_rows, max_bytes=s.batch_max_bytes
        )
        self._held.update((job.id, job) for job in jobs)
        return jobs

    def claimed(self, claim: "Future[list[ClaimedJob]]") -> tuple[list[ClaimedJob], bool]:
        """The jobs, and whether the page may have more."""
        s = self.settings
        jobs = self._loop.result(claim)
        metrics.claimed(jobs)
        most_rows = min(s.batch_max_rows, jobs[0].max_rows or s.batch_max_rows) if jobs else 0
        is_full = len(jobs) >= s.batch_max_jobs or sum(job.rows for job in jobs) >= most_rows
        return jobs, is_full or sum(len(job.input) for job in jobs) >= s.batch_max_bytes

    def call(self, jobs: Sequence[ClaimedJob], function: Callable[[], R]) -> R:
        """`function()`, on behalf of the jobs and within the shortest of their limits; see `Watch.run`."""
        limit = min(job.timeout_seconds or self.settings.timeout_seconds for job in jobs)
        return self._watch.run(jobs, limit, function)

    def timed(self, jobs: Sequence[ClaimedJob], seconds: float) -> None:
        """Notes a call that answered; claims and producers learn how many rows the next ones should have."""
        metrics.predicted(jobs, seconds)
        model_uri = jobs[0].model_uri
        if rows := self._paces.news(model_uri, sum([job.rows for job in jobs]), seconds):
            self._loop.start(self._set_call_rows(model_uri, rows))

    async def _set_call_rows(self, model_uri: str, rows: int) -> None:
        with contextlib.suppress(LedgerUnavailable):  # it stays as it was until the pace is another again
            await self.ledger.set_call_rows(model_uri, rows)

    def load(self, jobs: Sequence[ClaimedJob], function: Callable[[], R]) -> R:
        """`function()`, which may load a model for the jobs."""
        return self._watch.run(jobs, self.settings.load_timeout_seconds, function)

    def check_queue(self, job: ClaimedJob) -> None:
        """Raises OtherQueue where the job's model has a queue of its own that this worker does not take from."""
        known = self.patiently(lambda: self.ledger.resolution(job.model_uri))
        own = known.tags.queue if known is not None else None
        if own is not None and own != own_of(job.queue) and own not in self._queues:
            raise OtherQueue(own)

    def others_go_first(self, queue: str | None) -> bool:
        """Whether messages wait that this worker takes before those of the queue."""
        ahead = queues_before(queue, self._queues)
        try:
            return bool(ahead) and self.run(self._any_waits(ahead))
        except (RedisError, OSError):
            return False

    async def _any_waits(self, queues: Sequence[str]) -> bool:
        return await self._redis.exists(*queues) > 0

    def start_recording(self, outcomes: Sequence[Outcome]) -> "Future[set[UUID]]":
        """Writes results, waiting while Postgres is away; `recorded` says which."""
        return self._loop.start(self._record(outcomes))

    async def _record(self, outcomes: Sequence[Outcome]) -> set[UUID]:
        recorded = await self._patient(lambda: self.ledger.finish(self.id, outcomes))
        reach(FaultPoint.BEFORE_ACK)
        self._announcing.add(task := asyncio.create_task(self._announce(recorded)))
        task.add_done_callback(self._announcing.discard)
        await sending()  # the thread that predicts, once it is woken, has much to do
        return recorded

    def recorded(self, outcomes: Sequence[Outcome], recording: "Future[set[UUID]]") -> set[UUID]:
        """What was still this process's to write."""
        recorded = self._loop.result(recording)
        metrics.completed(outcomes, recorded)
        self._let_go(o.job for o in outcomes)
        lost = [o.job for o in outcomes if o.job.id not in recorded]
        if lost:
            log.warning("%d results were not kept: their jobs were cancelled or taken by another worker", len(lost))
        return recorded

    def delay(self, jobs: Sequence[ClaimedJob], error: PyFunQError) -> None:
        """Lets jobs wait for what is away; no attempt is counted, and rescue publishes them when they are due."""
        s = self.settings
        why = JobError(code=error.code, message=error.message)
        given_up = self.patiently(
            lambda: self.ledger.delay(
                self.id, jobs, why, longest_seconds=s.longest_pause_seconds, give_up_seconds=s.dependency_wait_seconds
            )
        )
        self._let_go(jobs)
        if given_up:
            metrics.ended([job for job in jobs if job.id in given_up], JobStatus.FAILED)
            log.warning("%d jobs failed, having waited for %g s", len(given_up), s.dependency_wait_seconds)
            self.run(self._announce(given_up))

    def retry(self, jobs: Sequence[ClaimedJob]) -> None:
        """Lets failed jobs be tried again after a while, as their callers asked."""
        longest = self.settings.longest_pause_seconds
        self.patiently(lambda: self.ledger.retry(self.id, jobs, longest_seconds=longest))
        self._let_go(jobs)

    def crash(self, jobs: Sequence[ClaimedJob], how: str) -> None:
        """Counts an attempt against jobs that did not end; they are tried again, each alone, or dead."""
        ends = self.patiently(lambda: self.ledger.crash(self.id, jobs, [new_id() for _ in jobs], how))
        self._let_go(jobs)
        dead = {job_id for job_id, end in ends.items() if end.status is JobStatus.DEAD}
        metrics.ended([job for job in jobs if job.id in dead], JobStatus.DEAD)
        log.warning("%d jobs %s: %d are tried again, %d dead", len(jobs), how, len(ends) - len(dead), len(dead))
        again = [(job, ends[job.id]) for job in jobs if job.id in ends.keys() - dead]
        self._publish(
            [
                Page(id=end.page_id, model_uri=job.model_uri, queue=job.queue, jobs=1, first=end.goes_first)
                for job, end in again
            ]
        )
        self.run(self._announce(dead))

    def give_back(self, jobs: Sequence[ClaimedJob], own: str | None = None) -> None:
        """Hands jobs of one model and queue to other workers at once; no attempt is counted.

        `own`: the queue of the model's own that they are to wait in.
        """
        page_id, queue = new_id(), jobs[0].queue if own is None else moved(jobs[0].queue, own)
        given = self.patiently(lambda: self.ledger.give_back(self.id, jobs, page_id, queue))
        self._let_go(jobs)
        if given:
            model_uri, first = jobs[0].model_uri, jobs[0].crashes == 1
            self._publish([Page(id=page_id, model_uri=model_uri, queue=queue, jobs=len(given), first=first)])

    def pass_on(self, page_id: UUID) -> None:
        """Gives what is still queued of a page a new message, for other workers."""
        self._publish(self.patiently(lambda: self.ledger.repage([page_id], [new_id()])))

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
        self.run(metrics.tell(self.ledger, self.id, within_seconds=_CLOSING_SECONDS))

    def _let_go(self, jobs: Iterable[ClaimedJob]) -> None:
        for job in jobs:
            self._held.pop(job.id, None)

    def _publish(self, pages: Sequence[Page]) -> None:
        if not pages:
            return
        try:
            self.publisher.publish_now(pages)
        except QueueUnavailable as exc:
            log.warning("%d pages wait for rescue to publish them: %s", len(pages), exc)

    async def _announce(self, ids: set[UUID]) -> None:
        if not ids:
            return
        try:
            await self._redis.publish(FINISHED_CHANNEL, announcement(ids))
        except (RedisError, OSError) as exc:
            log.warning("%d finished jobs were not announced (%s); waiters poll", len(ids), type(exc).__name__)

    def patiently(self, ask: Callable[[], Coroutine[Any, Any, R]], seconds: float = _PATIENCE_SECONDS) -> R:
        return self.run(self._patient(ask, seconds))

    async def _patient(self, ask: Callable[[], Coroutine[Any, Any, R]], seconds: float = _PATIENCE_SECONDS) -> R:
        """Repeats a ledger call while Postgres is away.

        In the end this process takes a new identity, so that rescue gives what the old one had claimed to others.
        """
        deadline = time.monotonic() + seconds
        pause = _FIRST_PAUSE
        while True:
            try:
                return await ask()
            except LedgerUnavailable as exc:
                if time.monotonic() > deadline:
                    self.id = new_id()
                    raise
                log.warning("%s; trying again in %.1f s", exc, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
