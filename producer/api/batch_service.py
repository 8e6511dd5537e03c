"""What the API asks of the ledger and the queue about batches: accepting one that was sent, watching, results."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from producer.api.callers import Caller
from producer.api.problems import Problem
from producer.api.uploads import Upload
from pyfunq.batch_ledger import BatchJob
from pyfunq.batches import Opened, valid_lane
from pyfunq.client import AsyncClient
from pyfunq.custom_ids import CustomIds, unpacked
from pyfunq.entries import StoredResult
from pyfunq.errors import (
    FileUnreadable,
    IdempotencyConflict,
    InvalidInput,
    LedgerUnavailable,
    UnknownBatch,
)
from pyfunq.gathered import Gathered
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput, encode_params
from pyfunq.job import GONE_SECONDS, Batch, JobStatus
from pyfunq.options import JobOptions
from pyfunq.signature import Signature

_CHECKED_AT_ONCE = 2
"""Bodies that are being read through; each takes a core, and some tens of MB."""
_BEAT_SECONDS = GONE_SECONDS / 6
_JOBS_AT_ONCE = 1_000
_RESULTS_AT_ONCE = 1_000
_RESULT_BYTES_AT_ONCE = 8 * 1024 * 1024
_LEAST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 2.0
_FAILED = frozenset({JobStatus.FAILED, JobStatus.EXPIRED, JobStatus.DEAD})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """What is asked beside the rows; `model` is a URI that the caller may ask for."""

    model: str
    lane: str
    chunk_rows: int | None
    params: Mapping[str, Any] | None
    options: JobOptions
    kind: str
    """The suffix of a file with such a body."""

    def digest(self, body: bytes) -> bytes:
        """What is equal for two requests that are the same; `body`: the digest of its body."""
        options = self.options
        parts = [self.model, self.lane, self.chunk_rows, self.params, options.timeout_seconds, options.retries]
        return hashlib.sha256(json.dumps([*parts, self.kind], sort_keys=True).encode() + body).digest()


@dataclass(frozen=True, slots=True)
class Hold:
    """What an idempotency key, if there is one, stands for: a batch to be made, or one that was (`digest`)."""

    batch_id: UUID
    key: str | None = None
    digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A job's share of a batch's results; its first row is number `first` of the batch, from 0."""

    index: int
    first: int
    rows: int
    stored: StoredResult
    packed_ids: bytes | None

    def ids(self) -> list[str] | None:
        """What its rows are called."""
        return None if self.packed_ids is None else unpacked(self.packed_ids)


