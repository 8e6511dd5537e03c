"""What this API process counts: its requests, and the jobs that it accepted."""

import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyfunq import metrics
from pyfunq.entries import Page
from pyfunq.lanes import lane_of
from pyfunq.metrics import MOST_MODELS, OTHER, Recorder

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNMATCHED = "unmatched"
_UNANSWERED = "none"


class ApiMetrics:
    """Belongs to one API process."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.in_progress = 0
        self._models: set[str] = set()

    def accepted(self, pages: Sequence[Page]) -> None:
        """Jobs that were committed, as the pages that they are on."""
        for page in pages:
            self.recorder.count(metrics.SUBMITTED, self._named(page.model_uri), lane_of(page.queue), by=page.jobs)

    def answered(self, route: str, method: str, status: str, seconds: float) -> None:
        self.recorder.count(metrics.REQUESTS, route, method if method in _METHODS else OTHER, status)
        self.recorder.observe(metrics.REQUEST_SECONDS, (seconds,), route)

    def _named(self, model_uri: str) -> str:
        """Callers may submit for models that there are not; these must not become labels without end."""
        if model_uri in self._models or len(self._models) < MOST_MODELS:
            self._models.add(model_uri)
            return model_uri
        return OTHER


class CountRequests:
    """ASGI middleware; a request's route is its template, never its path."""

    def __init__(self, app: ASGIApp, counted: ApiMetrics) -> None:
        self._app = app
        self._counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = _UNANSWERED, time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        self._counted.in_progress += 1
        try:
            await self._app(scope, receive, noted)
        except Exception:
            if status == _UNANSWERED:  # what is around this answers it so
                status = "500"
            raise
        finally:
            self._counted.in_progress -= 1
            route = getattr(scope.get("route"), "path", None) or _UNMATCHED
            self._counted.answered(route, scope["method"], status, time.perf_counter() - started)
