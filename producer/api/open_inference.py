"""The Open Inference Protocol, version 2: what callers of KServe, Triton and MLServer send, through the queue."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from producer.api.bodies import JSON, json_body
from producer.api.callers import Caller
from producer.api.inference_schemas import (
    InferenceError,
    InferenceRequest,
    InferenceResponse,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
)
from producer.api.known_models import input_specs
from producer.api.model_names import is_among, parsed, uri_of
from producer.api.models import answer
from producer.api.problems import Problem
from producer.api.results import as_json
from producer.api.service import Service
from producer.api.state import caller_of, service_of
from producer.api.tensors import Tensor, input_of, metadata_of, outputs_of, place_of, tensors_of
from producer.api.waited import place_of as place_of_job
from producer.api.waited import predicted
from pyfunq import __version__
from pyfunq.api_keys import Scope
from pyfunq.errors import InvalidInput, ModelNotFound, PyFunQError

_NOT_PARAMS = frozenset({"content_type", "binary_data_output", "classification", "priority", "timeout"})
_NOT_PARAMS |= {"sequence_id", "sequence_start", "sequence_end"}
"""Parameters of the protocol and its servers; the others are the model's."""


class _ProtocolRoute(APIRoute):
    """Errors in the protocol's shape, and 400 for whatever the request is not."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except Problem as exc:
                return _error(exc)
            except RequestValidationError:
                return _error(Problem(400, "the path or the query is not as the protocol says"))
            except PyFunQError as exc:
                return _error(Problem.of(exc))

        return handled


def _error(problem: Problem) -> Response:
    where = "".join(f" (at {one['pointer']})" for one in problem.errors[:1])
    status = 400 if problem.status == 422 else problem.status
    return Response(orjson.dumps({"error": problem.detail + where}), status, headers=problem.headers, media_type=JSON)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    words = {
        400: "Not what the model or the protocol takes",
        401: "No valid API key",
        403: "The API key may not do this",
        404: "No such model",
        409: "Cancelled",
        413: "Too large",
        415: "Another media type",
        429: "Too many requests",
        502: "The model cannot be loaded, took its process down, or answered what cannot be stored",
        503: "Cannot be done now",
        504: "Not ready in time; `Location` says where to ask for the job",
    }
    return {status: {"model": InferenceError, "description": words[status]} for status in statuses}


router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=_ProtocolRoute)

_MODEL_ERRORS = _errors(400, 401, 403, 404, 429, 503)
_INFER: dict[str, Any] = {
    "response_model": InferenceResponse,
    "responses": _errors(400, 401, 403, 404, 409, 413, 415, 429, 502, 503, 504),
    "openapi_extra": {
        "requestBody": {"required": True, "content": {JSON: {"schema": InferenceRequest.model_json_schema()}}}
    },
}


@router.get("", response_model=ServerMetadata)
async def server() -> Response:
    """What this server is."""
    return answer({"name": "pyfunq", "version": __version__, "extensions": []})


@router.get("/health/live", response_model=Live)
async def live() -> Response:
    """Whether this process answers."""
    return answer({"live": True})


@router.get("/health/ready", response_model=Ready, responses=_errors(503))
async def ready(request: Request) -> Response:
    """Whether it can accept requests."""
    await service_of(request).ping()
    return answer({"ready": True})


@router.get("/models/{model}", response_model=ModelMetadata, responses=_MODEL_ERRORS)
async def model_metadata(request: Request, model: str) -> Response:
    """What the latest version of a model takes; `model` is a name, or `name@alias`."""
    return await _metadata(request, model, None)


@router.get("/models/{model}/versions/{version}", response_model=ModelMetadata, responses=_MODEL_ERRORS)
async def version_metadata(request: Request, model: str, version: str) -> Response:
    """What a version takes; also a stage."""
    return await _metadata(request, model, version)


@router.get("/models/{model}/ready", response_model=ModelReady, responses=_MODEL_ERRORS)
async def model_ready(request: Request, model: str) -> Response:
    """Whether requests for the latest version are taken: it is loaded, or there is nothing known against loading it."""
    return await _ready(request, model, None)


@router.get("/models/{model}/versions/{version}/ready", response_model=ModelReady, responses=_MODEL_ERRORS)
async def version_ready(request: Request, model: str, version: str) -> Response:
    """Likewise for a version."""
    return await _ready(request, model, version)


@router.post("/models/{model}/infer", **_INFER)
async def infer(request: Request, model: str) -> Response:
    """Predict with the latest version of a model, and wait for the predictions."""
    return await _infer(request, model, None)


@router.post("/models/{model}/versions/{version}/infer", **_INFER)
async def infer_version(request: Request, model: str, version: str) -> Response:
    """Predict with a version of a model, and wait for the predictions."""
    return await _infer(request, model, version)


async def _metadata(request: Request, model: str, version: str | None) -> Response:
    caller, service = await caller_of(request, Scope.READ), service_of(request)
    uri = uri_of(model, version)
    _, text = await service.signature(caller, uri)
    versions = await _versions(service, caller, uri)
    document = {"name": model, "versions": versions, "platform": "mlflow_pyfunc"}
    return answer({**document, "inputs": metadata_of(input_specs(text) or ()), "outputs": []})


async def _versions(service: Service, caller: Caller, uri: str) -> list[str]:
    name = parsed(uri).name
    if name is None:
        raise ModelNotFound("only registered models are served here")
    patterns = caller.key.models if caller.key else ()
    known = await service.known_models.versions(name)
    return [v.version for v in known if is_among(f"models:/{name}/{v.version}", patterns)]


async def _ready(request: Request, model: str, version: str | None) -> Response:
    caller, service = await caller_of(request, Scope.READ), service_of(request)
    uri = uri_of(model, version)
    await service.signature(caller, uri)
    seen = await service.known_models.for_caller(caller)
    canonical = str(parsed(uri))
    fails = any(f.model_uri == canonical for f in seen.failures)
    if fails and not any(s.model_uri == canonical for s in seen.serving):
        raise Problem(503, "no process can load this model", headers={"Retry-After": "5"})
    return answer({"name": model, "ready": True})


async def _infer(request: Request, model: str, version: str | None) -> Response:
    caller, service = await caller_of(request, Scope.SUBMIT), service_of(request)
    if request.headers.get("inference-header-content-length") is not None:
        raise Problem(415, "the binary extension is not supported: send JSON")
    uri = uri_of(model, version)
    signature, text = await service.signature(caller, uri)
    # Triton's client names no media type.
    asked = await json_body(request, service.most_body_bytes, nan_as_null=True, may_be_untyped=True)
    request_id = asked.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise Problem(400, "id must be a text")
    tensors: list[Tensor] = []
    try:
        parameters = _object(asked.get("parameters"), "parameters")
        wanted = _wanted(asked.get("outputs"))
        tensors = tensors_of(asked.get("inputs"))
        inputs = input_of(tensors, signature, input_specs(text), str(parameters.get("content_type")))
        params = {name: value for name, value in parameters.items() if name not in _NOT_PARAMS}
        job, stored = await predicted(request, caller, uri, inputs, params)
    except InvalidInput as exc:
        pointer = place_of(exc.field, tensors, exc.row) if exc.field else None
        raise Problem.of(exc, pointer=pointer) from exc
    outputs = _chosen(outputs_of(orjson.loads(await as_json(f"job {job.id}", stored))), wanted)
    document = {
        "model_name": model,
        "model_version": job.model_version or version,
        "id": request_id or str(job.id),
        "outputs": outputs,
    }
    return Response(orjson.dumps(document), headers=place_of_job(job), media_type=JSON)


def _object(value: Any, field: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(f"{field} must be an object", field=field)
    return value or {}


def _wanted(outputs: Any) -> list[str]:
    """The names of the outputs that are asked for; none: all."""
    if outputs is None:
        return []
    if not isinstance(outputs, list) or not all(
        isinstance(o, dict) and isinstance(o.get("name"), str) for o in outputs
    ):
        raise InvalidInput("outputs must be a list of objects with a name", field="outputs")
    return [output["name"] for output in outputs]


def _chosen(outputs: list[dict[str, Any]], wanted: list[str]) -> list[dict[str, Any]]:
    if not wanted:
        return outputs
    if len(outputs) == len(wanted) == 1:  # whatever it was called by the server before
        return [{**outputs[0], "name": wanted[0]}]
    by_name = {output["name"]: output for output in outputs}
    if missing := [name for name in wanted if name not in by_name]:
        raise Problem(400, f"the model has no output {missing[0][:80]!r}; it has {', '.join(by_name)[:200]}")
    return [by_name[name] for name in wanted]