class BatchService(AsyncClient):
    """The part of `Service` that concerns batches."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._checking = asyncio.Semaphore(_CHECKED_AT_ONCE)
        self._batches = Gathered(self._ledger.batches)
        self._stack.push_async_callback(self._batches.close)
        return self

    async def _check_quota(self, caller: Caller, jobs: int) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def held_key(self, caller: Caller, key: str | None) -> AsyncIterator[Hold]:
        """Holds a caller's idempotency key while its batch is submitted in the block; given back when that fails.

        Raises Problem 409 while another request with the key is under way.
        """
        batch_id = new_id()
        if key is None:
            yield Hold(batch_id)
            return
        own = f"{caller.tenant_id or 0}\x1f{key}"
        before = await self._ledger.take_batch_key(
            own, batch_id, last_seconds=self._settings.idempotency_seconds, gone_seconds=GONE_SECONDS
        )
        if before is not None:
            if before.digest is None or not before.is_submitted:
                headers = {"Retry-After": "5"}
                raise Problem(409, "the batch of this idempotency key is on its way", headers=headers, retryable=True)
            yield Hold(before.batch_id, own, before.digest)
            return
        beating = asyncio.create_task(self._beat(own, batch_id))
        try:
            yield Hold(batch_id, own)
        except LedgerUnavailable:
            raise  # perhaps all is committed: who asks again learns it, or takes the key over
        except BaseException:
            with suppress(LedgerUnavailable):
                await asyncio.shield(self._ledger.free_batch_key(own, batch_id))
            raise
        finally:
            beating.cancel()

    async def _beat(self, key: str, batch_id: UUID) -> None:
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            with suppress(LedgerUnavailable):
                await self._ledger.keep_batch_key(key, batch_id)

    async def accept_batch(self, caller: Caller, asked: BatchRequest, upload: Upload, hold: Hold) -> Batch:
        """The batch, once all of it is committed; nothing of it is before all was checked.

        Raises what `submit_batch` raises, IdempotencyConflict for a key that stands for another request.
        """
        digest = asked.digest(upload.digest)
        if hold.digest is not None:
            if hold.digest != digest:
                raise IdempotencyConflict
            return await self.get_batch(hold.batch_id)
        model_uri, signature = await self._model(asked.model)
        with closing(CustomIds(upload.folder)) as ids:
            async with self._checking:
                opened = await asyncio.to_thread(self._open_upload, upload, signature, ids)
            opened = replace(opened, tenant_id=caller.tenant_id or 0)
            queue = await self._queue(self._line(valid_lane(asked.lane), model_uri))
            rows = asked.chunk_rows or await self._chunk_rows(model_uri)
            cut = self._cut(opened, False, rows, queue, encode_params(asked.params), asked.options)
            await self._check_quota(caller, -(-cut.rows // cut.chunk_rows))
            # Without how it is cut: when this process ends, the file is gone, and nobody can go on with it.
            await self._ledger.open_batch(hold.batch_id, model_uri, f"upload{asked.kind}", None, opened.tenant_id)
            if hold.key is not None and not await self._ledger.keep_batch_key(hold.key, hold.batch_id, digest):
                await self._ledger.cancel_batch(hold.batch_id)
                raise Problem(409, "this idempotency key was taken over by a later request", retryable=True)
            return await self._feed(hold.batch_id, model_uri, cut, opened, False, None)

    def _open_upload(self, upload: Upload, signature: Signature | None, ids: CustomIds) -> Opened:
        from pyfunq.backlog import open_backlog

        with _as_body(upload.path):
            backlog = open_backlog(upload.path, signature=signature, ids=ids)

        def chunks(*cut: Any) -> Iterator[EncodedInput]:
            with _as_body(upload.path):
                yield from backlog.chunks(*cut)

        return Opened(backlog.rows, chunks, None, ids=ids)

    async def batch_page(self, caller: Caller, *, before: UUID | None, limit: int) -> list[Batch]:
        """The caller's batches, newest first."""
        return await self._ledger.list_batches(tenant_id=caller.tenant_id, before=before, limit=limit)

    async def batch_states(self, batch_id: UUID) -> AsyncIterator[Batch]:
        """The batch again and again, until it is final: soon after its jobs end, and every few seconds.

        All who watch it at the same time share the counting, which may take a while.
        """
        while True:
            asked = time.monotonic()
            batch = await self._batches.get(batch_id)
            if batch is None:
                raise UnknownBatch(f"there is no batch {batch_id}")
            yield batch
            if batch.is_final:
                return
            job_id = await self._ledger.unfinished_in_batch(batch_id)
            # Looking at a large batch takes a while; watching it must not be what keeps Postgres busy.
            await asyncio.sleep(max(_LEAST_PAUSE_SECONDS, 10 * (time.monotonic() - asked)))
            if job_id is not None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._finished.wait(job_id), _LONGEST_PAUSE_SECONDS)

    async def wait_batch_final(self, batch_id: UUID, seconds: float) -> Batch:
        """The batch when it is final, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for _ in self.batch_states(batch_id):
                    pass
        return await self.get_batch(batch_id)

    async def batch_jobs(self, batch_id: UUID) -> AsyncIterator[list[tuple[int, BatchJob]]]:
        """(number of its first row in the batch, job) in input order, many at a time; ends where a job is missing."""
        start = first = 0
        while jobs := await self._ledger.batch_jobs(batch_id, start=start, max_jobs=_JOBS_AT_ONCE):
            placed = []
            for job in jobs:
                if job.index != start:
                    break
                placed.append((first, job))
                start, first = start + 1, first + job.rows
            yield placed
            if len(placed) < len(jobs):
                return

    async def stored_parts(self, batch_id: UUID) -> AsyncIterator[list[StoredPart]]:
        """A batch's results in input order, some MB at a time; ends where a job is missing."""
        start = first = 0
        while found := await self._ledger.batch_results(
            batch_id, start=start, max_jobs=_RESULTS_AT_ONCE, max_bytes=_RESULT_BYTES_AT_ONCE
        ):
            ids = await self._ledger.custom_ids(batch_id, start, found[-1][0])
            parts = []
            for index, rows, stored in found:
                if index != start:
                    break
                parts.append(StoredPart(index, first, rows, stored, ids.get(index)))
                start, first = start + 1, first + rows
            yield parts
            if len(parts) < len(found):
                return

    async def retry_failed(self, batch_id: UUID) -> int:
        """Queues a batch's jobs again that failed, expired or are dead; returns how many."""
        count = 0
        async for placed in self.batch_jobs(batch_id):
            if ids := [job.id for _, job in placed if job.status in _FAILED]:
                pages = await self._ledger.try_again(ids, [new_id() for _ in ids])
                await self._submitter.publish(pages)
                count += len(pages)
        return count


@contextmanager
def _as_body(path: Path) -> Iterator[None]:
    """Errors of reading the file, told of the request's body: where that lies is nobody's business."""
    try:
        yield
    except (FileUnreadable, InvalidInput) as exc:
        exc.args = (exc.message.replace(str(path), "the body"),)
        raise
