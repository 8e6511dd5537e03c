"""The API's composition root: settings in, an ASGI app out."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import orjson
from fastapi import FastAPI, Request, Response

from producer.api import (
    aliases,
    batches,
    docs,
    events,
    exposition,
    hooks,
    invocations,
    jobs,
    models,
    open_inference,
    problems,
    webhooks,
)
from producer.api.bodies import JSON
from producer.api.callers import Callers
from producer.api.direct import Direct
from producer.api.gate import Gate
from producer.api.ledger_metrics import LedgerMetrics
from producer.api.many_jobs import router as many_jobs
from producer.api.metrics import ApiMetrics, CountRequests
from producer.api.parts import router as parts
from producer.api.rates import Rates
from producer.api.service import Service
from producer.api.state import State, caller_of, service_of
from producer.api.uploads import Uploads
from pyfunq import __version__
from pyfunq.api_keys import Scope
from pyfunq.errors import LedgerUnavailable
from pyfunq.settings import Settings


def make_app(settings: Settings, ready: Callable[[], object] = lambda: None) -> FastAPI:
    """Needs Postgres and Redis when it starts, not before; `ready` is called when it has."""

    counted = ApiMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        rates = Rates(per_second=settings.api_per_second, at_once=settings.api_max_requests_per_key)
        with Uploads(settings.home / "uploads", settings.max_upload_bytes) as uploads:
            async with Service(settings) as service, hooks.listening(app, settings):
                service.tell_accepted(counted.accepted)
                callers = Callers(service.keys, key_needed=settings.api_require_key)
                ledger_metrics = LedgerMetrics(service.metrics, stale_seconds=settings.stale_seconds)
                app.state.pyfunq = State(settings, service, callers, rates, uploads, counted, ledger_metrics)
                ready()
                yield
                await ledger_metrics.close()

    app = FastAPI(
        title="PyFunQ",
        version=__version__,
        description="A queue for MLflow models: submit prediction jobs, wait for them, read their results.",
        lifespan=lifespan,
        openapi_url=None,  # see docs.py
    )
    problems.install(app, lambda request: caller_of(request, Scope.READ))
    app.include_router(many_jobs)  # before those with an id in their path
    app.include_router(parts)
    for routes in (
        jobs,
        batches,
        events,
        webhooks,
        hooks,
        models,
        invocations,
        open_inference,
        aliases,
        exposition,
        docs,
    ):
        app.include_router(routes.router)
    _add_health(app)
    app.add_middleware(Direct, endpoints=[jobs.submit], router=jobs.router)
    app.add_middleware(CountRequests, counted=counted)
    app.add_middleware(Gate, at_once=settings.api_max_requests)
    return app


def _add_health(app: FastAPI) -> None:
    @app.get("/health/live", tags=["operations"])
    async def live() -> Response:
        """Whether this process answers."""
        return Response(orjson.dumps({"status": "ok"}), media_type=JSON)

    @app.get("/health/ready", tags=["operations"], responses={503: jobs.PROBLEMS[503]})
    async def ready(request: Request) -> Response:
        """Whether it can accept jobs: Postgres answers, and its tables are as they must be."""
        try:
            await service_of(request).ping()
        except LedgerUnavailable as exc:
            return problems.Problem.of(exc).response()
        return Response(orjson.dumps({"status": "ok"}), media_type=JSON)
