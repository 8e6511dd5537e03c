"""The documents of the Open Inference Protocol, as OpenAPI describes them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from producer.api.tensors import DATATYPES


class _Document(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class InferenceError(_Document):
    error: str


class Live(_Document):
    live: bool


class Ready(_Document):
    ready: bool


class ModelReady(_Document):
    name: str
    ready: bool


class ServerMetadata(_Document):
    name: str
    version: str
    extensions: list[str]


class MetadataTensor(_Document):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 stands for any size.")


class ModelMetadata(_Document):
    name: str
    versions: list[str] = Field(description="Those that were asked for lately.")
    platform: str
    inputs: list[MetadataTensor] = Field(description="Empty until a worker has loaded it.")
    outputs: list[MetadataTensor]


class RequestInput(_Document):
    name: str = Field(min_length=1, description="A column of the model, or a tensor.")
    shape: list[int] = Field(min_length=1, max_length=32)
    datatype: str = Field(json_schema_extra={"enum": list(DATATYPES)})
    parameters: dict[str, Any] | None = None
    data: list[Any] = Field(description="Row-major, flat or nested; texts and base64 are BYTES.")


class RequestOutput(_Document):
    name: str
    parameters: dict[str, Any] | None = None


class InferenceRequest(_Document):
    id: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="Those of the model; `content_type`: `pd` or `np` where the model has no signature."
    )
    inputs: list[RequestInput] = Field(min_length=1)
    outputs: list[RequestOutput] | None = None


class ResponseOutput(_Document):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferenceResponse(_Document):
    model_name: str
    model_version: str | None
    id: str
    outputs: list[ResponseOutput]
