"""MLflow's scoring protocol: what callers of `mlflow models serve` send, through the queue."""

from importlib import metadata
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from producer.api.bodies import JSON
from producer.api.callers import Caller
from producer.api.jobs import PROBLEMS
from producer.api.model_names import uri_of
from producer.api.pointers import pointer_to
from producer.api.problems import Problem
from producer.api.results import as_json
from producer.api.schemas import ResultView, ScoringRequest
from producer.api.scoring_bodies import CSV, PARQUET, scoring_of
from producer.api.service import Ended
from producer.api.state import caller_of, service_of, state_of
from producer.api.waited import ANSWERS, place_of, predicted
from pyfunq import __version__
from pyfunq.api_keys import Scope
from pyfunq.errors import InvalidInput

router = APIRouter(tags=["MLflow scoring protocol"])

ModelQuery = Annotated[
    str | None,
    Query(max_length=500, description="A name, `iris/3`, `iris@champion` or a URI; else PYFUNQ_API_MODEL."),
]
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": ScoringRequest.model_json_schema()},
            CSV: {"schema": {"type": "string", "description": "With a header."}},
            PARQUET: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


@router.post("/invocations", response_model=ResultView, responses=ANSWERS, openapi_extra=BODY)
async def invocations(request: Request, model: ModelQuery = None) -> Response:
    """Predict, and wait for the predictions."""
    return await score(request, named_model(request, model))


@router.post("/models/{model:path}/invocations", response_model=ResultView, responses=ANSWERS, openapi_extra=BODY)
async def invocations_of(request: Request, model: str) -> Response:
    """Predict with this model: a name, `iris/3`, `iris@champion` or a URI such as `models:/iris/Production`."""
    return await score(request, uri_of(model))


@router.get("/ping", responses={200: _TEXT, 503: PROBLEMS[503]}, response_class=Response)
@router.get("/health", responses={200: _TEXT, 503: PROBLEMS[503]}, response_class=Response)
async def ping(request: Request) -> Response:
    """Whether jobs can be accepted."""
    await service_of(request).ping()
    return Response("\n", media_type="text/plain")


@router.get("/version", responses={200: _TEXT}, response_class=Response)
async def version() -> Response:
    """MLflow's version where it is installed here, else PyFunQ's."""
    return Response(_version(), media_type="text/plain")


def named_model(request: Request, model: str | None) -> str:
    """The model URI that the caller names, or the default. Raises InvalidInput where there is none."""
    named = model or state_of(request).settings.api_model
    if not named:
        raise InvalidInput("name the model: ?model=<name or URI>; there is no default (PYFUNQ_API_MODEL)")
    return uri_of(named)


async def score(request: Request, model: str) -> Response:
    """Raises Problem, and what `Service.accept` raises."""
    caller = await caller_of(request, Scope.SUBMIT)
    job, stored = await _predicted(request, caller, model)
    body = b'{"predictions":%b}' % await as_json(f"job {job.id}", stored)
    return Response(body, headers=place_of(job), media_type=JSON)


async def _predicted(request: Request, caller: Caller, model: str) -> Ended:
    service = service_of(request)
    signature, _ = await service.signature(caller, model)
    body = None
    try:
        asked = await scoring_of(request, signature, service.most_body_bytes, service.most_input_bytes)
        body = asked.body
        return await predicted(request, caller, model, asked.inputs, asked.params)
    except InvalidInput as exc:
        pointer = pointer_to(exc.field, body, exc.row) if exc.field and body is not None else None
        raise Problem.of(exc, pointer=pointer) from exc


def _version() -> str:
    for name in ("mlflow", "mlflow-skinny"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return __version__
