"""Routes of jobs: submit, wait, read results, cancel, retry, list."""

import re
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response

from producer.api.arrow_jobs import ARROW_BODY, ARROW_PARAMETERS, accept_arrow
from producer.api.bodies import JSON, content_type, json_body
from producer.api.callers import Caller
from producer.api.pointers import pointer_to
from producer.api.problems import Problem
from producer.api.rates import while_asked
from producer.api.results import ARROW, as_arrow, as_json, prefers_arrow
from producer.api.schemas import JobPage, JobRequest, JobView, ProblemDocument, ResultView
from producer.api.service import Ended, Service, model_uri_of
from producer.api.state import caller_of, service_of
from producer.api.views import JOBS, job_view
from producer.api.webhook_requests import with_webhook
from pyfunq.api_keys import Scope
from pyfunq.errors import InvalidInput
from pyfunq.ids import id_time
from pyfunq.inputs import FORMATS
from pyfunq.job import Job, JobStatus, Lane
from pyfunq.options import JobOptions
from pyfunq.outcomes import decoded

router = APIRouter(prefix=JOBS, tags=["jobs"])

LONGEST_WAIT_SECONDS = 60.0
_ASK_AGAIN = {"Retry-After": "1"}
_MOST_LISTED = 1_000
_OPTIONS = frozenset({"lane", "expires_in", "timeout", "retries", "metadata", "webhook"})
_FIELDS = frozenset({"model", "version", "alias", "stage", "params", *FORMATS, *_OPTIONS})
_FILTERS = frozenset({"status", "model", "batch", "limit", "cursor"})
_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?([0-9]{1,6})\"?\s*(?:,|;|$)")
_PROBLEM: dict[str, Any] = {"model": ProblemDocument, "content": {"application/problem+json": {}}}


def problem_answer(description: str) -> dict[str, Any]:
    """A problem document as one of a route's `responses`."""
    return {**_PROBLEM, "description": description}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: problem_answer(text)
    for status, text in {
        400: "Malformed",
        401: "No valid API key",
        403: "The API key may not do this",
        404: "Not there, or not the caller's",
        406: "None of the media types that it comes as",
        408: "Sent too slowly",
        409: "Not in this state",
        413: "Too large",
        414: "The address is too long",
        415: "Another media type",
        422: "Understood, but not fit",
        429: "Too many requests, or queued jobs; `Retry-After` says when to ask again",
        431: "The headers are too large",
        503: "Cannot be done now; `Retry-After` says when to ask again",
    }.items()
}


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses={
        200: {"model": JobView, "description": "Final: with `Prefer: wait`, or a repeated `Idempotency-Key`"},
        **PROBLEMS,
    },
    openapi_extra={
        "requestBody": {"required": True, "content": {JSON: {"schema": JobRequest.model_json_schema()}, **ARROW_BODY}},
        "parameters": [
            *ARROW_PARAMETERS,
            {
                "name": "Prefer",
                "in": "header",
                "description": "`wait=N`: answer when the job is final, after N (at most 60) seconds at the latest.",
                "schema": {"type": "string"},
            },
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same request with the same key is the same job, for a day.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            },
        ],
    },
)
async def submit(request: Request) -> Response:
    """Submit a job. What is answered with 202 (or 200) is committed and is not lost."""
    service = service_of(request)
    caller = await caller_of(request, Scope.SUBMIT)
    key = request.headers.get("idempotency-key")
    if content_type(request) == ARROW:
        job = await accept_arrow(request, service, caller, key)
    else:
        asked = await json_body(request, service.most_body_bytes)
        try:
            job = await _accept(service, caller, asked, key)
        except InvalidInput as exc:
            raise Problem.of(exc, pointer=pointer_to(exc.field, asked, exc.row) if exc.field else None) from exc
    seconds = wait_seconds(request.headers.getlist("prefer"))
    if seconds is None:
        return _accepted(job)
    ended = await while_asked(request.scope, service.wait_ended(caller, job, seconds))
    applied = {"Preference-Applied": f"wait={seconds:g}"}
    if ended is None:
        return _accepted(await service.find(caller, job.id), applied)
    return await _final(ended, applied)


async def _accept(service: Service, caller: Caller, asked: Mapping[str, Any], key: str | None) -> Job:
    if unknown := [name for name in asked if name not in _FIELDS]:
        raise InvalidInput(f"{unknown[0][:80]!r} is not a field of a job", field=unknown[0])
    uri = model_uri_of(asked)
    options = JobOptions.of(
        _number(asked, "expires_in"),
        _number(asked, "timeout"),
        asked.get("retries") or 0,
        key,
        asked.get("metadata"),
    )
    options = await with_webhook(service, caller, asked.get("webhook"), options)
    inputs = {name: asked[name] for name in FORMATS if asked.get(name) is not None}
    lane = asked.get("lane") or Lane.INTERACTIVE
    if not isinstance(lane, str):
        raise InvalidInput(f"lane is one of {', '.join(Lane)}", field="lane")
    return await service.accept(caller, uri, inputs, params=asked.get("params"), lane=lane, options=options)


def _number(asked: Mapping[str, Any], name: str) -> float | None:
    value = asked.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InvalidInput(f"{name} must be a number of seconds", field=name)
    return value


def wait_seconds(preferences: list[str]) -> float | None:
    """What `Prefer: wait=N` asks for, at most a minute; None where it does not."""
    found = _WAIT.search(",".join(preferences))
    return min(float(found[1]), LONGEST_WAIT_SECONDS) if found else None


