"""The client's methods for backlogs: submit a batch and go on with it, wait for it, read its predictions in order."""

import asyncio
import os
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pyfunq.admission import Admission
from pyfunq.custom_ids import CustomIds
from pyfunq.cut import Cut, Source
from pyfunq.errors import InvalidInput, LedgerUnavailable, PyFunQError, SubmissionStopped, UnknownBatch, WaitTimeout
from pyfunq.feed import Feed
from pyfunq.frames import FrameMaker
from pyfunq.ids import new_id
from pyfunq.input_roots import InputRoots
from pyfunq.inputs import EncodedInput, encode_params
from pyfunq.job import STOPPED, Batch, JobError, Lane
from pyfunq.lanes import queues_of
from pyfunq.ledger import Ledger
from pyfunq.options import JobOptions
from pyfunq.outcomes import BatchPart, batch_part
from pyfunq.progress import progress_bar
from pyfunq.publishing import AsyncPublisher
from pyfunq.settings import Settings
from pyfunq.signature import Signature
from pyfunq.submitting import Submitter

if TYPE_CHECKING:
    import pandas as pd

_SOONEST_SECONDS, _LATEST_SECONDS = 0.02, 0.2
_RESULTS_AT_ONCE = 1_000
_RESULT_BYTES_AT_ONCE = 8 * 1024 * 1024

