"""What stands before every route: a bound on requests at once, and what every answer says to browsers."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producer.api.problems import Problem
from producer.api.rates import Headers, new_turn

_ALWAYS = ("/health", "/metrics")
"""Operators ask these most when there is most to do."""
_KEY_IN_QUERY = b"pfq_"
_EVERY_ANSWER: Headers = [(b"x-content-type-options", b"nosniff")]


class Gate:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp, *, at_once: int) -> None:
        """`at_once`: requests of this process; those that wait for a job's end count too."""
        self._app = app
        self._at_once = at_once
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if problem := self._refusal(scope):
            await problem.response()(scope, receive, send)
            return
        turn = new_turn(scope)

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_EVERY_ANSWER, *turn.headers]
            await send(message)

        self._under_way += 1
        try:
            await self._app(scope, receive, send_more)
        except asyncio.CancelledError:
            if not turn.is_abandoned:
                raise
        finally:
            self._under_way -= 1
            if turn.end is not None:
                turn.end()

    def _refusal(self, scope: Scope) -> Problem | None:
        if _KEY_IN_QUERY in scope["query_string"]:
            return Problem(
                401,
                "an API key belongs in the Authorization header: addresses are written into logs. Revoke this one",
                headers={"WWW-Authenticate": 'Bearer realm="pyfunq"'},
            )
        if self._under_way >= self._at_once and not scope["path"].startswith(_ALWAYS):
            return Problem(
                503,
                f"{self._at_once:,} requests are under way, as many as may be",
                headers={"Retry-After": "1"},
                retryable=True,
            )
        return None
