"""`/docs` and `/openapi.json`: Swagger UI from a package that is installed here, and the document that it shows."""

import time
from functools import cache
from importlib import resources
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from producer.api.bodies import JSON
from producer.api.callers import Caller
from producer.api.documents import base_document, with_models
from producer.api.known_models import Seen
from producer.api.problems import Problem
from producer.api.state import caller_of, service_of
from pyfunq.api_keys import Scope
from pyfunq.errors import LedgerUnavailable

router = APIRouter(include_in_schema=False)

_FRESH_SECONDS = 3.0
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>PyFunQ API</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = b"""SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
"""
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@router.get("/docs")
async def page() -> Response:
    return Response(_PAGE, headers=_HEADERS, media_type="text/html")


@router.get("/docs/start.js")
async def start() -> Response:
    return Response(_START, headers=_HEADERS, media_type="text/javascript")


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    if name not in _ASSETS:
        raise Problem(404, "there is no such file")
    headers = {**_HEADERS, "Cache-Control": "public, max-age=86400"}
    return Response(_asset(name), headers=headers, media_type=_ASSETS[name])


@cache
def _asset(name: str) -> bytes:
    return resources.files("fastapi_swagger.resources").joinpath(name).read_bytes()


@router.get("/openapi.json")
async def document(request: Request) -> Response:
    """The models of the caller's key; without any where the caller may not know them, or Postgres is away."""
    documents: Documents = _documents(request)
    try:
        caller = await caller_of(request, Scope.READ)
        seen = await service_of(request).known_models.for_caller(caller)
    except (Problem, LedgerUnavailable):
        return Response(documents.without_models, media_type=JSON)
    return Response(documents.of(caller, seen), media_type=JSON)


class Documents:
    """Of one app; each kept for a moment."""

    def __init__(self, base: dict[str, Any]) -> None:
        self._base = base
        self.without_models = orjson.dumps(base)
        self._made: dict[tuple[str, ...], tuple[float, bytes]] = {}

    def of(self, caller: Caller, seen: Seen) -> bytes:
        """`seen`: what the caller may know."""
        patterns = tuple(caller.key.models) if caller.key else ()
        made = self._made.get(patterns)
        now = time.monotonic()
        if made is None or made[0] < now:
            self._made = {key: value for key, value in self._made.items() if value[0] >= now}
            made = self._made[patterns] = (now + _FRESH_SECONDS, orjson.dumps(with_models(self._base, seen)))
        return made[1]


def _documents(request: Request) -> Documents:
    state = request.app.state
    if not hasattr(state, "documents"):
        state.documents = Documents(base_document(request.app))
    documents: Documents = state.documents
    return documents
