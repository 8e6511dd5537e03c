"""A way past FastAPI's routing for what is asked most: a third of the CPU time of such a request."""

from collections.abc import Awaitable, Callable, Collection

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from producer.api.problems import Problem, response_to
from pyfunq.errors import PyFunQError

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """An ASGI middleware; the routes stay FastAPI's too, which documents them."""

    def __init__(self, app: ASGIApp, router: APIRouter, endpoints: Collection[Endpoint]) -> None:
        """`endpoints`: of fixed paths of the router; they take the request and nothing else."""
        self._app = app
        routes = [route for route in router.routes if isinstance(route, APIRoute) and route.endpoint in endpoints]
        self._routes = {(method, route.path): route for route in routes for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        try:
            response = await route.endpoint(Request(scope, receive, send))
        except (Problem, PyFunQError) as exc:
            response = response_to(exc)
        await response(scope, receive, send)
