"""The words of a job's life: its statuses, the legal transitions, and the job and batch as callers see them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    import pandas as pd

STOPPED = "submission_stopped"
"""The error code of a batch whose submission stopped and can be resumed."""
GONE_SECONDS = 60.0
"""A producer that was silent for this long is taken to be gone."""
FramesOf = Callable[[UUID, "Callable[[Any], None] | None"], "Iterator[pd.DataFrame]"]


class JobStatus(StrEnum):
    """Where a job is. Each member says what becomes of such a job when a process crashes."""

    QUEUED = "queued"
    """Committed, waiting for a worker. After any crash it is still there; rescue publishes it again."""
    RUNNING = "running"
    """Claimed by a worker. If its process dies, rescue puts it back to `queued`, or at last to `dead`."""
    SUCCEEDED = "succeeded"
    """Its result is committed. Final."""
    FAILED = "failed"
    """Its own fault (input, model) or a permanent error; the error is committed. Final."""
    CANCELLED = "cancelled"
    """The caller withdrew it; a result that arrives later is not committed. Final."""
    EXPIRED = "expired"
    """Its deadline passed before a worker took it; it was never predicted. Final."""
    DEAD = "dead"
    """It ran out of attempts: it cost processes their lives, or time ran out. Final; kept for a replay."""

    @property
    def is_final(self) -> bool:
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


STATUSES = {str(status): status for status in JobStatus}
"""By their names in the ledger: as `JobStatus(name)`, in a tenth of the time."""
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.EXPIRED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.QUEUED, JobStatus.DEAD}
    ),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.EXPIRED: frozenset(),
    JobStatus.DEAD: frozenset(),
}


class Lane(StrEnum):
    """A Redis queue. A worker that takes both serves `interactive` first."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job did not succeed: a stable code (see `pyfunq.errors`) and a text without input values."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One prediction request as the ledger knows it. Times are aware and in UTC."""

    id: UUID
    status: JobStatus
    model_uri: str
    lane: str
    rows: int
    attempt: int
    """How often it was claimed."""
    max_attempts: int
    """How many worker processes it may cost, by crash or by its time limit, before it is `dead`."""
    created_at: datetime
    crashes: int = 0
    """How many it has cost."""
    retries: int = 0
    """How often it is tried again when it fails."""
    failures: int = 0
    """How often it failed and was tried again."""
    timeout_seconds: float | None = None
    """Its own limit; None: the model's (tag `pyfunq.timeout`), else the worker's."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    model_name: str | None = None
    model_version: str | None = None
    run_id: str | None = None
    experiment_id: str | None = None
    worker: str | None = None
    batch_id: UUID | None = None
    error: JobError | None = None
    tenant: str | None = None
    """Whose it is: that of the API key that it came with; None: it came without one."""
    metadata: Mapping[str, Any] | None = None
    """What its caller wanted to find with it again."""

    @property
    def is_final(self) -> bool:
        return self.status.is_final


# What cannot be changed sets its fields by a call each, which for a job takes three times as long.
_Unfrozen = make_dataclass(
    "_Unfrozen",
    [(f.name, f.type, field(default=f.default)) for f in fields(Job)],
    slots=True,
    kw_only=True,
)


def job_of(**values: Any) -> Job:
    """`Job(**values)`, in less time."""
    job = _Unfrozen(**values)
    job.__class__ = Job
    return job  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A backlog: many jobs under one id, each with a slice of its rows. Counts are of jobs, `rows` of rows."""

    id: UUID
    model_uri: str
    created_at: datetime
    submitted_at: datetime | None
    """When its last job was committed; None while it is being submitted."""
    error: JobError | None
    """Why submitting it stopped early: see `is_stopped`; otherwise its queued jobs were cancelled then."""
    jobs: int
    rows: int
    rows_finished: int
    counts: dict[JobStatus, int]
    source: str = ""
    """The name of the file that it is from, or the kind of object."""
    source_rows: int | None = None
    """How many it is to have; None where that is not known."""
    is_resumable: bool = False
    """Whether submitting can go on where it stopped: it is from a file that is known."""
    silent_seconds: float = 0.0
    """How long ago its producer was heard, while it is being submitted."""
    _frames: FramesOf | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> int:
        return sum(n for status, n in self.counts.items() if status.is_final)

    @property
    def is_stopped(self) -> bool:
        """Submitting it stopped before its end. What was accepted goes on; `resume` submits the rest."""
        stopped = self.error is not None and self.error.code == STOPPED
        return self.submitted_at is None and (stopped or (self.error is None and self.silent_seconds > GONE_SECONDS))

    @property
    def is_final(self) -> bool:
        ended = self.submitted_at is not None or (self.error is not None and not self.is_stopped)
        return ended and self.finished == self.jobs

    def results(self, *, on_missing: Callable[[Any], None] | None = None) -> "Iterator[pd.DataFrame]":
        """The predictions as DataFrames in input order, a job's at a time; for batches that a `Client` returned.

        See `AsyncClient.batch_frames`.
        """
        if self._frames is None:
            raise TypeError("only a batch that a Client returned has results(); see AsyncClient.batch_frames")
        return self._frames(self.id, on_missing)