def _accepted(job: Job, headers: Mapping[str, str] | None = None) -> Response:
    place = f"{JOBS}/{job.id}"
    status = 200 if job.is_final else 202
    more = {**(headers or {}), "Location": place, **({} if job.is_final else _ASK_AGAIN)}
    return Response(orjson.dumps(job_view(job)), status, headers=more, media_type=JSON)


async def _final(ended: Ended, headers: Mapping[str, str]) -> Response:
    """The job with its predictions, which are JSON already where the job's input was."""
    job, stored = ended
    body = orjson.dumps(job_view(job))
    if job.status is JobStatus.SUCCEEDED:
        predictions = await as_json(f"job {job.id}", stored)
        body = b'%b,"predictions":%b}' % (body[:-1], predictions)
    return Response(body, headers={**headers, "Location": f"{JOBS}/{job.id}"}, media_type=JSON)


@router.get("/{job_id}", response_model=JobView, responses={s: PROBLEMS[s] for s in (401, 403, 404, 422, 503)})
async def get_job(
    request: Request,
    job_id: UUID,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="Seconds to wait for its end.")] = 0.0,
) -> Response:
    """A job as it is now, or at its end."""
    service = service_of(request)
    caller = await caller_of(request, Scope.READ)
    job = await service.find(caller, job_id)
    if wait and not job.is_final:
        ended = await while_asked(request.scope, service.wait_ended(caller, job, wait))
        job = ended[0] if ended else await service.find(caller, job_id)
    headers = {} if job.is_final else _ASK_AGAIN
    return Response(orjson.dumps(job_view(job)), headers=headers, media_type=JSON)


@router.get(
    "/{job_id}/result",
    response_model=ResultView,
    responses={
        200: {"description": "The predictions", "content": {ARROW: {}}},
        202: {"model": JobView, "description": "Not final yet"},
        **{s: PROBLEMS[s] for s in (401, 403, 404, 409, 422, 503)},
    },
)
async def get_result(
    request: Request,
    job_id: UUID,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="Seconds to wait for its end.")] = 0.0,
) -> Response:
    """A job's predictions, as JSON or, with `Accept: application/vnd.apache.arrow.stream`, as an Arrow stream."""
    service = service_of(request)
    caller = await caller_of(request, Scope.READ)
    job, stored = await service.find_ended(caller, job_id)
    if wait and not job.is_final and (ended := await while_asked(request.scope, service.wait_ended(caller, job, wait))):
        job, stored = ended
    if not job.is_final:
        return Response(orjson.dumps(job_view(job)), 202, headers=_ASK_AGAIN, media_type=JSON)
    what = f"job {job_id}"
    if job.status is not JobStatus.SUCCEEDED:
        decoded(what, stored)  # raises what says why
    if prefers_arrow(request.headers.get("accept", ""), stored.format):
        return Response(await as_arrow(what, stored), media_type=ARROW)
    return Response(b'{"predictions":%b}' % await as_json(what, stored), media_type=JSON)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    response_model=JobView,
    responses={
        200: {"model": JobView, "description": "It was final already"},
        **{s: PROBLEMS[s] for s in (401, 403, 404, 422, 503)},
    },
)
async def cancel(
    request: Request,
    job_id: UUID,
    terminate: Annotated[bool, Query(description="Stop a call that predicts it now.")] = False,
) -> Response:
    """Withdraw a job: it is not predicted, or what is being predicted is not kept."""
    service = service_of(request)
    caller = await caller_of(request, Scope.SUBMIT)
    job = await service.find(caller, job_id)
    if job.is_final and not (terminate and job.status is JobStatus.CANCELLED):
        return Response(orjson.dumps(job_view(job)), media_type=JSON)
    job = await service.cancel(job_id, terminate=terminate)
    return Response(orjson.dumps(job_view(job)), 202, media_type=JSON)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobView,
    responses={s: PROBLEMS[s] for s in (401, 403, 404, 409, 422, 503)},
)
async def retry(request: Request, job_id: UUID) -> Response:
    """Queue a job again that failed, was cancelled, expired or is dead, with all its attempts."""
    service = service_of(request)
    caller = await caller_of(request, Scope.SUBMIT)
    job = await service.find(caller, job_id)
    if not await service.retry_job(job_id):
        raise Problem(409, f"job {job_id} is {job.status}: there is nothing to try again")
    return _accepted(await service.find(caller, job_id))


@router.get("", response_model=JobPage, responses={s: PROBLEMS[s] for s in (401, 403, 422, 503)})
async def list_jobs(
    request: Request,
    status: JobStatus | None = None,
    model: Annotated[str | None, Query(max_length=500, description="A model URI.")] = None,
    batch: UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 50,
    cursor: UUID | None = None,
) -> Response:
    """Jobs, newest first."""
    service = service_of(request)
    caller = await caller_of(request, Scope.READ)
    if unknown := request.query_params.keys() - _FILTERS:
        raise InvalidInput(f"{min(unknown)[:80]!r} is no parameter of this list")
    if cursor is not None and not _can_be_job(cursor):
        raise InvalidInput("cursor is none that a page had", field="cursor")
    jobs = await service.page(caller, status=status, model=model, batch_id=batch, before=cursor, limit=limit + 1)
    after = str(jobs[limit - 1].id) if len(jobs) > limit else None
    body = {"data": [job_view(job) for job in jobs[:limit]], "next_cursor": after}
    return Response(orjson.dumps(body), media_type=JSON)


def _can_be_job(job_id: UUID) -> bool:
    return job_id.version == 7 and id_time(job_id).year >= 2020
