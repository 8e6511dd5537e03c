"""What goes between client and API: values as documents, and problem documents as errors."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from pyfunq import errors
from pyfunq.entries import StoredResult
from pyfunq.errors import InputTooLarge, InvalidInput, PyFunQError, WrongApi
from pyfunq.inputs import FORMATS, JSON_OPTIONS, as_table, check_json, encode_table
from pyfunq.job import GONE_SECONDS, Batch, Job, JobError, JobStatus
from pyfunq.outcomes import BatchPart, batch_part
from pyfunq.signature import shown_name

JSON, NDJSON, CSV = "application/json", "application/x-ndjson", "text/csv"
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
MOST_BULK_JOBS = 100_000
MOST_BULK_BYTES = 64 * 1024 * 1024
"""Of one request that submits many jobs."""
MOST_WATCHED = 5_000
"""Jobs that one request waits for."""
LONGEST_WAIT_SECONDS = 30.0
"""Shorter than the minute after which proxies commonly give a silent connection up."""
WEBHOOK_HEADER = "PyFunQ-Webhook"
"""Beside a body that is no JSON object: the URL that is told of the job's end."""
ARROW_FIELD = "arrow"
"""Of a line of many inputs: its value is an Arrow IPC stream in base64."""

_KINDS: tuple[type[PyFunQError], ...] = (
    errors.InvalidInput,
    errors.InputTooLarge,
    errors.MalformedInput,
    errors.InvalidModelURI,
    errors.ModelNotAllowed,
    errors.ModelNotFound,
    errors.IdempotencyConflict,
    errors.UnknownJob,
    errors.UnknownBatch,
    errors.FileUnreadable,
    errors.InputNotAllowed,
    errors.InputUnavailable,
    errors.SubmissionStopped,
    errors.LedgerUnavailable,
    errors.AcceptanceUnknown,
    errors.QueueUnavailable,
    errors.RegistryUnavailable,
    errors.BacklogFull,
    errors.RateLimited,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.JobFailed,
    errors.JobCancelled,
    errors.JobExpired,
    errors.JobDead,
)
_BY_CODE: dict[str, type[PyFunQError]] = {kind.code: kind for kind in _KINDS}
_BY_STATUS: dict[int, type[PyFunQError]] = {
    400: errors.MalformedInput,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    413: errors.InputTooLarge,
    422: errors.InvalidInput,
    429: errors.RateLimited,
    502: errors.ApiUnavailable,
    503: errors.ApiUnavailable,
    504: errors.ApiUnavailable,
}


