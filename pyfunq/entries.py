"""What goes into the ledger and what comes out of it: jobs on their way, claims, outcomes, pages, model versions."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from pyfunq.errors import InvalidInput
from pyfunq.inputs import EncodedInput, encode_input
from pyfunq.job import JobError, JobStatus, Lane


class NewJob(NamedTuple):
    """A validated job on its way into the ledger."""

    id: UUID
    model_uri: str
    input: EncodedInput
    queue: str
    max_attempts: int
    expires_at: datetime | None = None
    batch_id: UUID | None = None
    batch_index: int | None = None
    page_id: UUID | None = None
    """The page that it shares with others of its batch; None: whoever submits it decides."""
    timeout_seconds: float | None = None
    retries: int = 0
    idempotency_key: str | None = None
    request: bytes = b""
    """With an idempotency key: the digest of what was asked (`request_digest`)."""
    tenant_id: int = 0
    """Whose it is; 0: of a program that has the database's address."""
    metadata: str | None = None
    """A JSON object that its caller wants to find with it again."""
    webhook: str | None = None
    """The URL that is told of its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Jobs of one model and queue that share a message; the message carries the page's id."""

    id: UUID
    model_uri: str
    queue: str
    jobs: int
    first: bool = False
    """Whether it goes before what waits in the lane."""


class ClaimedJob(NamedTuple):
    """A job that this worker process may predict; `attempt` is the fence that its result must pass."""

    id: UUID
    attempt: int
    model_uri: str
    queue: str
    rows: int
    input_format: str
    input: Any
    """The payload as bytes; in a worker, which reads Arrow and references once, the table that it is or names."""
    params: bytes | None
    version_id: int | None
    """What its model URI stood for when it was claimed; None if nobody has resolved the URI yet."""
    confidence: bool
    crashes: int = 0
    """How many processes it has cost before."""
    delayed: bool = False
    """Whether it has waited for something that was away."""
    retries: int = 0
    failures: int = 0
    timeout_seconds: float | None = None
    """The job's own limit, else the model's; None if neither has one."""
    max_rows: int | None = None
    """How many rows a call of the model may have, where its tags or the time that calls take say."""
    good_version_id: int | None = None
    """The last version that any process made ready for its model URI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One exact version of a registered model; `id` is the ledger's own, 0 while the ledger does not know it."""

    id: int = 0
    name: str
    version: str
    created_ms: int
    source: str
    run_id: str | None
    experiment_id: str | None
    signature: str | None = None

    @property
    def identity(self) -> tuple[str, str, int, str]:
        """Equal for the same model files: a name that was deleted and registered again is another model."""
        return (self.name, self.version, self.created_ms, self.source)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model URI stands for: the registry's version, and the last one that any process made ready."""

    version: ModelVersion
    good: ModelVersion | None = None

    def in_turn(self) -> list[ModelVersion]:
        """What to begin with where nothing serves yet: a new version is first made ready behind the good one."""
        if self.good is None or self.good.identity == self.version.identity:
            return [self.version]
        return [self.good, self.version]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the ledger says of a model URI; `wanted` is None where nobody has resolved it, or it is gone."""

    model_uri: str
    wanted: tuple[int, int | None] | None
    """As ids of versions."""
    warm_at: datetime | None = None
    """When an operator asked for it to be in memory, if that is news."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTags:
    """How the jobs of a model URI are predicted: what the registered model's tags say, else the settings."""

    confidence: bool = False
    timeout_seconds: float | None = None
    max_rows: int | None = None
    queue: str | None = None
    """A queue of the model's own; None: everybody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What a model URI stands for."""

    model_uri: str
    version: ModelVersion
    tags: ModelTags
    resolved_at: datetime | None = None
    checked_at: datetime | None = None
    updated_ms: int | None = None
    """When the registered model had last been changed, as the registry said with the version; None: not known."""
    call_rows: int | None = None
    """How many rows a call may have so that it does not take long; None: nobody has measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a worker process serves a model URI with."""

    hostname: str
    pid: int
    model_uri: str
    name: str
    version: str
    since: datetime
    size_bytes: int
    """Of memory."""
    load_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailure:
    """A version that a worker process could not load; what served the URI before still does."""

    hostname: str
    pid: int
    model_uri: str
    name: str
    version: str
    reason: str | None
    """None: it is being tried just now, or its process ended while it was."""
    tries: int
    failed_at: datetime
    next_try_at: datetime


class Outcome(NamedTuple):
    """How one claimed job ended."""

    job: ClaimedJob
    status: JobStatus
    version_id: int | None = None
    result_format: str | None = None
    result: bytes | None = None
    confidence: Sequence[float] | None = None
    error: JobError | None = None


class StoredResult(NamedTuple):
    """A job's end as stored; `format` and `payload` are set when it succeeded."""

    status: JobStatus
    format: str | None
    payload: bytes | None
    error: JobError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """What became of a job that lost its process: queued again, on a page that must be published, or dead."""

    status: JobStatus
    crashes: int
    page_id: UUID

    @property
    def goes_first(self) -> bool:
        """The first time it was probably another job's fault; what has died twice waits its turn. As in `repage`."""
        return self.crashes == 1


Keys = dict[str, tuple[bytes, UUID]]
"""What idempotency keys stand for: the request's digest, and the job."""


def request_digest(
    model_uri: str, lane: Lane, inputs: Any, params: Mapping[str, Any] | None, encoded: EncodedInput
) -> bytes:
    """What must be equal for two submits to be the same request: model URI, lane, input and params, as they were given.

    How an input is encoded depends on the model's signature, which may become known, or another, between two submits;
    so what counts is its encoding without one, or `encoded` where a signature is needed to understand it.
    """
    with suppress(InvalidInput):
        encoded = encode_input(inputs, params, signature=None, max_bytes=sys.maxsize)
    parts = (model_uri, str(lane), encoded.format)
    digest = hashlib.sha256()
    for part in (*(part.encode() for part in parts), encoded.payload, encoded.params or b""):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def not_needed(jobs: Sequence[tuple[UUID, NewJob]], keys: Keys) -> dict[UUID, UUID | None]:
    """Jobs whose key stands for another: for that one's id, or for None where it is of another request."""
    others: dict[UUID, UUID | None] = {}
    for _, job in jobs:
        if job.idempotency_key:
            digest, owner = keys.get(job.idempotency_key, (job.request, job.id))
            if owner != job.id:
                others[job.id] = owner if digest == job.request else None
    return others
