"""A job whose input is an Arrow table: what else is to be said of it is in the query."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from producer.api.arrow_bodies import read_table
from producer.api.bodies import whole
from producer.api.callers import Caller
from producer.api.service import Service, model_uri_of
from pyfunq.errors import InvalidInput, MalformedInput
from pyfunq.http_wire import ARROW, WEBHOOK_HEADER
from pyfunq.inputs import parse_json_input
from pyfunq.job import Job, Lane
from pyfunq.options import JobOptions

_INFLATES_TO = 4
"""An Arrow body may hold so many times the bytes that a job's input may have: they are kept compressed."""
_SMALL_BYTES = 64 * 1024
_MOST_QUERY_JSON_BYTES = 64 * 1024
_MODEL = ("model", "version", "alias", "stage")
_OPTIONS = frozenset({*_MODEL, "lane", "params", "expires_in", "timeout", "retries", "metadata"})

ARROW_BODY: dict[str, Any] = {ARROW: {"schema": {"type": "string", "format": "binary"}}}


def _parameter(name: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "description": f"{description} Beside a body that is no JSON object.",
        "schema": schema,
    }


QUERY_PARAMETERS = [
    _parameter("model", {"type": "string", "maxLength": 500}, "A registered model's name, or a model URI."),
    _parameter("version", {"type": "integer", "minimum": 1}, "Beside a bare name."),
    _parameter("alias", {"type": "string", "maxLength": 255}, "Beside a bare name."),
    _parameter("stage", {"type": "string", "maxLength": 255}, "Beside a bare name."),
    _parameter("lane", {"enum": [str(lane) for lane in Lane]}, "`interactive` goes first."),
    _parameter("params", {"type": "string"}, "A JSON object."),
    _parameter("expires_in", {"type": "number", "exclusiveMinimum": 0}, "Seconds."),
    _parameter("timeout", {"type": "number", "exclusiveMinimum": 0}, "Seconds."),
    _parameter("retries", {"type": "integer", "minimum": 0, "maximum": 20}, "How often it is tried again."),
]
ARROW_PARAMETERS = [
    *QUERY_PARAMETERS,
    _parameter("metadata", {"type": "string"}, "A JSON object."),
    {
        "name": WEBHOOK_HEADER,
        "in": "header",
        "description": "The URL that is told of the job's end. Beside a body that is no JSON object.",
        "schema": {"type": "string"},
    },
]


async def accept_arrow(request: Request, service: Service, caller: Caller, key: str | None) -> Job:
    """Raises Problem, and what `Service.accept` raises."""
    asked = query_of(request, _OPTIONS)
    uri, params, lane = model_uri_of(asked), asked.get("params"), asked.get("lane") or Lane.INTERACTIVE
    options = JobOptions.of(
        asked.get("expires_in"), asked.get("timeout"), asked.get("retries", 0), key, asked.get("metadata")
    )
    if (url := request.headers.get(WEBHOOK_HEADER)) is not None:
        options = await service.with_webhook(caller, options, url)
    body = await whole(request, service.most_body_bytes)
    at_most = _INFLATES_TO * service.most_input_bytes
    table = (
        read_table(body, at_most) if len(body) <= _SMALL_BYTES else await asyncio.to_thread(read_table, body, at_most)
    )
    return await service.accept(caller, uri, table, params=params, lane=lane, options=options)


def query_of(request: Request, allowed: frozenset[str]) -> dict[str, Any]:
    """The request's options, as a JSON body would have them. Raises InvalidInput."""
    asked: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name not in allowed or name in asked:
            raise InvalidInput(f"{name[:80]!r} is given twice, or is no option of this", field=name[:80])
        asked[name] = _value(name, text)
    return asked


def _value(name: str, text: str) -> Any:
    try:
        if name in ("expires_in", "timeout"):
            return float(text)
        if name in ("version", "retries"):
            return int(text[:20])
        if name in ("params", "metadata"):
            return parse_json_input(text, max_bytes=_MOST_QUERY_JSON_BYTES)
    except ValueError:
        raise InvalidInput(f"{name} must be a number", field=name) from None
    except MalformedInput:
        raise InvalidInput(f"{name} must be a JSON object", field=name) from None
    return text
