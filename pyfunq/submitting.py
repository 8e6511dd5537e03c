"""Group commit: concurrent submits of one process share a transaction and a message, an idle one waits for nobody.

A message is a hint. Where commits are quick it is sent while its page is being committed, so that both take their time
at once, and a worker that finds no page looks again for a moment; where a commit turns out slow, it is sent again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import asyncpg

from pyfunq.entries import Keys, NewJob, Page, not_needed
from pyfunq.errors import AcceptanceUnknown, IdempotencyConflict, LedgerUnavailable, QueueUnavailable
from pyfunq.fault_points import FaultPoint, reach
from pyfunq.ids import new_id
from pyfunq.ledger import Ledger
from pyfunq.message import EARLY_SECONDS
from pyfunq.publishing import AsyncPublisher, sending

log = logging.getLogger(__name__)

_FLUSH_JOBS = 5_000
_FLUSH_BYTES = 16 * 1024 * 1024
_PAGE_JOBS = 1_000
_QUICK_SECONDS = EARLY_SECONDS / 2
_EARLY_JOBS = 200
_TRY_AGAIN_SECONDS = (0.0, 0.2, 0.5, 1.0, 2.0)
# No connection could be opened, so no statement was sent.
_NEVER_SENT = (
    ConnectionRefusedError,
    FileNotFoundError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)


_Group = tuple[Sequence[NewJob], asyncio.Future[dict[UUID, UUID]]]
"""What one caller submits, and what it waits for."""


class Submitter:
    """Gathers jobs while a flush is under way and commits them with the next; then publishes their pages.

    A job is accepted when its transaction is committed. When publishing fails, rescue does it.
    """

    def __init__(self, ledger: Ledger, publisher: AsyncPublisher, *, keys_last_seconds: float = 86_400.0) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._keys_last_seconds = keys_last_seconds
        self._waiting: list[_Group] = []
        self._flushing: asyncio.Task[None] | None = None
        self._publishing: set[asyncio.Task[None]] = set()
        self._is_quick = False
        self.accepted: Callable[[Sequence[Page]], None] = lambda _: None
        """Told of what was committed."""

    async def submit(self, jobs: Sequence[NewJob]) -> dict[UUID, UUID]:
        """Returns when all the jobs are committed; raises LedgerUnavailable when none is.

        The result names, for each job whose idempotency key stood for the same request already, the job that it stands
        for. Raises IdempotencyConflict when a key stands for another request.
        """
        committed: asyncio.Future[dict[UUID, UUID]] = asyncio.get_running_loop().create_future()
        self._waiting.append((jobs, committed))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush_all())
        return await committed

    async def submitted_before(self, job: NewJob) -> UUID | None:
        """The job that this job's idempotency key stands for already. Raises IdempotencyConflict."""
        keys = await self._keys([job.idempotency_key]) if job.idempotency_key else {}
        if job.idempotency_key not in keys:
            return None
        other = not_needed([(job.id, job)], keys)[job.id]
        if other is None:
            raise IdempotencyConflict
        return other

    async def close(self) -> None:
        """Waits until what was submitted is committed and its messages are sent (or given up)."""
        if self._flushing is not None:
            await self._flushing
        if self._publishing:
            await asyncio.wait(self._publishing)

    async def _flush_all(self) -> None:
        try:
            while self._waiting:
                await self._flush(self._take())
        finally:
            self._flushing = None

    def _take(self) -> list[_Group]:
        jobs = size = n = 0
        for group, _ in self._waiting:
            n += 1
            jobs += len(group)
            size += sum(len(job.input.payload) for job in group)
            if jobs >= _FLUSH_JOBS or size >= _FLUSH_BYTES:
                break
        taken, self._waiting = self._waiting[:n], self._waiting[n:]
        return taken

    async def _flush(self, groups: list[_Group]) -> None:
        everything = [job for group, _ in groups for job in group]
        early = self._is_quick and _may_go_early(everything)
        placed, pages = paginate(everything, by_first_job=early)
        begun = time.monotonic()
        if early:
            self._start_publishing(pages, early=True)
        self._is_quick = False
        try:
            others = await self._commit(placed)
        except Exception as exc:  # it belongs to those who wait, whatever it is
            for _, committed in groups:
                if not committed.done():
                    committed.set_exception(exc)
            return
        self._is_quick = time.monotonic() - begun < _QUICK_SECONDS
        reach(FaultPoint.BEFORE_PUBLISH)
        if others:
            pages = _without(pages, placed, others)
        if not (early and self._is_quick):
            self._start_publishing(pages)
            await sending()  # a worker need not wait until all callers have had their turn
        for jobs, committed in groups:
            if not committed.done():
                _tell(jobs, others, committed)
        self.accepted(pages)

    async def _commit(self, placed: Sequence[tuple[UUID, NewJob]]) -> dict[UUID, UUID | None]:
        """Raises LedgerUnavailable when surely nothing was committed, AcceptanceUnknown when nobody can say."""
        reach(FaultPoint.BEFORE_COMMIT)
        try:
            return await self._ledger.submit(placed, keys_last_seconds=self._keys_last_seconds)
        except LedgerUnavailable as exc:
            if isinstance(exc.__cause__, _NEVER_SENT):
                raise
            return await self._commit_again(placed)

    async def _commit_again(self, placed: Sequence[tuple[UUID, NewJob]]) -> dict[UUID, UUID | None]:
        """After a connection that broke during a commit.

        To ask for the jobs would not do: their transaction may be under way yet. Submitting the same ids waits for it,
        and of the two only one is committed.
        """
        for pause in _TRY_AGAIN_SECONDS:
            await asyncio.sleep(pause)
            try:
                return await self._ledger.submit_again(placed, keys_last_seconds=self._keys_last_seconds)
            except LedgerUnavailable:
                continue
        raise AcceptanceUnknown

    async def _keys(self, keys: Sequence[str]) -> Keys:
        return await self._ledger.keys(keys, last_seconds=self._keys_last_seconds) if keys else {}

    def _start_publishing(self, pages: Sequence[Page], *, early: bool = False) -> None:
        task = asyncio.create_task(self.publish(pages, early=early))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def publish(self, pages: Sequence[Page], *, early: bool = False) -> None:
        """Sends the messages of jobs; what cannot be sent now is left to rescue. `early`: they are being committed."""
        try:
            await self._publisher.publish(pages, early=early)
        except QueueUnavailable as exc:
            log.warning("%d accepted jobs wait for rescue to publish them: %s", sum(p.jobs for p in pages), exc)


