"""Routes of batches: submit many rows as one body, watch them, read their results, cancel, try again what failed."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from producer.api.batch_results import CSV, KINDS, NDJSON, PARQUET, acceptable, stream
from producer.api.batch_service import BatchRequest
from producer.api.bodies import JSON, content_type
from producer.api.callers import Caller
from producer.api.jobs import LONGEST_WAIT_SECONDS, PROBLEMS
from producer.api.problems import Problem
from producer.api.rates import while_asked
from producer.api.results import ARROW
from producer.api.schemas import BatchPage, BatchView, RetriedView
from producer.api.service import Service, model_uri_of
from producer.api.state import caller_of, service_of, state_of
from producer.api.views import BATCHES, batch_view
from pyfunq.api_keys import Scope
from pyfunq.errors import InvalidInput
from pyfunq.ids import id_time
from pyfunq.inputs import check_json, loads_strictly
from pyfunq.job import Batch, JobStatus, Lane
from pyfunq.options import JobOptions

router = APIRouter(prefix=BATCHES, tags=["batches"])

_ARROW_FILE = "application/vnd.apache.arrow.file"
_SUFFIXES = {
    NDJSON: ".jsonl",
    "application/ndjson": ".jsonl",
    "application/jsonl": ".jsonl",
    CSV: ".csv",
    PARQUET: ".parquet",
    ARROW: ".arrows",
    _ARROW_FILE: ".arrow",
}
_ASK_AGAIN = {"Retry-After": "1"}
_MOST_LISTED = 200
_MOST_CHUNK_ROWS = 1_000_000
_MOST_PARAMS_CHARACTERS = 64 * 1024
_ASKED = frozenset({"model", "version", "alias", "stage", "params", "lane", "chunk_rows", "timeout", "retries"})
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_LINES = {
    "schema": {"type": "string"},
    "examples": {
        "rows": {"value": '{"x": 1.0}\n{"x": 2.0}\n'},
        "named rows": {"value": '{"custom_id": "a", "row": {"x": 1.0}}\n{"custom_id": "b", "row": {"x": 2.0}}\n'},
    },
}
_Wait = Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="Seconds to wait for its end.")]


@router.post(
    "",
    status_code=202,
    response_model=BatchView,
    responses={s: PROBLEMS[s] for s in (400, 401, 403, 404, 409, 413, 415, 422, 429, 503)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {NDJSON: _LINES, CSV: {"schema": {"type": "string"}}}
            | dict.fromkeys((PARQUET, ARROW, _ARROW_FILE), _BINARY),
        },
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same request with the same key is the same batch, for a day.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            },
        ],
    },
)
async def submit(
    request: Request,
    model: Annotated[str, Query(description="A registered model's name, or a URI such as `models:/iris@champion`.")],
    version: Annotated[int | None, Query(ge=1, description="Beside a bare name; without any, the latest.")] = None,
    alias: str | None = None,
    stage: str | None = None,
    params: Annotated[
        str | None, Query(max_length=_MOST_PARAMS_CHARACTERS, description="A JSON object, for each call.")
    ] = None,
    lane: Lane = Lane.BULK,
    chunk_rows: Annotated[int | None, Query(ge=1, le=_MOST_CHUNK_ROWS, description="Rows a job.")] = None,
    timeout: Annotated[float | None, Query(gt=0, description="Seconds that predicting a job may take.")] = None,  # noqa: ASYNC109
    retries: Annotated[int, Query(ge=0, le=20, description="How often a job is tried again when it fails.")] = 0,
) -> Response:
    """Submit many rows as one body. All of it is checked before any is accepted; 202 says that all is committed.

    NDJSON has a row a line, as an object of its columns, or as `{"custom_id": ..., "row": {...}}`: then results have
    the `custom_id`, a text of 1 to 200 characters that no two rows share.
    """
    service = service_of(request)
    caller = await caller_of(request, Scope.SUBMIT)
    if unknown := [name for name in request.query_params if name not in _ASKED]:
        raise InvalidInput(f"{unknown[0][:80]!r} is not a parameter of a batch", field=unknown[0])
    which = {"model": model, "version": version, "alias": alias, "stage": stage}
    asked = BatchRequest(
        model=model_uri_of(which),
        lane=lane,
        chunk_rows=chunk_rows,
        params=_params(params),
        options=JobOptions.of(None, timeout, retries, request.headers.get("idempotency-key")),
        kind=_kind(request),
    )
    await service.check_asked(caller, asked.model)
    batch = await _accept(request, service, caller, asked)
    place = f"{BATCHES}/{batch.id}"
    return _answer(batch, 202, {"Location": place, **({} if batch.is_final else _ASK_AGAIN)})


async def _accept(request: Request, service: Service, caller: Caller, asked: BatchRequest) -> Batch:
    async with (
        service.held_key(caller, asked.options.idempotency_key) as hold,
        state_of(request).uploads.received(request, asked.kind) as upload,
    ):
        return await service.accept_batch(caller, asked, upload, hold)


def _kind(request: Request) -> str:
    kind = content_type(request)
    if kind not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise Problem(415, f"the body must be one of {known}", headers={"Accept": known})
    charset = request.headers["content-type"].lower().partition("charset=")[2].strip('" ;')
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise Problem(415, "the body must be UTF-8")
    return _SUFFIXES[kind]


def _params(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        params = loads_strictly(text)
        check_json(params, "params")
    except (ValueError, RecursionError):
        raise InvalidInput("params is not JSON", field="params") from None
    if not isinstance(params, dict):
        raise InvalidInput("params must be a JSON object", field="params")
    return params


@router.get("", response_model=BatchPage, responses={s: PROBLEMS[s] for s in (401, 403, 422, 503)})
async def list_batches(
    request: Request, limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 50, cursor: UUID | None = None
) -> Response:
    """Batches, newest first."""
    service = service_of(request)
    caller = await caller_of(request, Scope.READ)
    if cursor is not None and (cursor.version != 7 or id_time(cursor).year < 2020):
        raise InvalidInput("cursor is none that a page had", field="cursor")
    found = await service.batch_page(caller, before=cursor, limit=limit + 1)
    after = str(found[limit - 1].id) if len(found) > limit else None
    body = {"data": [batch_view(batch) for batch in found[:limit]], "next_cursor": after}
    return Response(orjson.dumps(body), media_type=JSON)


@router.get("/{batch_id}", response_model=BatchView, responses={s: PROBLEMS[s] for s in (401, 403, 404, 422, 503)})
async def get_batch(request: Request, batch_id: UUID, wait: _Wait = 0.0) -> Response:
    """A batch as it is now, or at its end."""
    service = service_of(request)
    batch = await service.find_batch(await caller_of(request, Scope.READ), batch_id)
    if wait and not batch.is_final:
        ended = await while_asked(request.scope, service.wait_batch_final(batch_id, wait))
        batch = ended or await service.get_batch(batch_id)
    return _answer(batch, 200, {} if batch.is_final else _ASK_AGAIN)


@router.get(
    "/{batch_id}/results",
    response_class=Response,
    responses={
        200: {
            "description": "A row a row of the input, in its order: its number `index`, its `custom_id` if it has one, "
            "and its prediction; null where its job ended without one.",
            "content": {kind: {"schema": {"type": "string"}} for kind in KINDS},
        },
        **{s: PROBLEMS[s] for s in (401, 403, 404, 406, 409, 422, 503)},
    },
)
async def get_results(
    request: Request,
    batch_id: UUID,
    partial: Annotated[bool, Query(description="Before its end: the rows of the jobs that are final.")] = False,
) -> Response:
    """A batch's predictions, streamed: NDJSON, or by `Accept` CSV, Parquet or an Arrow stream."""
    service = service_of(request)
    batch = await service.find_batch(await caller_of(request, Scope.READ), batch_id)
    kind = acceptable(request.headers.get("accept", ""))
    if kind is None:
        raise Problem(406, f"results come as {', '.join(KINDS)}")
    if not batch.is_final and not partial:
        raise Problem(
            409,
            f"{batch.finished} of the batch's {batch.jobs} jobs are final; partial=true gives their results",
            code="not_finished",
            headers=_ASK_AGAIN,
            retryable=True,
        )
    return await _streamed(stream(lambda: service.stored_parts(batch_id), kind), kind)


