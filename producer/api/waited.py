"""Predictions in one request: submit, wait, and say with the right status where there are none."""

from collections.abc import Mapping
from typing import Any

from fastapi import Request

from producer.api.callers import Caller
from producer.api.jobs import PROBLEMS, problem_answer, wait_seconds
from producer.api.problems import Problem
from producer.api.rates import while_asked
from producer.api.service import Ended
from producer.api.state import state_of
from producer.api.views import JOBS, is_retryable
from pyfunq.job import Job, JobStatus
from pyfunq.options import JobOptions

ANSWERS: dict[int | str, dict[str, Any]] = {
    **PROBLEMS,
    502: problem_answer("The model cannot be loaded, took its process down, or answered what cannot be stored"),
    504: problem_answer("Not ready in time. Where the job goes on, `Location` says where to ask for it"),
}
_STATUSES = {
    "invalid_input": 422,
    "malformed_input": 422,
    "input_too_large": 413,
    "model_raised": 422,
    "invalid_model_uri": 422,
    "model_not_found": 404,
    "model_not_allowed": 404,
    "timed_out": 504,
}
_BY_END = {JobStatus.CANCELLED: (409, "job_cancelled"), JobStatus.EXPIRED: (504, "job_expired")}


async def predicted(
    request: Request, caller: Caller, model: str, inputs: Any, params: Mapping[str, Any] | None = None
) -> Ended:
    """A job that succeeded, and its result. Raises Problem, and what `Service.accept` raises.

    Waits for PYFUNQ_API_WAIT_SECONDS, or for less where the caller says so with `Prefer: wait=N`.
    """
    state = state_of(request)
    options = JobOptions.of(None, None, 0, request.headers.get("idempotency-key"))
    job = await state.service.accept(caller, model, inputs, params=params, options=options)
    preferred = wait_seconds(request.headers.getlist("prefer"))
    longest = state.settings.api_wait_seconds
    seconds = longest if preferred is None else min(preferred, longest)
    ended = await while_asked(request.scope, state.service.wait_ended(caller, job, seconds))
    if ended is None:
        raise _late(job)
    if ended[0].status is not JobStatus.SUCCEEDED:
        raise _failed(ended[0])
    return ended


def place_of(job: Job) -> dict[str, str]:
    return {"Location": f"{JOBS}/{job.id}"}


def _late(job: Job) -> Problem:
    return Problem(
        504,
        f"job {job.id} is not finished yet; it goes on: ask {JOBS}/{job.id}",
        code="wait_timeout",
        headers={**place_of(job), "Retry-After": "1"},
        retryable=True,
    )


def _failed(job: Job) -> Problem:
    error = job.error
    code = error.code if error else "job_failed"
    retryable = is_retryable(code)
    status = _STATUSES.get(code, 503 if retryable else 502)
    status, code = _BY_END.get(job.status, (status, code))
    detail = f"job {job.id} {job.status}{f': {error.message}' if error else ''}"
    headers = {**place_of(job), **({"Retry-After": "2"} if status == 503 else {})}
    return Problem(status, detail, code=code, headers=headers, retryable=retryable)
