"""Jobs as they were when they were submitted: made from what went into the ledger, without asking it."""

from collections.abc import Sequence
from typing import overload
from uuid import UUID

import orjson

from pyfunq.entries import NewJob
from pyfunq.errors import UnknownJob
from pyfunq.ids import id_time
from pyfunq.job import Job, JobStatus, job_of
from pyfunq.lanes import lane_of


class SubmittedJobs(Sequence[Job]):
    """Jobs as they were submitted, each made when it is looked at: who submits many may not look at any."""

    def __init__(self, jobs: Sequence[NewJob]) -> None:
        self._jobs = jobs

    def __len__(self) -> int:
        return len(self._jobs)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | Sequence[Job]:
        found = self._jobs[index]
        return SubmittedJobs(found) if isinstance(index, slice) else as_job(found)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


def as_job(job: NewJob, tenant: str | None = None) -> Job:
    return job_of(
        id=job.id,
        status=JobStatus.QUEUED,
        model_uri=job.model_uri,
        lane=lane_of(job.queue),
        rows=job.input.rows,
        attempt=0,
        max_attempts=job.max_attempts,
        created_at=id_time(job.id),
        expires_at=job.expires_at,
        timeout_seconds=job.timeout_seconds,
        retries=job.retries,
        batch_id=job.batch_id,
        tenant=tenant,
        metadata=None if job.metadata is None else orjson.loads(job.metadata),
    )


def job_id_of(job: Job | UUID | str) -> UUID:
    """Raises UnknownJob."""
    if isinstance(job, str):
        try:
            return UUID(job)
        except ValueError:
            raise UnknownJob(f"{job[:80]!r} is not a job id") from None
    return job.id if isinstance(job, Job) else job
