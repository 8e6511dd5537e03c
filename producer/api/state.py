"""What a running API has, and how a request's handler comes by it."""

from dataclasses import dataclass

from fastapi import Request

from producer.api.callers import Caller, Callers
from producer.api.ledger_metrics import LedgerMetrics
from producer.api.metrics import ApiMetrics
from producer.api.rates import Rates
from producer.api.service import Service
from producer.api.uploads import Uploads
from pyfunq.api_keys import Scope
from pyfunq.settings import Settings


@dataclass(frozen=True, slots=True)
class State:
    """Made when the server starts, on its event loop."""

    settings: Settings
    service: Service
    callers: Callers
    rates: Rates
    uploads: Uploads
    metrics: ApiMetrics
    ledger_metrics: LedgerMetrics


def state_of(request: Request) -> State:
    state: State = request.app.state.pyfunq
    return state


def service_of(request: Request) -> Service:
    return state_of(request).service


async def caller_of(request: Request, scope: Scope) -> Caller:
    """Who calls; raises Problem where that is nobody, one who may not do this, or asks too often."""
    state = state_of(request)
    caller = await state.callers.of(request, scope)
    state.rates.begin(request.scope, caller)
    return caller