Chunks = Callable[[int, int, Mapping[str, Any] | None], Iterator[EncodedInput]]


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that was checked; `file` is what tells its state from others, None where it cannot be read again."""

    rows: int | None
    chunks: Chunks
    file: Source | None
    tenant_id: int = 0
    ids: CustomIds | None = None
    """What its rows are called, where they are called anything."""


class AsyncBatches:
    """The half of `AsyncClient` that concerns batches."""

    _settings: Settings
    _ledger: Ledger
    _submitter: Submitter
    _admission: Admission
    _publisher: AsyncPublisher

    async def _model(self, model: str) -> tuple[str, Signature | None]:
        raise NotImplementedError

    def _line(self, lane: Lane, model_uri: str) -> str:
        raise NotImplementedError

    async def _queue(self, line: str) -> str:
        """The queue of the line for what is submitted now: where the least waits, and least has to be waited for."""
        queues = queues_of(line)
        return queues[0] if len(queues) == 1 else await self._publisher.shortest_of(queues)

    async def submit_batch(
        self,
        model: str,
        source: Any,
        *,
        params: Mapping[str, Any] | None = None,
        chunk_rows: int | None = None,
        lane: Lane | str = Lane.BULK,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
        retries: int = 0,
        by_reference: bool = False,
        resume: Batch | UUID | str | None = None,
        on_open: Callable[[UUID], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Batch:
        """Accepts a backlog as jobs of `chunk_rows` rows each; returns when the last one is committed.

        Without `chunk_rows` they have PYFUNQ_CHUNK_ROWS, or as many as the model was seen to predict in
        PYFUNQ_BATCH_MAX_SECONDS, if that is fewer.

        `source`: the path of a Parquet, CSV or JSON Lines file, a DataFrame, or an iterable of DataFrames (read in a
        thread, a chunk at a time, so it may block). A file is checked whole before anything is accepted. `timeout` and
        `retries` are each job's, see `submit`. Where the lane holds as many jobs as it may, this waits until there is
        room. `on_open` is called with the batch's id before its first job is submitted, `on_progress` with the number
        of rows committed so far.

        `by_reference`: the jobs name the rows of a Parquet file, a folder of them (in the order of their names) or a
        URL of either, under a root that the operator allows (PYFUNQ_INPUT_ROOTS), and the workers read them there.
        Columns that the model does not take are left unread; a file that is changed afterwards fails its jobs.

        When this is interrupted, or loses Postgres, what was accepted from a file goes on, and the same call with
        `resume` submits the rest, with the options that the batch was begun with. When the data are at fault, or the
        source is no file, the jobs that still wait are cancelled. Either way the error is raised.
        """
        options = JobOptions.of(None, timeout, retries)
        model_uri, signature = await self._model(model)
        encoded = encode_params(params)
        if resume is None:
            opened = await asyncio.to_thread(self._open, source, by_reference, signature)
            queue = await self._queue(self._line(valid_lane(lane), model_uri))
            rows = chunk_rows or await self._chunk_rows(model_uri)
            cut = self._cut(opened, by_reference, rows, queue, encoded, options)
            batch_id = new_id()
            await self._ledger.open_batch(batch_id, model_uri, _describe(source), cut if opened.file else None)
        else:
            batch = await self._ledger.batch(batch_id_of(resume))
            if batch.submitted_at is not None:
                return batch
            cut = await self._cut_of(batch, model_uri, source, chunk_rows, encoded)
            opened = await asyncio.to_thread(self._open, source, cut.by_reference, signature)
            batch = await self._reopen(batch, cut, opened, _describe(source))
            if batch.submitted_at is not None:
                return batch
            batch_id = batch.id
        if on_open is not None:
            on_open(batch_id)
        return await self._feed(batch_id, model_uri, cut, opened, resume is not None, on_progress)

    async def _chunk_rows(self, model_uri: str) -> int:
        """As many as the settings say, or fewer of a model whose calls would take long."""
        most, known = self._settings.chunk_rows, await self._ledger.resolution(model_uri)
        return min(most, known.call_rows or most) if known else most

    def _cut(
        self,
        opened: Opened,
        by_reference: bool,
        chunk_rows: int,
        queue: str,
        params: bytes | None,
        options: JobOptions,
    ) -> Cut:
        return Cut(
            by_reference=by_reference,
            chunk_rows=chunk_rows,
            max_bytes=self._settings.max_input_bytes,
            rows=opened.rows or 0,
            queue=queue,
            params=params.decode() if params else None,
            timeout_seconds=options.timeout_seconds,
            retries=options.retries,
            source=opened.file or {},
        )

    async def _cut_of(
        self, batch: Batch, model_uri: str, source: Any, chunk_rows: int | None, params: bytes | None
    ) -> Cut:
        """How a batch that is to be resumed was cut. Raises InvalidInput where something else is asked for."""
        cut = await self._ledger.cut(batch.id)
        if cut is None:
            raise InvalidInput(f"batch {batch.id} is from no file: it cannot be resumed", field="resume")
        if batch.model_uri != model_uri:
            raise InvalidInput(f"batch {batch.id} is for {batch.model_uri}, not {model_uri}", field="model")
        if chunk_rows not in (None, cut.chunk_rows):
            raise InvalidInput(f"batch {batch.id} has {cut.chunk_rows} rows a job", field="chunk_rows")
        if params and params.decode() != cut.params:
            raise InvalidInput(f"batch {batch.id} has other params", field="params")
        if not isinstance(source, str | os.PathLike):
            raise InvalidInput("a batch is resumed with the file that it is from", field="source")
        return cut

    async def _reopen(self, batch: Batch, cut: Cut, opened: Opened, name: str) -> Batch:
        """The batch: to go on with, or as another producer has submitted it meanwhile.

        Raises InvalidInput for another file, and for a batch that was ended.
        """
        cut.check_source(opened.file or {}, name)
        if await self._ledger.resume_batch(batch.id):
            return batch
        now = await self._ledger.batch(batch.id)
        if now.submitted_at is None:
            reason = now.error.message if now.error else "its submission has ended"
            raise InvalidInput(f"batch {batch.id} cannot be resumed: {reason}", field="resume")
        return now

    def _open(self, source: Any, by_reference: bool, signature: Signature | None) -> Opened:
        from pyfunq.backlog import fingerprint, open_backlog
        from pyfunq.references import open_references

        if by_reference:
            named = open_references(source, InputRoots(self._settings.input_roots), signature=signature)
            return Opened(named.rows, named.chunks, {"checksum": named.checksum})
        is_file = isinstance(source, str | os.PathLike)
        backlog = open_backlog(source, signature=signature)
        # After the check: a file that is changed in between is found when it is read.
        return Opened(backlog.rows, backlog.chunks, fingerprint(Path(source)) if is_file else None)

    async def _feed(
        self,
        batch_id: UUID,
        model_uri: str,
        cut: Cut,
        opened: Opened,
        resumed: bool,
        on_progress: Callable[[int], None] | None,
    ) -> Batch:
        feed = Feed(
            self._ledger,
            self._submitter,
            self._admission,
            batch_id=batch_id,
            model_uri=model_uri,
            cut=cut,
            max_attempts=self._settings.max_attempts,
            max_queued_jobs=self._settings.max_queued_jobs,
            tenant_id=opened.tenant_id,
            ids=opened.ids,
        )
        try:
            chunks = opened.chunks(cut.chunk_rows, cut.max_bytes, cut.params_object())
            await feed.run(chunks, resumed=resumed, on_progress=on_progress)
        except BaseException as exc:
            with suppress(LedgerUnavailable):
                await asyncio.shield(self._note_the_end(batch_id, exc, opened.file is not None, resumed))
            raise
        if not await self._ledger.close_batch(batch_id):
            await self._ledger.cancel_batch(batch_id)
            raise SubmissionStopped(f"batch {batch_id} was cancelled while it was being submitted")
        return await self._ledger.batch(batch_id)

    async def _note_the_end(self, batch_id: UUID, exc: BaseException, is_file: bool, resumed: bool) -> None:
        said = exc.message if isinstance(exc, PyFunQError) else type(exc).__name__
        is_at_fault = isinstance(exc, PyFunQError) and exc.fault == "caller"
        was_ended = isinstance(exc, SubmissionStopped)  # and what was being committed meanwhile ends with it
        if is_file and not was_ended and (resumed or not is_at_fault):
            exc.add_note(f"what was accepted goes on; submit_batch(..., resume={str(batch_id)!r}) submits the rest")
            await self._ledger.stop_batch(batch_id, JobError(code=STOPPED, message=f"submitting stopped: {said}"))
            return
        error = JobError(code=getattr(exc, "code", "interrupted"), message=f"submitting stopped: {said}")
        await self._ledger.fail_batch(batch_id, error)

    async def get_batch(self, batch: Batch | UUID | str) -> Batch:
        """The batch as it is now. Raises UnknownBatch."""
        return await self._ledger.batch(batch_id_of(batch))

    async def wait_batch(
        self,
        batch: Batch | UUID | str,
        timeout: float | None = None,  # noqa: ASYNC109
        on_progress: Callable[[Batch], None] | None = None,
        *,
        progress: bool = False,
    ) -> Batch:
        """The batch once all its jobs are final. `progress`: a bar on stderr, where that is a terminal.

        Raises WaitTimeout after `timeout` seconds (the batch goes on), SubmissionStopped when all that was accepted
        is final, and its producer stopped before the end or has not been heard for 60 s.
        """
        with progress_bar("batch", shown=progress) as show:

            def tell(now: Batch) -> None:
                show(now.rows_finished, now.source_rows or now.rows)
                if on_progress is not None:
                    on_progress(now)

            return await self._end_of(batch, timeout, tell)

    async def _end_of(
        self,
        batch: Batch | UUID | str,
        timeout: float | None,  # noqa: ASYNC109
        tell: Callable[[Batch], None],
    ) -> Batch:
        begun = time.monotonic()
        deadline = None if timeout is None else begun + timeout
        while True:
            asked = time.monotonic()
            now = await self.get_batch(batch)
            tell(now)
            if now.is_final:
                return now
            if now.is_stopped and now.finished == now.jobs:
                raise SubmissionStopped(stopped_text(now))
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout(f"batch {now.id} was not finished after {timeout:g} s; it goes on")
            answered = time.monotonic()
            await asyncio.sleep(pause_seconds(answered - begun, answered - asked))

    async def batch_results(self, batch: Batch | UUID | str) -> AsyncIterator[BatchPart]:
        """A finished batch's results in input order, a job's share at a time, in constant memory."""
        batch_id = batch_id_of(batch)
        start = 0
        while parts := await self._ledger.batch_results(
            batch_id, start=start, max_jobs=_RESULTS_AT_ONCE, max_bytes=_RESULT_BYTES_AT_ONCE
        ):
            for index, rows, stored in parts:
                yield batch_part(batch_id, index, rows, stored)
            start = parts[-1][0] + 1

    async def batch_frames(
        self, batch: Batch | UUID | str, *, on_missing: Callable[[BatchPart], None] | None = None
    ) -> "AsyncIterator[pd.DataFrame]":
        """The predictions of a batch as DataFrames in input order, a job's at a time, in constant memory.

        One column `prediction` where the model gives one value a row, else the model's own. The first job without a
        result raises its JobFailed; with `on_missing`, that is called with each such job's part, and its rows are
        nulls, so that the order of rows stays that of the input. Raises SubmissionStopped and WaitTimeout for a batch
        that is not there as a whole.
        """
        now = await self.get_batch(batch)
        if not now.is_final:
            raise (
                SubmissionStopped(stopped_text(now))
                if now.is_stopped
                else WaitTimeout(f"batch {now.id} is not finished: {now.finished} of {now.jobs} jobs")
            )
        maker = FrameMaker(on_missing)
        async for part in self.batch_results(now):
            for frame in maker.add(part):
                yield frame
        for frame in maker.end():
            yield frame

    async def cancel_batch(self, batch: Batch | UUID | str) -> Batch:
        """Withdraws what is not final; a batch that is still being submitted ends."""
        batch_id = batch_id_of(batch)
        await self._ledger.cancel_batch(batch_id)
        return await self._ledger.batch(batch_id)


def pause_seconds(waited: float, asking: float) -> float:
    """Until a batch is asked for again, after a wait of so long: a small one is known to have ended almost at once.

    Counting a large one takes a while (`asking`); waiting for it must not be what keeps Postgres busy.
    """
    return max(_SOONEST_SECONDS, min(waited / 20, _LATEST_SECONDS), 10 * asking)


def stopped_text(batch: Batch) -> str:
    """Where submitting a batch stopped, and how to go on."""
    of = f" of {batch.source_rows:,}" if batch.source_rows else ""
    where = f"submission of batch {batch.id} stopped at {batch.rows:,}{of} rows"
    if batch.is_resumable:
        return f"{where}; resume with `pyfunq batch resume {batch.id} {shlex.quote(batch.source)}`"
    return f"{where}, and its source was no file: cancel it, and submit it again"


def batch_id_of(batch: Batch | UUID | str) -> UUID:
    """Raises UnknownBatch."""
    if isinstance(batch, str):
        try:
            return UUID(batch)
        except ValueError:
            raise UnknownBatch(f"{batch[:80]!r} is not a batch id") from None
    return batch.id if isinstance(batch, Batch) else batch


def valid_lane(lane: Lane | str) -> Lane:
    """Raises InvalidInput."""
    try:
        return lane if type(lane) is Lane else Lane(lane)
    except ValueError:
        raise InvalidInput(f"lane is one of {', '.join(Lane)}", field="lane") from None


def _describe(source: Any) -> str:
    if not isinstance(source, str | os.PathLike):
        return type(source).__name__
    return str(source) if "://" in str(source) else Path(source).name
