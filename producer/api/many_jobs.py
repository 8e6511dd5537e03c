"""Routes of many jobs at once: submit them in one request, wait for whichever ends first."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response

from producer.api.arrow_bodies import read_table
from producer.api.arrow_jobs import QUERY_PARAMETERS, query_of
from producer.api.bodies import JSON, content_type, json_body, parts
from producer.api.jobs import LONGEST_WAIT_SECONDS, PROBLEMS
from producer.api.many_schemas import FinalJobs, SubmittedMany, WatchedJobs
from producer.api.problems import Problem
from producer.api.rates import while_asked
from producer.api.service import model_uri_of
from producer.api.state import caller_of, service_of
from producer.api.views import JOBS, job_view
from pyfunq.api_keys import Scope
from pyfunq.errors import InputTooLarge, InvalidInput, MalformedInput
from pyfunq.http_wire import ARROW_FIELD, MOST_BULK_BYTES, MOST_BULK_JOBS, MOST_WATCHED, NDJSON
from pyfunq.inputs import parse_json_input
from pyfunq.job import Job, Lane
from pyfunq.options import JobOptions

router = APIRouter(prefix=JOBS, tags=["jobs"])

_OPTIONS = frozenset({"model", "version", "alias", "stage", "lane", "params", "expires_in", "timeout", "retries"})
_MOST_WATCHED_BYTES = 64 * MOST_WATCHED
_PARSED_AT_ONCE = 256 * 1024


@router.post(
    "/bulk",
    status_code=202,
    response_model=SubmittedMany,
    responses={s: PROBLEMS[s] for s in (400, 401, 403, 404, 413, 415, 422, 429, 503)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                NDJSON: {
                    "schema": {"type": "string"},
                    "example": '{"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}\n'
                    '{"dataframe_split": {"columns": ["x"], "data": [[2.0]]}}\n',
                }
            },
        },
        "parameters": [
            *QUERY_PARAMETERS,
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same request with the same key is the same jobs, for a day.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            },
        ],
    },
)
async def submit_many(request: Request) -> Response:
    """Submit a job for each line of the body, all or none: up to 100,000 lines, 64 MiB together.

    A line is an object with one of MLflow's formats, or `{"arrow": "<an Arrow IPC stream in base64>"}`.
    """
    service = service_of(request)
    caller = await caller_of(request, Scope.SUBMIT)
    if content_type(request) != NDJSON:
        raise Problem(415, f"the body must be {NDJSON}", headers={"Accept": NDJSON})
    asked = query_of(request, _OPTIONS)
    uri = model_uri_of(asked)
    await service.check_asked(caller, uri)
    key = request.headers.get("idempotency-key")
    options = JobOptions.of(asked.get("expires_in"), asked.get("timeout"), asked.get("retries", 0), key)
    inputs = await _inputs(request, service.most_input_bytes)
    lane = asked.get("lane") or Lane.INTERACTIVE
    jobs = await service.accept_many(caller, uri, inputs, params=asked.get("params"), lane=lane, options=options)
    body = await asyncio.to_thread(_answer, jobs)
    return Response(body, 202, headers={"Retry-After": "1"}, media_type=JSON)


async def _inputs(request: Request, at_most: int) -> list[Any]:
    """Parsed as they come, so that the body is never held whole."""
    inputs: list[Any] = []
    held: list[bytes] = []
    size = 0
    async for part in parts(request, MOST_BULK_BYTES):
        held.append(part)
        size += len(part)
        if size > _PARSED_AT_ONCE and b"\n" in part:
            lines = b"".join(held).split(b"\n")
            held, size = [lines.pop()], 0
            await asyncio.to_thread(_parse, lines, inputs, at_most)
    await asyncio.to_thread(_parse, b"".join(held).split(b"\n"), inputs, at_most)
    if not inputs:
        raise InvalidInput("the body has no inputs: one is a line")
    return inputs


def _parse(lines: Sequence[bytes], inputs: list[Any], at_most: int) -> None:
    for line in lines:
        if not line.strip():
            continue
        if len(inputs) == MOST_BULK_JOBS:
            raise InputTooLarge(f"the body has more than {MOST_BULK_JOBS:,} inputs")
        try:
            inputs.append(_input(line, at_most))
        except InvalidInput as exc:
            raise type(exc)(f"inputs[{len(inputs)}]: {exc.message}", field=exc.field) from None


def _input(line: bytes, at_most: int) -> Any:
    one = parse_json_input(line, max_bytes=2 * at_most)
    if ARROW_FIELD not in one:
        return one
    if len(one) > 1 or not isinstance(one[ARROW_FIELD], str):
        raise InvalidInput(f"{ARROW_FIELD} stands alone, and is base64", field=ARROW_FIELD)
    try:
        stream = base64.b64decode(one[ARROW_FIELD], validate=True)
    except (binascii.Error, ValueError):
        raise MalformedInput(f"{ARROW_FIELD} is not base64", field=ARROW_FIELD) from None
    return read_table(stream, MOST_BULK_BYTES)


def _answer(jobs: Sequence[Job]) -> bytes:
    ids, rows = [], []
    for job in jobs:
        ids.append(str(job.id))
        rows.append(job.rows)
    own = ("id", "rows", "created_at", "links")
    common = {name: value for name, value in job_view(jobs[0]).items() if name not in own}
    return orjson.dumps({"ids": ids, "rows": rows, "common": common})


@router.post(
    "/final",
    response_model=FinalJobs,
    responses={s: PROBLEMS[s] for s in (400, 401, 403, 404, 413, 415, 422, 429, 503)},
    openapi_extra={
        "requestBody": {"required": True, "content": {JSON: {"schema": WatchedJobs.model_json_schema()}}},
    },
)
async def final_jobs(
    request: Request,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="Seconds to wait for any end.")] = 0.0,
) -> Response:
    """Those of the jobs (up to 5,000) that are final: answers as soon as one is, or with none after `wait` seconds."""
    service = service_of(request)
    caller = await caller_of(request, Scope.READ)
    asked = await json_body(request, _MOST_WATCHED_BYTES)
    jobs = await while_asked(request.scope, service.some_final(caller, _ids(asked), wait)) or []
    body = orjson.dumps({"data": [job_view(job) for job in jobs]})
    return Response(body, media_type=JSON)


def _ids(asked: dict[str, Any]) -> list[UUID]:
    ids = asked.get("ids")
    if len(asked) != 1 or not isinstance(ids, list) or not 0 < len(ids) <= MOST_WATCHED:
        raise InvalidInput(
            f"ids is a list of 1 to {MOST_WATCHED:,} jobs' ids, and nothing stands beside it", field="ids"
        )
    try:
        return list(dict.fromkeys(UUID(one) for one in ids))
    except (ValueError, TypeError, AttributeError):
        raise InvalidInput("ids holds what is no job's id", field="ids") from None
