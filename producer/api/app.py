"""The API's composition root: settings in, an ASGI app out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from fastapi import FastAPI, Request, Response

from producer.api import exposition, jobs, problems
from producer.api.bodies import JSON
from producer.api.callers import Callers
from producer.api.ledger_metrics import LedgerMetrics
from producer.api.metrics import ApiMetrics, CountRequests
from producer.api.service import Service
from producer.api.state import State, service_of
from pyfunq import __version__
from pyfunq.errors import LedgerUnavailable
from pyfunq.settings import Settings


def make_app(settings: Settings) -> FastAPI:
    """Needs Postgres and Redis when it starts, not before."""

    counted = ApiMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Service(settings) as service:
            service.tell_accepted(counted.accepted)
            ledger_metrics = LedgerMetrics(service.metrics, stale_seconds=settings.stale_seconds)
            app.state.pyfunq = State(settings, service, Callers(service.keys), counted, ledger_metrics)
            yield
            await ledger_metrics.close()

    app = FastAPI(
        title="PyFunQ",
        version=__version__,
        description="A queue for MLflow models: submit prediction jobs, wait for them, read their results.",
        lifespan=lifespan,
        openapi_url="/openapi.json",
    )
    app.add_middleware(CountRequests, counted=counted)
    problems.install(app)
    app.include_router(jobs.router)
    app.include_router(exposition.router)
    _add_health(app)
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
