"""Batches, and jobs, as the API shows them: plain values for JSON."""

from typing import Any

from pyfunq.job import Batch, JobStatus
from pyfunq.job_view import JOBS as JOBS
from pyfunq.job_view import error_view as error_view
from pyfunq.job_view import is_retryable as is_retryable
from pyfunq.job_view import job_view as job_view
from pyfunq.job_view import time_view

BATCHES = "/v1/batches"


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
        "created_at": time_view(batch.created_at),
        "submitted_at": time_view(batch.submitted_at),
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
