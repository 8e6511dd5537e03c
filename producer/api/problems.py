"""What the API answers when it cannot do what was asked: RFC 9457 problem documents, and no other errors."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pyfunq import errors
from pyfunq.ids import new_id

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_RETRY_SECONDS = 2

_STATUSES: tuple[tuple[type[errors.PyFunQError], int], ...] = (
    (errors.MalformedInput, 400),
    (errors.InputTooLarge, 413),
    (errors.InvalidInput, 422),
    (errors.InvalidModelURI, 422),
    (errors.IdempotencyConflict, 422),
    (errors.FileUnreadable, 422),
    (errors.InputNotAllowed, 422),
    # Not 403: that would say which models there are.
    (errors.ModelNotAllowed, 404),
    (errors.ModelNotFound, 404),
    (errors.UnknownJob, 404),
    (errors.UnknownBatch, 404),
    (errors.JobFailed, 409),
    (errors.SubmissionStopped, 409),
    (errors.BacklogFull, 503),
    (errors.LedgerUnavailable, 503),
    (errors.QueueUnavailable, 503),
    (errors.RegistryUnavailable, 503),
    (errors.InputUnavailable, 503),
)
_CODES = {
    400: "malformed_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "too_slow",
    409: "conflict",
    413: "body_too_large",
    414: "url_too_long",
    415: "unsupported_media_type",
    422: "invalid_input",
    429: "too_many_requests",
    431: "headers_too_large",
    500: "internal",
    501: "not_implemented",
    502: "bad_gateway",
    503: "unavailable",
    504: "timed_out",
}


class Problem(Exception):
    """An answer other than success. `errors`: {"pointer": JSON pointer into the body, "detail": ...} each."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code or _CODES.get(status, "error")
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.retryable = retryable

    @classmethod
    def of(cls, exc: errors.PyFunQError, *, pointer: str | None = None) -> "Problem":
        """`pointer`: the place in the body, where the caller knows it better than the error."""
        status = next((status for kind, status in _STATUSES if isinstance(exc, kind)), 500)
        code, detail = exc.code, exc.message
        if status == 500:
            log.error("answered 500: %s: %s", exc.code, exc.message)
            code, detail = "internal", "the server is not set up for this; its log says why"
        if isinstance(exc, errors.JobFailed) and exc.error_code:
            code = exc.error_code
        field = getattr(exc, "field", None)
        if pointer is None and field is not None:
            pointer = f"/{escaped(field)}"
        named = {} if field is None else {"field": str(field)}
        wait = getattr(exc, "retry_after_seconds", _RETRY_SECONDS)
        return cls(
            status,
            detail,
            code=code,
            errors=[] if pointer is None else [{"pointer": pointer, "detail": detail, **named}],
            headers={"Retry-After": str(max(1, round(wait)))} if status == 503 else {},
            retryable=exc.retryable,
        )

    def document(self, instance: str) -> dict[str, Any]:
        return {
            "type": f"urn:pyfunq:error:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
            "retryable": self.retryable,
            **({"errors": self.errors} if self.errors else {}),
        }

    def response(self, instance: str | None = None) -> Response:
        instance = instance or new_instance()
        body = orjson.dumps(self.document(instance))
        return Response(body, self.status, headers=self.headers, media_type=MEDIA_TYPE)


def response_to(exc: Problem | errors.PyFunQError) -> Response:
    return (exc if isinstance(exc, Problem) else Problem.of(exc)).response()


def new_instance() -> str:
    return f"urn:uuid:{new_id()}"


def escaped(part: str) -> str:
    """A name as part of a JSON pointer (RFC 6901)."""
    return part.replace("~", "~0").replace("/", "~1")


def install(app: FastAPI, authenticate: Callable[[Request], Awaitable[object]]) -> None:
    """Makes every error of the app a problem document. `authenticate` raises a Problem for who may not ask at all."""

    @app.exception_handler(Problem)
    @app.exception_handler(errors.PyFunQError)
    async def _ours(_: Request, exc: Problem | errors.PyFunQError) -> Response:
        return response_to(exc)

    @app.exception_handler(HTTPException)
    async def _frameworks(_: Request, exc: HTTPException) -> Response:
        return Problem(exc.status_code, str(exc.detail), headers=exc.headers).response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, exc: RequestValidationError) -> Response:
        try:  # FastAPI looks at parameters before any of our code can look at keys
            await authenticate(request)
        except (Problem, errors.PyFunQError) as refused:
            return response_to(refused)
        found = [{"pointer": _pointer(e["loc"]), "detail": str(e["msg"])} for e in exc.errors()]
        detail = "; ".join(f"{e['pointer']}: {e['detail']}" for e in found[:3])
        return Problem(422, detail, errors=found).response()

    @app.exception_handler(Exception)
    async def _unforeseen(_: Request, exc: Exception) -> Response:
        # Starlette raises it again for the server's log, which finds it by this line; here nothing of it is shown.
        instance = new_instance()
        log.error("answered 500 with instance %s: %s", instance, type(exc).__name__)
        return Problem(500, "something went wrong; the server's log says more, by this instance").response(instance)


def _pointer(loc: Sequence[Any]) -> str:
    return "".join(f"/{escaped(str(part))}" for part in loc)
