"""Routes of models: what the ledger knows of them."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Request, Response

from producer.api.bodies import JSON
from producer.api.callers import Caller
from producer.api.jobs import PROBLEMS
from producer.api.known_models import details, summary
from producer.api.model_names import is_among
from producer.api.model_schemas import ModelDetails, ModelList
from producer.api.service import Service
from producer.api.state import caller_of, service_of
from pyfunq.api_keys import Scope
from pyfunq.errors import ModelNotFound, RegistryUnavailable

router = APIRouter(prefix="/v1/models", tags=["models"])

ModelName = Annotated[str, Path(min_length=1, max_length=256, description="A registered model's name.")]


@router.get("", response_model=ModelList, responses={s: PROBLEMS[s] for s in (401, 403, 503)})
async def list_models(request: Request) -> Response:
    """The models that were asked for lately, and what their URIs stand for now."""
    service = service_of(request)
    caller = await caller_of(request, Scope.READ)
    seen = await service.known_models.for_caller(caller)
    return answer({"data": [summary(seen, name) for name in seen.names]})


@router.get("/{name}", response_model=ModelDetails, responses={s: PROBLEMS[s] for s in (401, 403, 404, 422, 503)})
async def get_model(request: Request, name: ModelName) -> Response:
    """A model's versions, what it takes with an example, which processes serve it, and what could not be loaded."""
    service = service_of(request)
    caller = await caller_of(request, Scope.READ)
    return answer(await model_details(service, caller, name))


async def model_details(service: Service, caller: Caller, name: str) -> dict[str, Any]:
    """Of a registered model that nobody has asked for yet: empty lists. Raises ModelNotFound, RegistryUnavailable."""
    seen = await service.known_models.for_caller(caller)
    versions = await service.known_models.versions(name) if name.isprintable() else []
    if caller.key is not None:
        meant = {resolution.version.version for resolution in seen.of(name).resolutions}
        patterns = caller.key.models
        versions = [v for v in versions if v.version in meant or is_among(f"models:/{name}/{v.version}", patterns)]
    if not versions:
        await _check_registered(service, caller, name)
    return details(seen, name, versions, caller)


async def _check_registered(service: Service, caller: Caller, name: str) -> None:
    not_there = ModelNotFound(f"there is no registered model {name!r}")
    if caller.key is not None and not is_among(f"models:/{name}/latest", caller.key.models):
        raise not_there
    if not name.isprintable():
        raise not_there
    match await service.registered.knows(name):
        case False:
            raise not_there
        case None:
            raise RegistryUnavailable("nobody has asked for this model yet, and the MLflow server does not answer")


def answer(document: dict[str, Any]) -> Response:
    """Times are ISO 8601 in UTC."""
    return Response(orjson.dumps(document, option=orjson.OPT_UTC_Z), media_type=JSON)
