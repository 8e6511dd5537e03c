"""Jobs as they were when they were submitted: made from what went into the ledger, without asking it."""

from collections.abc import Sequence
from typing import overload
from uuid import UUID

import orjson

from pyfunq.entries import NewJob
from pyfunq.errors import UnknownJob
from pyfunq.ids import id_time
from pyfunq.inputs import EncodedInput
from pyfunq.job import Job, JobStatus, job_of
from pyfunq.lanes import lane_of


class SubmittedJobs(Sequence[Job]):
    """The jobs of one submit, each made when it is looked at: who submits many may not look at any.

    They are alike but for ids and rows. Their inputs are not kept: a producer may keep millions of jobs to wait for.
    """

    def __init__(self, jobs: Sequence[NewJob]) -> None:
        self._like = jobs[0]._replace(input=_NO_INPUT, request=b"") if jobs else None
        self._ids = [job.id for job in jobs]
        self._rows = [job.input.rows for job in jobs]

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | Sequence[Job]:
        if isinstance(index, slice):
            part = SubmittedJobs(())
            part._like, part._ids, part._rows = self._like, self._ids[index], self._rows[index]
            return part
        if self._like is None:
            raise IndexError(index)
        rows = self._like.input._replace(rows=self._rows[index])
        return as_job(self._like._replace(id=self._ids[index], input=rows))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


_NO_INPUT = EncodedInput("split", b"", None, 0)


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
