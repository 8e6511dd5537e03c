"""The API's documents, as OpenAPI describes them; what comes in is checked by PyFunQ itself, not by these."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from pyfunq.job import JobStatus, Lane
from pyfunq.webhooks import WebhookStatus


class _Document(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class ProblemDocument(_Document):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="Stable; what programs go by.")
    retryable: bool = Field(description="Whether the same request can succeed later.")
    errors: list[dict[str, str]] = Field(default=[], description="`pointer` into the body (RFC 6901), and `detail`.")


class WebhookRequest(_Document):
    """Whom to tell of the job's end."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=2000, description="https://, at a public address.")
    events: list[Literal["final"]] = Field(default=["final"], description="`final`: its end, whatever that is.")


class JobRequest(_Document):
    """Exactly one of `dataframe_split`, `dataframe_records`, `instances` and `inputs`, as MLflow defines them."""

    model_config = ConfigDict(protected_namespaces=(), extra="forbid")

    model: str = Field(description="A registered model's name, or a URI such as `models:/iris@champion`.")
    version: int | None = Field(default=None, ge=1, description="Beside a bare name; without any, the latest version.")
    alias: str | None = None
    stage: str | None = None
    dataframe_split: dict[str, Any] | None = None
    dataframe_records: list[dict[str, Any]] | None = None
    instances: list[Any] | None = None
    inputs: Any | None = None
    params: dict[str, Any] | None = None
    lane: Lane = Lane.INTERACTIVE
    expires_in: float | None = Field(default=None, gt=0, description="Seconds after which it need not be predicted.")
    timeout: float | None = Field(default=None, gt=0, description="Seconds that predicting it may take.")
    retries: int = Field(default=0, ge=0, le=20, description="How often it is tried again when it fails.")
    metadata: dict[str, Any] | None = Field(default=None, description="At most 16 KB; comes back with the job.")
    webhook: WebhookRequest | None = Field(default=None, description="Told of the job's end, signed.")


class ScoringRequest(_Document):
    """Exactly one of `dataframe_split`, `dataframe_records`, `instances` and `inputs`, as MLflow defines them."""

    model_config = ConfigDict(protected_namespaces=(), extra="forbid")

    dataframe_split: dict[str, Any] | None = None
    dataframe_records: list[dict[str, Any]] | None = None
    instances: list[Any] | None = None
    inputs: Any | None = None
    params: dict[str, Any] | None = None


class JobErrorView(_Document):
    code: str
    message: str
    retryable: bool


class JobView(_Document):
    id: UUID
    status: JobStatus
    model: str
    model_name: str | None
    model_version: str | None = Field(description="The version that predicted it.")
    run_id: str | None = Field(default=None, description="MLflow's, of that version.")
    experiment_id: str | None = None
    lane: str
    rows: int
    attempt: int
    max_attempts: int
    crashes: int = Field(default=0, description="How many worker processes it has cost.")
    retries: int
    failures: int
    timeout: float | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    batch_id: UUID | None
    tenant: str | None = Field(default=None, description="Whose it is: that of the API key it came with.")
    metadata: dict[str, Any] | None
    error: JobErrorView | None
    links: dict[str, str]
    predictions: Any = Field(default=None, description="Where it was waited for, and succeeded.")


class DeliveryView(_Document):
    event: str
    attempt: int
    at: datetime
    status_code: int | None
    error: str | None = Field(description="A word for what went wrong; null: it was delivered.")
    seconds: float


class WebhookView(_Document):
    url: str
    status: WebhookStatus
    event: str | None = Field(description="Such as `job.succeeded`; null until the job is final.")
    attempts: int
    next_attempt_at: datetime | None
    deliveries: list[DeliveryView]


class JobPage(_Document):
    data: list[JobView]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last one.")


class ResultView(_Document):
    predictions: Any


class BatchView(_Document):
    id: UUID
    status: str = Field(
        description="submitting, stopped, running, succeeded, partly_succeeded, cancelled or failed (no success)."
    )
    model: str
    source: str
    jobs: int
    rows: int
    rows_finished: int
    rows_expected: int | None
    counts: dict[str, int] = Field(description="Jobs by status.")
    created_at: datetime
    submitted_at: datetime | None
    error: JobErrorView | None = Field(description="Why submitting it ended early.")
    links: dict[str, str]


class BatchPage(_Document):
    data: list[BatchView]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last one.")


class RetriedView(_Document):
    retried: int = Field(description="Jobs that are queued again.")
    batch: BatchView
