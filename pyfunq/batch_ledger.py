"""What the ledger is asked about batches: their row, which of their chunks are there, and their results."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from pyfunq.cut import Cut
from pyfunq.entries import StoredResult
from pyfunq.errors import UnknownBatch
from pyfunq.job import STATUSES, Batch, JobError, JobStatus


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What an idempotency key stands for; `digest` is that of the request, None while its body comes."""

    batch_id: UUID
    digest: bytes | None
    is_submitted: bool


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A job of a batch, without its result."""

    id: UUID
    index: int
    rows: int
    status: JobStatus
    error: JobError | None


class BatchLedger(ABC):
    """The part of `Ledger` that concerns batches."""

    @abstractmethod
    async def _fetch(self, query: str, *args: Any) -> list[asyncpg.Record]: ...

    @abstractmethod
    async def _fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None: ...

    @abstractmethod
    async def _execute(self, query: str, *args: Any) -> None: ...

    async def open_batch(
        self, batch_id: UUID, model_uri: str, source: str, cut: Cut | None = None, tenant_id: int = 0
    ) -> None:
        await self._execute("open_batch", batch_id, model_uri, source, cut and cut.to_json(), tenant_id)

    async def close_batch(self, batch_id: UUID) -> bool:
        """Notes that all of it is committed; False if submitting was ended by somebody else before."""
        return await self._fetchrow("close_batch", batch_id) is not None

    async def fail_batch(self, batch_id: UUID, error: JobError) -> None:
        """Ends a batch whose submission failed: what is queued is cancelled, the reason kept."""
        await self._execute("stop_batch", batch_id, error.code, error.message)
        await self._execute("cancel_batch", batch_id)

    async def stop_batch(self, batch_id: UUID, error: JobError) -> None:
        """Notes that submitting stopped, with error code `job.STOPPED`; what was accepted goes on."""
        await self._execute("stop_batch", batch_id, error.code, error.message)

    async def resume_batch(self, batch_id: UUID) -> bool:
        """Notes that submitting goes on; False if there is nothing to go on with."""
        return await self._fetchrow("resume_batch", batch_id) is not None

    async def keep_batch_alive(self, batch_id: UUID) -> bool:
        """Notes that the batch's producer lives; False if somebody ended the batch."""
        return await self._fetchrow("keep_batch_alive", batch_id) is not None

    async def cancel_batch(self, batch_id: UUID) -> list[UUID]:
        await self._execute("stop_batch", batch_id, "job_cancelled", "it was cancelled while it was being submitted")
        return [r["id"] for r in await self._fetch("cancel_batch", batch_id)]

    async def cut(self, batch_id: UUID) -> Cut | None:
        """How a batch that can be resumed is cut."""
        rows = await self._fetch("get_batches", [batch_id])
        return Cut.of(rows[0]["cut"]) if rows and rows[0]["cut"] is not None else None

    async def chunks_there(self, batch_id: UUID, first: int, last: int) -> dict[int, int]:
        """The rows, by batch index, of the committed chunks from index `first` to `last`."""
        return {r["batch_index"]: r["rows"] for r in await self._fetch("chunks_there", batch_id, first, last)}

    async def batch(self, batch_id: UUID) -> Batch:
        """Raises UnknownBatch."""
        found = await self.batches([batch_id])
        if batch_id not in found:
            raise UnknownBatch(f"there is no batch {batch_id}")
        return found[batch_id]

    async def batches(self, ids: Sequence[UUID]) -> dict[UUID, Batch]:
        """The batches that exist among these."""
        rows = await self._fetch("get_batches", list(ids))
        counted: dict[UUID, dict[JobStatus, asyncpg.Record]] = defaultdict(dict)
        for r in await self._fetch("count_batches", list(ids)):
            counted[r["batch_id"]][JobStatus(r["status"])] = r
        return {row["id"]: _batch(row, counted[row["id"]]) for row in rows}

    async def list_batches(self, *, tenant_id: int | None, before: UUID | None, limit: int) -> list[Batch]:
        """Newest first; `before` is the id of the last one of the page before. `tenant_id` None: of all tenants."""
        ids = [r["id"] for r in await self._fetch("list_batches", tenant_id, before, limit)]
        found = await self.batches(ids) if ids else {}
        return [found[batch_id] for batch_id in ids if batch_id in found]

    async def batch_jobs(self, batch_id: UUID, *, start: int, max_jobs: int) -> list[BatchJob]:
        """A batch's jobs from index `start` on, in input order."""
        rows = await self._fetch("batch_jobs", batch_id, start, max_jobs)
        return [BatchJob(r["id"], r["batch_index"], r["rows"], JobStatus(r["status"]), error_of(r)) for r in rows]

    async def unfinished_in_batch(self, batch_id: UUID) -> UUID | None:
        """One of its jobs that is not final: the first."""
        row = await self._fetchrow("unfinished_in_batch", batch_id)
        return None if row is None else row["id"]

    async def keep_custom_ids(self, batch_id: UUID, ids: Mapping[int, bytes]) -> None:
        """Keeps what the rows of chunks are called, by batch index; `custom_ids.packed` texts."""
        await self._execute("keep_custom_ids", batch_id, list(ids), list(ids.values()))

    async def custom_ids(self, batch_id: UUID, first: int, last: int) -> dict[int, bytes]:
        """What was kept for the chunks from index `first` to `last`, for those whose rows are called anything."""
        return {r["batch_index"]: r["ids"] for r in await self._fetch("custom_ids", batch_id, first, last)}

    async def take_batch_key(
        self, key: str, batch_id: UUID, *, last_seconds: float, gone_seconds: float
    ) -> BatchKey | None:
        """Makes an idempotency key stand for a batch that is about to come; what it stands for already if it does.

        A batch whose producer was silent for `gone_seconds` before all of it was committed loses its key, and ends.
        """
        while True:
            before = await self._batch_key(key)
            if await self._fetchrow("take_batch_key", key, batch_id, last_seconds, gone_seconds) is not None:
                if before is not None and not before.is_submitted:
                    await self.cancel_batch(before.batch_id)
                return None
            if (now := await self._batch_key(key)) is not None:
                return now

    async def _batch_key(self, key: str) -> BatchKey | None:
        row = await self._fetchrow("read_batch_key", key)
        return None if row is None else BatchKey(**row)

    async def keep_batch_key(self, key: str, batch_id: UUID, digest: bytes | None = None) -> bool:
        """Notes that the batch is still being submitted; False if the key stands for another one now."""
        return await self._fetchrow("keep_batch_key", key, batch_id, digest) is not None

    async def free_batch_key(self, key: str, batch_id: UUID) -> None:
        await self._execute("free_batch_key", key, batch_id)

    async def batch_results(
        self, batch_id: UUID, *, start: int, max_jobs: int, max_bytes: int
    ) -> list[tuple[int, int, StoredResult]]:
        """(batch index, rows, result) from index `start` on, in input order; at least one while there are any."""
        rows = await self._fetch("batch_results", batch_id, start, max_jobs, max_bytes)
        return [(r["batch_index"], r["rows"], stored_of(r)) for r in rows]


def _batch(row: asyncpg.Record, counted: Mapping[JobStatus, asyncpg.Record]) -> Batch:
    cut = Cut.of(row["cut"]) if row["cut"] is not None else None
    return Batch(
        id=row["id"],
        model_uri=row["model_uri"],
        created_at=row["created_at"],
        submitted_at=row["submitted_at"],
        error=error_of(row),
        jobs=sum(r["jobs"] for r in counted.values()),
        rows=sum(r["rows"] for r in counted.values()),
        rows_finished=sum(r["rows"] for status, r in counted.items() if status.is_final),
        counts={status: r["jobs"] for status, r in counted.items()},
        source=row["source"],
        source_rows=cut.rows if cut else None,
        is_resumable=cut is not None,
        silent_seconds=0.0 if row["submitted_at"] else row["silent_seconds"],
    )


def stored_of(row: asyncpg.Record) -> StoredResult:
    return StoredResult(
        status=STATUSES[row["status"]], format=row["result_format"], payload=row["result"], error=error_of(row)
    )


def error_of(row: asyncpg.Record) -> JobError | None:
    code = row["error_code"]
    return None if code is None else JobError(code=code, message=row["error_message"])
