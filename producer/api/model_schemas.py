"""The documents about models, as OpenAPI describes them."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field


class ColumnView(BaseModel):
    name: str | None = Field(description="null where columns are told apart by position, and of a nameless tensor.")
    type: str = Field(description="MLflow's word, such as `double`; of a tensor also its shape.")
    required: bool


class ModelUriView(BaseModel):
    uri: str
    version: str
    since: datetime | None
    confirmed: datetime | None = Field(description="When the registry last said so.")


class ModelSummary(BaseModel):
    name: str
    uris: list[ModelUriView] = Field(description="The URIs in use, and what they stand for.")
    serving_processes: int
    failing: bool = Field(description="Whether a process lately could not load a version.")


class ModelList(BaseModel):
    data: list[ModelSummary]


class ModelVersionView(BaseModel):
    version: str
    created_ms: int
    run_id: str | None
    inputs: list[ColumnView] | None = Field(description="null until a worker has loaded it.")


class SignatureView(BaseModel):
    version: str
    inputs: list[ColumnView]


class ServingView(BaseModel):
    uri: str
    version: str
    since: datetime
    process: str | None = Field(default=None, description="To operators only.")
    size_bytes: int | None = None
    load_seconds: float | None = None


class FailureView(BaseModel):
    uri: str
    version: str
    tries: int
    failed_at: datetime
    next_try_at: datetime
    process: str | None = Field(default=None, description="To operators only.")
    reason: str | None = None


class ModelDetails(ModelSummary):
    versions: list[ModelVersionView] = Field(description="Those that were asked for, newest first.")
    signature: SignatureView | None = Field(description="Of the newest version that a worker has loaded.")
    example: dict[str, Any] | None = Field(description="A body of `POST /v1/jobs` that runs as it stands.")
    serving: list[ServingView]
    failures: list[FailureView]


class Requested(BaseModel):
    status: str
