"""Feeding a backlog's chunks into the ledger: a few at a time, none twice, with a sign of life."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any
from uuid import UUID

from pyfunq.admission import Admission
from pyfunq.batch_ledger import BatchLedger
from pyfunq.custom_ids import CustomIds
from pyfunq.cut import Cut
from pyfunq.entries import NewJob
from pyfunq.errors import InvalidInput, PyFunQError, SubmissionStopped
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput
from pyfunq.job import GONE_SECONDS
from pyfunq.lanes import line_of
from pyfunq.submitting import Submitter

_GROUPS_IN_FLIGHT = 8
_REFERENCES_AT_ONCE = 1_000
_BEAT_SECONDS = GONE_SECONDS / 6
_PAGE_JOBS = 16
"""References on a page: a message costs about 1 ms of a worker's time and 1 KB of Redis. After each job its process
looks whether interactive jobs wait; other backlogs wait until the page is done."""
_PAGES_LEFT = 64
"""Towards the end pages become smaller, so that no process is left with a large one when the others have none."""


class Feed:
    """Submits the chunks of one batch."""

    def __init__(
        self,
        ledger: BatchLedger,
        submitter: Submitter,
        admission: Admission,
        *,
        batch_id: UUID,
        model_uri: str,
        cut: Cut,
        max_attempts: int,
        max_queued_jobs: int,
        tenant_id: int = 0,
        ids: CustomIds | None = None,
    ) -> None:
        """`ids`: what the rows of the chunks are called, in their order."""
        self._ledger = ledger
        self._submitter = submitter
        self._admission = admission
        self._batch_id = batch_id
        self._model_uri = model_uri
        self._cut = cut
        self._max_attempts = max_attempts
        self._tenant_id = tenant_id
        self._ids = ids
        self._jobs_at_once = min(_REFERENCES_AT_ONCE, max_queued_jobs) if cut.by_reference else 1
        self._rows_taken = self._rows_committed = 0
        self._submitting: set[asyncio.Task[Any]] = set()

    async def run(
        self, chunks: Iterator[EncodedInput], *, resumed: bool, on_progress: Callable[[int], None] | None
    ) -> None:
        """Returns when every chunk is committed; one that was is not submitted again.

        Raises when nothing more is being committed: SubmissionStopped where somebody else ended the batch.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                beating = tasks.create_task(self._beat())
                await self._submit_all(chunks, resumed, on_progress)
                beating.cancel()
        except ExceptionGroup as group:
            raise _first_of(group) from None
        finally:
            if self._submitting:
                await asyncio.wait(self._submitting)

    async def _submit_all(
        self, chunks: Iterator[EncodedInput], resumed: bool, on_progress: Callable[[int], None] | None
    ) -> None:
        room = asyncio.Semaphore(_GROUPS_IN_FLIGHT)
        numbered = enumerate(chunks)

        async def commit(group: list[tuple[int, EncodedInput]], ids: Mapping[int, bytes]) -> None:
            try:
                if ids:
                    await self._ledger.keep_custom_ids(self._batch_id, ids)
                missing = await self._without_those_there(group) if resumed else group
                if missing:
                    await self._admission.admit_when_there_is_room(line_of(self._cut.queue), len(missing))
                    await self._submit(self._jobs(missing))
            finally:
                room.release()
            self._rows_committed += sum(chunk.rows for _, chunk in group)
            if on_progress is not None:
                on_progress(self._rows_committed)

        async with asyncio.TaskGroup() as tasks:
            while True:
                await room.acquire()
                group, ids = await asyncio.to_thread(self._next, numbered)
                if not group:
                    break
                self._rows_taken += sum(chunk.rows for _, chunk in group)
                tasks.create_task(commit(group, ids))

    def _next(
        self, numbered: Iterator[tuple[int, EncodedInput]]
    ) -> tuple[list[tuple[int, EncodedInput]], dict[int, bytes]]:
        """The next chunks, and what their rows are called, by index."""
        group = list(islice(numbered, self._jobs_at_once))
        if self._ids is None:
            return group, {}
        packed = {index: self._ids.packed(chunk.rows) for index, chunk in group}
        return group, {index: ids for index, ids in packed.items() if ids is not None}

    async def _submit(self, jobs: list[NewJob]) -> None:
        """Who is cancelled here leaves a commit behind that goes on; `run` waits for it."""
        submitting = asyncio.create_task(self._submitter.submit(jobs))
        self._submitting.add(submitting)
        submitting.add_done_callback(self._submitting.discard)
        await asyncio.shield(submitting)

    async def _without_those_there(self, group: list[tuple[int, EncodedInput]]) -> list[tuple[int, EncodedInput]]:
        """What another producer commits at this moment is found by the ledger's own index."""
        there = await self._ledger.chunks_there(self._batch_id, group[0][0], group[-1][0])
        for index, chunk in group:
            if there.get(index, chunk.rows) != chunk.rows:
                raise InvalidInput(
                    f"chunk {index} of batch {self._batch_id} has {there[index]} rows and would now have {chunk.rows}: "
                    "the file is cut otherwise than it was (another PYFUNQ_MAX_INPUT_BYTES or signature?)"
                )
        return [(index, chunk) for index, chunk in group if index not in there]

    def _jobs(self, group: list[tuple[int, EncodedInput]]) -> list[NewJob]:
        pages = self._pages(len(group)) if self._cut.by_reference else [None] * len(group)
        return [
            NewJob(
                id=new_id(),
                model_uri=self._model_uri,
                input=chunk,
                queue=self._cut.queue,
                max_attempts=self._max_attempts,
                timeout_seconds=self._cut.timeout_seconds,
                retries=self._cut.retries,
                batch_id=self._batch_id,
                batch_index=index,
                page_id=page_id,
                tenant_id=self._tenant_id,
            )
            for (index, chunk), page_id in zip(group, pages, strict=True)
        ]

    def _pages(self, jobs: int) -> list[UUID | None]:
        left = jobs + (self._cut.rows - self._rows_taken) // self._cut.chunk_rows
        pages: list[UUID | None] = []
        while len(pages) < jobs:
            size = max(1, min(_PAGE_JOBS, (left - len(pages)) // _PAGES_LEFT, jobs - len(pages)))
            pages.extend([new_id()] * size)
        return pages

    async def _beat(self) -> None:
        """Raises SubmissionStopped once the batch was ended, for those who wait for room as well."""
        lives = True
        while lives:
            await asyncio.sleep(_BEAT_SECONDS)
            with suppress(PyFunQError):  # its commits meet the same trouble, and say so
                lives = await self._ledger.keep_batch_alive(self._batch_id)
        raise SubmissionStopped(f"batch {self._batch_id} was cancelled while it was being submitted")


def _first_of(group: ExceptionGroup[Exception]) -> Exception:
    """What one chunk ran into: the caller is told of that, not of a group of the others' cancellations."""
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first
