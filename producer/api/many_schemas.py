"""The documents of many jobs at once, as OpenAPI describes them."""

from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from producer.api.schemas import JobView


class SubmittedMany(BaseModel):
    """Jobs in the order of their inputs."""

    ids: list[UUID]
    rows: list[int]
    common: dict[str, Any] = Field(description="The fields of a job that all of them have alike.")


class WatchedJobs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ids: list[UUID] = Field(min_length=1, max_length=5_000)


class FinalJobs(BaseModel):
    data: list[JobView]


class BatchParts(BaseModel):
    """A job's share of the results each: `predictions` as JSON, or `arrow`, an Arrow IPC stream in base64."""

    data: list[dict[str, Any]]
    next: int | None = Field(description="`start` of the next page; null on the last one.")
