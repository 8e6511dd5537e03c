"""New jobs as rows of the tables `job` and `job_input`, and by which statement they get there."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from pyfunq.entries import NewJob

_JOB = (
    *("id", "page_id", "batch_id", "batch_index", "queue", "model_uri", "rows", "max_attempts"),
    *("retries", "timeout_seconds", "expires_at", "input_format", "input_bytes", "tenant_id"),
)
_INPUT = ("id", "input", "params")

_Placed = Sequence[tuple[UUID, NewJob]]
"""(page id, job)"""


def submission(jobs: _Placed) -> tuple[str, list[Any]]:
    """The name of the statement that accepts these jobs, of which there is at least one, and its arguments."""
    if any(job.batch_id for _, job in jobs):
        return "submit_chunks", _by_column(jobs)
    alike = {
        (
            *(job.queue, job.model_uri, job.max_attempts, job.retries, job.timeout_seconds, job.expires_at),
            *(job.input.format, job.input.params, job.tenant_id),
        )
        for _, job in jobs
    }
    if len(alike) > 1:
        return "submit", _by_column(jobs)
    inputs = [job.input for _, job in jobs]
    payloads = [encoded.payload for encoded in inputs]
    pages, ids = [page for page, _ in jobs], [job.id for _, job in jobs]
    return "submit_alike", [ids, pages, [e.rows for e in inputs], [*map(len, payloads)], payloads, *alike.pop()]


def copies(jobs: _Placed) -> list[tuple[str, Sequence[str], list[tuple[Any, ...]]]]:
    """(table, columns, records) of what to copy, in this order, which is also that of the statements."""
    return [("job", _JOB, _job_rows(jobs)), ("job_input", _INPUT, _input_rows(jobs))]


def _by_column(jobs: _Placed) -> list[list[Any]]:
    _, inputs, params = zip(*_input_rows(jobs), strict=True)
    return [*(list(column) for column in zip(*_job_rows(jobs), strict=True)), list(inputs), list(params)]


def _job_rows(jobs: _Placed) -> list[tuple[Any, ...]]:
    return [
        (
            *(j.id, page, j.batch_id, j.batch_index, j.queue, j.model_uri, j.input.rows, j.max_attempts),
            *(j.retries, j.timeout_seconds, j.expires_at, j.input.format, len(j.input.payload), j.tenant_id),
        )
        for page, j in jobs
    ]


def _input_rows(jobs: _Placed) -> list[tuple[Any, ...]]:
    return [(j.id, j.input.payload, j.input.params) for _, j in jobs]
