"""Jobs and batches as the API shows them: plain values for JSON."""

from datetime import datetime
from typing import Any

from pyfunq import errors
from pyfunq.job import Batch, Job, JobError, JobStatus

JOBS, BATCHES = "/v1/jobs", "/v1/batches"


def job_view(job: Job) -> dict[str, Any]:
    """See `schemas.JobView`."""
    place = f"{JOBS}/{job.id}"
    return {
        "id": str(job.id),
        "status": str(job.status),
        "model": job.model_uri,
        "model_name": job.model_name,
        "model_version": job.model_version,
        "run_id": job.run_id,
        "experiment_id": job.experiment_id,
        "lane": job.lane,
        "rows": job.rows,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "crashes": job.crashes,
        "retries": job.retries,
        "failures": job.failures,
        "timeout": job.timeout_seconds,
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
        "expires_at": _time(job.expires_at),
        "batch_id": None if job.batch_id is None else str(job.batch_id),
        "tenant": job.tenant,
        "metadata": job.metadata,
        "error": error_view(job.error),
        "links": {"self": place, "result": f"{place}/result", "cancel": f"{place}/cancel", "events": f"{place}/events"},
    }


def batch_view(batch: Batch) -> dict[str, Any]:
    """See `schemas.BatchView`."""
    place = f"{BATCHES}/{batch.id}"
    return {
        "id": str(batch.id),
        "status": batch_status(batch),
        "model": batch.model_uri,
        "source": batch.source,
        "jobs": batch.jobs,
        "rows": batch.rows,
        "rows_finished": batch.rows_finished,
        "rows_expected": batch.source_rows,
        "counts": {str(status): batch.counts.get(status, 0) for status in JobStatus},
        "created_at": _time(batch.created_at),
        "submitted_at": _time(batch.submitted_at),
        "error": error_view(batch.error),
        "links": {
            "self": place,
            "results": f"{place}/results",
            "errors": f"{place}/errors",
            "cancel": f"{place}/cancel",
            "retry": f"{place}/retry-failed",
            "events": f"{place}/events",
        },
    }


def batch_status(batch: Batch) -> str:
    """One word for a batch: of one that ended without a single success, `failed`."""
    if batch.is_stopped:
        return "stopped"
    if not batch.is_final:
        return "running" if batch.submitted_at else "submitting"
    if batch.error is not None:
        return "failed" if batch.error.code != "job_cancelled" else "cancelled"
    if batch.counts.get(JobStatus.SUCCEEDED, 0) == batch.jobs:
        return "succeeded"
    if batch.counts.get(JobStatus.CANCELLED, 0) == batch.jobs:
        return "cancelled"
    return "partly_succeeded" if batch.counts.get(JobStatus.SUCCEEDED) else "failed"


def error_view(error: JobError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "retryable": is_retryable(error.code)}


def is_retryable(code: str) -> bool:
    """Whether a job that ended with this error can succeed when it is asked for again."""
    return code in _RETRYABLE


def _codes(kind: type[errors.PyFunQError]) -> set[str]:
    own = {kind.code} if kind.retryable else set()
    return own.union(*map(_codes, kind.__subclasses__()))


_RETRYABLE = frozenset(_codes(errors.PyFunQError))


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