def parsed(body: bytes, url: str) -> Any:
    """A JSON object. Raises WrongApi."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise WrongApi(f"what answers at {url} is no PyFunQ API: its answer is no JSON object")
    return document


def error_of(status: int, headers: Mapping[str, str], body: bytes, url: str) -> PyFunQError:
    """What an answer other than success says."""
    if not headers.get("content-type", "").startswith("application/problem+json"):
        kind = _BY_STATUS.get(status)
        if kind is not None and not issubclass(kind, InvalidInput):
            return kind(f"{url} answered {status}, and not as a PyFunQ API does")
        return WrongApi(f"what answers at {url} is no PyFunQ API: it answered {status} without saying why")
    problem = parsed(body, url)
    code, detail = str(problem.get("code", "")), str(problem.get("detail", ""))
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if kind is None:
        return errors.RequestRefused(f"the API answered {status}: {detail}", status=status, api_code=code)
    if issubclass(kind, InvalidInput):
        return kind(detail, field=_field_of(problem))
    retry_after = headers.get("retry-after", "")
    if issubclass(kind, errors.BacklogFull | errors.RateLimited) and retry_after.isdigit():
        return kind(detail, retry_after_seconds=float(retry_after))
    return kind(detail)


def _field_of(problem: Mapping[str, Any]) -> str | None:
    places = problem.get("errors")
    if not isinstance(places, list) or not places:
        return None
    last = str(places[0].get("field") or str(places[0].get("pointer", "")).rpartition("/")[2])
    return last.replace("~1", "/").replace("~0", "~") or None


def job_of(view: Mapping[str, Any]) -> Job:
    """Raises WrongApi for what is no job."""
    try:
        created = _time(view["created_at"])
        if created is None:
            raise ValueError("created_at")
        return Job(
            id=UUID(view["id"]),
            status=JobStatus(view["status"]),
            model_uri=view["model"],
            lane=view["lane"],
            rows=view["rows"],
            attempt=view["attempt"],
            max_attempts=view["max_attempts"],
            created_at=created,
            crashes=view.get("crashes", 0),
            retries=view["retries"],
            failures=view["failures"],
            timeout_seconds=view["timeout"],
            model_name=view["model_name"],
            model_version=view["model_version"],
            run_id=view.get("run_id"),
            experiment_id=view.get("experiment_id"),
            batch_id=None if view["batch_id"] is None else UUID(view["batch_id"]),
            error=_job_error(view["error"]),
            tenant=view.get("tenant"),
            metadata=view["metadata"],
            started_at=_time(view["started_at"]),
            finished_at=_time(view["finished_at"]),
            expires_at=_time(view["expires_at"]),
        )
    except (KeyError, TypeError, ValueError):
        raise WrongApi("what answers is no PyFunQ API, or of another version: it sent no job") from None


def batch_of(view: Mapping[str, Any]) -> Batch:
    """Raises WrongApi for what is no batch."""
    try:
        created, error = _time(view["created_at"]), _job_error(view["error"])
        if created is None:
            raise ValueError("created_at")
        silent = view.get("status") == "stopped" and error is None
        return Batch(
            id=UUID(view["id"]),
            model_uri=view["model"],
            created_at=created,
            submitted_at=_time(view["submitted_at"]),
            error=error,
            jobs=view["jobs"],
            rows=view["rows"],
            rows_finished=view["rows_finished"],
            counts={JobStatus(status): n for status, n in view["counts"].items() if n},
            source=view["source"],
            source_rows=view["rows_expected"],
            silent_seconds=2 * GONE_SECONDS if silent else 0.0,
        )
    except (KeyError, TypeError, ValueError):
        raise WrongApi("what answers is no PyFunQ API, or of another version: it sent no batch") from None


def part_of(batch_id: UUID, view: Mapping[str, Any]) -> BatchPart:
    """One of `GET /v1/batches/{id}/parts`. Raises WrongApi."""
    try:
        fmt, payload = None, None
        if ARROW_FIELD in view:
            fmt, payload = "arrow", base64.b64decode(view[ARROW_FIELD])
        elif "predictions" in view:
            fmt, payload = "json", orjson.dumps(view["predictions"])
        stored = StoredResult(
            status=JobStatus(view["status"]), format=fmt, payload=payload, error=_job_error(view["error"])
        )
        index, rows = int(view["index"]), int(view["rows"])
    except (KeyError, TypeError, ValueError):
        raise WrongApi("what answers is no PyFunQ API, or of another version: it sent no results") from None
    return batch_part(batch_id, index, rows, stored)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _job_error(view: Mapping[str, Any] | None) -> JobError | None:
    return None if view is None else JobError(code=view["code"], message=view["message"])


def as_json(inputs: Mapping[Any, Any], params: Mapping[str, Any] | None) -> dict[str, Any]:
    """A JSON input with its params, as the API takes them. Raises InvalidInput; most of it is left to the API."""
    plain = dict(inputs)
    if plain.get("params") is not None and params is not None:
        raise InvalidInput("params are given twice: within the input and beside it", field="params")
    if unknown := [name for name in plain if name not in FORMATS and name != "params"]:
        allowed = ", ".join((*FORMATS, "params"))
        raise InvalidInput(
            f"{shown_name(unknown[0])} is not an input format; allowed: {allowed}", field=str(unknown[0])
        )
    if params is not None:
        plain["params"] = dict(params)
    check_json(plain, "the input")
    return plain


def dumps(document: Any) -> bytes:
    """JSON of what was checked. Raises InvalidInput."""
    try:
        return orjson.dumps(document, option=JSON_OPTIONS)
    except orjson.JSONEncodeError:
        raise InvalidInput("the input cannot be encoded as JSON") from None


def as_arrow(inputs: Any) -> bytes:
    """A DataFrame or Arrow table as an Arrow IPC stream. Raises InvalidInput."""
    table = as_table(inputs)
    if not table.num_rows:
        raise InvalidInput("the input has no rows")
    return encode_table(table).payload


def many_lines(inputs: Iterable[Any]) -> bytes:
    """Many inputs, a line each. Raises InvalidInput, InputTooLarge."""
    lines: list[bytes] = []
    size = 0
    for line in _lines(inputs):
        size += len(line) + 1
        if len(lines) == MOST_BULK_JOBS or size > MOST_BULK_BYTES:
            raise InputTooLarge(
                f"more than {MOST_BULK_JOBS:,} inputs or {MOST_BULK_BYTES // 2**20} MiB at once; "
                "submit fewer at a time, or a batch"
            )
        lines.append(line)
    return b"\n".join(lines)


def _lines(inputs: Iterable[Any]) -> Iterator[bytes]:
    for number, one in enumerate(inputs):
        try:
            if isinstance(one, Mapping):
                yield dumps(as_json(one, None))
            else:
                yield dumps({ARROW_FIELD: base64.b64encode(as_arrow(one)).decode()})
        except InvalidInput as exc:
            raise type(exc)(f"inputs[{number}]: {exc.message}", field=exc.field) from exc
