"""What hand-written services of one model usually offer, as thin aliases: so that PyFunQ can take their place."""

import asyncio

from fastapi import APIRouter, Request, Response

from producer.api.invocations import BODY, ModelQuery, named_model, score
from producer.api.jobs import PROBLEMS
from producer.api.model_names import parsed
from producer.api.model_schemas import ModelDetails, Requested
from producer.api.models import answer, model_details
from producer.api.schemas import ResultView
from producer.api.service import check_model
from producer.api.state import caller_of, service_of, state_of
from producer.api.waited import ANSWERS
from pyfunq.api_keys import Scope
from pyfunq.errors import ModelNotFound
from pyfunq.queue import request_refresh

router = APIRouter(tags=["aliases"])


@router.post("/predict", response_model=ResultView, responses=ANSWERS, openapi_extra=BODY)
async def predict(request: Request, model: ModelQuery = None) -> Response:
    """The same as `POST /invocations`."""
    return await score(request, named_model(request, model))


@router.get("/model/info", response_model=ModelDetails, responses={s: PROBLEMS[s] for s in (401, 403, 404, 422, 503)})
async def model_info(request: Request, model: ModelQuery = None) -> Response:
    """The same as `GET /v1/models/{name}`."""
    caller = await caller_of(request, Scope.READ)
    named = named_model(request, model)
    check_model(caller, named)
    name = parsed(named).name
    if name is None:
        raise ModelNotFound("only registered models have a description")
    return answer(await model_details(service_of(request), caller, name))


@router.post(
    "/reload-model",
    status_code=202,
    response_model=Requested,
    responses={s: PROBLEMS[s] for s in (401, 403, 503)},
)
async def reload_model(request: Request) -> Response:
    """Look at once whether the registry has changed; what did is loaded, and then takes over."""
    await caller_of(request, Scope.ADMIN)
    await asyncio.to_thread(request_refresh, state_of(request).settings)
    response = answer({"status": "requested"})
    response.status_code = 202
    return response
