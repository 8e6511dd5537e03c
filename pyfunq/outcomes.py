"""How a job ended, as its caller gets it: the predictions, or an error that says why there are none."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pyfunq.entries import StoredResult
from pyfunq.errors import JobCancelled, JobDead, JobExpired, JobFailed
from pyfunq.job import JobStatus
from pyfunq.results import decode_result

_ENDS: dict[JobStatus, type[JobFailed]] = {
    JobStatus.FAILED: JobFailed,
    JobStatus.CANCELLED: JobCancelled,
    JobStatus.EXPIRED: JobExpired,
    JobStatus.DEAD: JobDead,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPart:
    """One job's share of a batch's results: `result` has `rows` rows, or `error` says why there is none."""

    index: int
    rows: int
    result: Any
    error: JobFailed | None


def _failure(what: str, stored: StoredResult) -> JobFailed:
    reason = f": {stored.error.message}" if stored.error else ""
    return _ENDS[stored.status](
        f"{what} {stored.status}{reason}", error_code=stored.error.code if stored.error else None
    )


def decoded(what: str, stored: StoredResult) -> Any:
    if stored.status is not JobStatus.SUCCEEDED:
        raise _failure(what, stored)
    if stored.format is None or stored.payload is None:
        raise JobFailed(f"{what} succeeded, but its result is no longer kept")
    return decode_result(stored.format, stored.payload)


def batch_part(batch_id: UUID, index: int, rows: int, stored: StoredResult) -> BatchPart:
    what = f"job {index} of batch {batch_id}"
    if not stored.status.is_final:
        return BatchPart(index=index, rows=rows, result=None, error=JobFailed(f"{what} is still {stored.status}"))
    if stored.status is not JobStatus.SUCCEEDED:
        return BatchPart(index=index, rows=rows, result=None, error=_failure(what, stored))
    return BatchPart(index=index, rows=rows, result=decoded(what, stored), error=None)