@router.get(
    "/{batch_id}/errors",
    response_class=Response,
    responses={
        200: {
            "description": "A line a job that ended without a result: `first` and `last` are numbers of its rows.",
            "content": {NDJSON: {"schema": {"type": "string"}}},
        },
        **{s: PROBLEMS[s] for s in (401, 403, 404, 422, 503)},
    },
)
async def get_errors(request: Request, batch_id: UUID) -> Response:
    """Which of a batch's jobs failed, and why: streamed NDJSON."""
    service = service_of(request)
    await service.check_batch(await caller_of(request, Scope.READ), batch_id)
    return await _streamed(_errors(service, batch_id), NDJSON)


async def _errors(service: Service, batch_id: UUID) -> AsyncIterator[bytes]:
    async for placed in service.batch_jobs(batch_id):
        lines = [
            orjson.dumps(
                {
                    "first": first,
                    "last": first + job.rows - 1,
                    "job_id": str(job.id),
                    "status": job.status,
                    "code": job.error.code if job.error else f"job_{job.status}",
                    "message": job.error.message if job.error else f"the job was {job.status}",
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
            for first, job in placed
            if job.status.is_final and job.status is not JobStatus.SUCCEEDED
        ]
        if lines:
            yield b"".join(lines)


async def _streamed(parts: AsyncIterator[bytes], kind: str) -> Response:
    """What goes wrong before the first part is an answer of its own; later it can only break the stream."""
    first = await anext(parts, b"")

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(parts):  # type: ignore[type-var]
            yield first
            async for part in parts:
                yield part

    return StreamingResponse(body(), media_type=kind)


@router.post(
    "/{batch_id}/cancel",
    status_code=202,
    response_model=BatchView,
    responses={
        200: {"model": BatchView, "description": "It was final already"},
        **{s: PROBLEMS[s] for s in (401, 403, 404, 422, 503)},
    },
)
async def cancel(request: Request, batch_id: UUID) -> Response:
    """Withdraw what is not final; a batch that is still being submitted ends."""
    service = service_of(request)
    batch = await service.find_batch(await caller_of(request, Scope.SUBMIT), batch_id)
    if batch.is_final:
        return _answer(batch, 200)
    return _answer(await service.cancel_batch(batch_id), 202)


@router.post(
    "/{batch_id}/retry-failed",
    status_code=202,
    response_model=RetriedView,
    responses={s: PROBLEMS[s] for s in (401, 403, 404, 409, 422, 503)},
)
async def retry_failed(request: Request, batch_id: UUID) -> Response:
    """Queue the jobs again that failed, expired or are dead, with all their attempts."""
    service = service_of(request)
    batch = await service.find_batch(await caller_of(request, Scope.SUBMIT), batch_id)
    if batch.submitted_at is None:
        raise Problem(409, "not all of the batch was accepted: submit it again")
    retried = await service.retry_failed(batch_id)
    body = {"retried": retried, "batch": batch_view(await service.get_batch(batch_id))}
    return Response(orjson.dumps(body), 202, headers={"Location": f"{BATCHES}/{batch_id}"}, media_type=JSON)


def _answer(batch: Batch, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(batch_view(batch)), status, headers=headers, media_type=JSON)
