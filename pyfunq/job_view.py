"""A job as the API and its webhooks show it: plain values for JSON."""

from datetime import datetime
from typing import Any

from pyfunq import errors
from pyfunq.job import Job, JobError

JOBS = "/v1/jobs"


def job_view(job: Job) -> dict[str, Any]:
    """Without its inputs and results; the API's `schemas.JobView` describes it."""
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
        "created_at": time_view(job.created_at),
        "started_at": time_view(job.started_at),
        "finished_at": time_view(job.finished_at),
        "expires_at": time_view(job.expires_at),
        "batch_id": None if job.batch_id is None else str(job.batch_id),
        "tenant": job.tenant,
        "metadata": job.metadata,
        "error": error_view(job.error),
        "links": {"self": place, "result": f"{place}/result", "cancel": f"{place}/cancel", "events": f"{place}/events"},
    }


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


def time_view(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
