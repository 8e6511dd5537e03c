"""What the ledger is asked about batches: their row, which of their chunks are there, and their results."""

from abc import ABC, abstractmethod
from typing import Any
from uuid import UUID

import asyncpg

from pyfunq.cut import Cut
from pyfunq.entries import StoredResult
from pyfunq.errors import UnknownBatch
from pyfunq.job import Batch, JobError, JobStatus


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
        """Notes that the batch's producer lives; False if submitting was ended by somebody else."""
        return await self._fetchrow("keep_batch_alive", batch_id) is not None

    async def cancel_batch(self, batch_id: UUID) -> list[UUID]:
        await self._execute("stop_batch", batch_id, "job_cancelled", "it was cancelled while it was being submitted")
        return [r["id"] for r in await self._fetch("cancel_batch", batch_id)]

    async def cut(self, batch_id: UUID) -> Cut | None:
        """How a batch that can be resumed is cut."""
        row = await self._fetchrow("get_batch", batch_id)
        return Cut.of(row["cut"]) if row is not None and row["cut"] is not None else None

    async def chunks_there(self, batch_id: UUID, first: int, last: int) -> dict[int, int]:
        """The rows, by batch index, of the committed chunks from index `first` to `last`."""
        return {r["batch_index"]: r["rows"] for r in await self._fetch("chunks_there", batch_id, first, last)}

    async def batch(self, batch_id: UUID) -> Batch:
        """Raises UnknownBatch."""
        row = await self._fetchrow("get_batch", batch_id)
        if row is None:
            raise UnknownBatch(f"there is no batch {batch_id}")
        counted = {JobStatus(r["status"]): r for r in await self._fetch("count_batch", batch_id)}
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

    async def batch_results(
        self, batch_id: UUID, *, start: int, max_jobs: int, max_bytes: int
    ) -> list[tuple[int, int, StoredResult]]:
        """(batch index, rows, result) from index `start` on, in input order; at least one while there are any."""
        rows = await self._fetch("batch_results", batch_id, start, max_jobs, max_bytes)
        return [(r["batch_index"], r["rows"], stored_of(r)) for r in rows]


def stored_of(row: asyncpg.Record) -> StoredResult:
    return StoredResult(
        status=JobStatus(row["status"]), format=row["result_format"], payload=row["result"], error=error_of(row)
    )


def error_of(row: asyncpg.Record) -> JobError | None:
    code = row["error_code"]
    return None if code is None else JobError(code=code, message=row["error_message"])