def paginate(jobs: Sequence[NewJob], *, by_first_job: bool = False) -> tuple[list[tuple[UUID, NewJob]], list[Page]]:
    """Puts jobs on pages of one model and queue, or on those that they name.

    Other chunks of a batch, and single jobs, get a page, and its id, each. `by_first_job`: any page has its first job's
    id, by which a worker can tell whether it is committed; otherwise the id is new, for ids in a queue grow with time.
    """
    shelves: dict[tuple[str, ...] | UUID, list[NewJob]] = {}
    groups: list[list[NewJob]] = []
    for job in jobs:
        if job.batch_id is not None and job.page_id is None:
            groups.append([job])
            continue
        place = job.page_id or (job.model_uri, job.queue)
        shelf = shelves.setdefault(place, [])
        if not shelf:
            groups.append(shelf)
        shelf.append(job)
        if len(shelf) == _PAGE_JOBS:
            del shelves[place]
    placed: list[tuple[UUID, NewJob]] = []
    pages: list[Page] = []
    for group in groups:
        page_id = group[0].page_id or (group[0].id if by_first_job or len(group) == 1 else new_id())
        placed.extend((page_id, job) for job in group)
        pages.append(Page(id=page_id, model_uri=group[0].model_uri, queue=group[0].queue, jobs=len(group)))
    return placed, pages


def _may_go_early(jobs: Sequence[NewJob]) -> bool:
    """Whether all the jobs will be there soon."""
    return len(jobs) <= _EARLY_JOBS and not any(job.batch_id or job.idempotency_key for job in jobs)


def _tell(
    jobs: Sequence[NewJob], others: Mapping[UUID, UUID | None], committed: asyncio.Future[dict[UUID, UUID]]
) -> None:
    mine = {job.id: others[job.id] for job in jobs if job.id in others} if others else {}
    if None in mine.values():
        committed.set_exception(IdempotencyConflict())
    else:
        committed.set_result({job_id: other for job_id, other in mine.items() if other is not None})


def _without(
    pages: Sequence[Page], placed: Sequence[tuple[UUID, NewJob]], others: Mapping[UUID, UUID | None]
) -> list[Page]:
    """The pages with the number of their jobs that were committed; those of none are left out."""
    jobs = Counter(page_id for page_id, job in placed if job.id not in others)
    return [replace(page, jobs=jobs[page.id]) for page in pages if jobs[page.id]]
