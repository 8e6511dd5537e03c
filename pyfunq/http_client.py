"""The client over HTTP: what `AsyncClient` gives, from a PyFunQ API instead of its database and queue."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Self
from uuid import UUID

import httpx

from pyfunq.batches import batch_id_of, stopped_text, valid_lane
from pyfunq.client import AsyncClient
from pyfunq.client_settings import settings_of
from pyfunq.entries import StoredResult
from pyfunq.errors import (
    InvalidInput,
    JobFailed,
    NotConfigured,
    NotOverHttp,
    PyFunQError,
    RequestRefused,
    SubmissionStopped,
    WaitTimeout,
    WrongApi,
)
from pyfunq.http_bodies import batch_body
from pyfunq.http_transport import Ask, Transport, json_of
from pyfunq.http_wire import (
    ARROW,
    JSON,
    LONGEST_WAIT_SECONDS,
    NDJSON,
    WEBHOOK_HEADER,
    as_arrow,
    as_json,
    batch_of,
    dumps,
    job_of,
    many_lines,
    part_of,
)
from pyfunq.ids import id_time, new_id
from pyfunq.inputs import encode_params
from pyfunq.job import Batch, Job, JobStatus, Lane
from pyfunq.model_uri import parse_model_uri
from pyfunq.options import JobOptions
from pyfunq.outcomes import BatchPart, decoded
from pyfunq.results import decode_result
from pyfunq.settings import Settings
from pyfunq.submitted import job_id_of

Jobs = list[Job]  # the clients' method `list` hides the type in their bodies

_MOST_POLLS = 64
_MOST_LISTED = 1_000
_MOST_QUERY_BYTES = 32 * 1024
_GRACE_SECONDS = 5.0
_SOONEST_AGAIN_SECONDS = 0.2
_PROGRESS_SECONDS = 1.0
_LONGEST_COMMIT_SECONDS = 6 * 3600.0
"""A batch waits for room in its lane."""


class HttpAsyncClient(AsyncClient):
    """What `AsyncClient(base_url=...)` makes. It belongs to the event loop that entered it.

    Beside what the methods of `AsyncClient` raise, these raise ApiUnavailable, Unauthenticated, Forbidden, RateLimited,
    RequestRefused and WrongApi. Submits bring an idempotency key, and are tried again when the API is away.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        **overrides: Any,
    ) -> None:
        """Raises NotConfigured where there is no usable URL."""
        self._settings = settings_of(settings, base_url, api_key, overrides)
        if self._settings.api_url is None:
            raise NotConfigured("PYFUNQ_API_URL is not set")
        key = self._settings.api_key
        self._api = Transport(self._settings.api_url, None if key is None else key.get_secret_value())

    async def __aenter__(self) -> Self:
        await self._api.__aenter__()
        self._polls = asyncio.Semaphore(_MOST_POLLS)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._api.__aexit__(*exc_info)

    async def submit(
        self,
        model: str,
        inputs: Any,
        *,
        params: Mapping[str, Any] | None = None,
        lane: Lane | str = Lane.INTERACTIVE,
        expires_in: float | timedelta | None = None,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
        retries: int = 0,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        webhook: str | None = None,
    ) -> Job:
        JobOptions.of(expires_in, timeout, retries, idempotency_key, metadata)
        asked = {
            "model": str(parse_model_uri(model)),
            "lane": str(valid_lane(lane)),
            "expires_in": _seconds(expires_in),
            "timeout": _seconds(timeout),
            "retries": retries,
        }
        query: dict[str, str] = {}
        headers = {"Idempotency-Key": idempotency_key or new_id().hex}
        if isinstance(inputs, Mapping):
            more: dict[str, Any] = {} if metadata is None else {"metadata": dict(metadata)}
            if webhook is not None:
                more["webhook"] = {"url": webhook}
            media, body = JSON, dumps({**as_json(inputs, params), **asked, **more})
        else:
            query = _query(asked, params, metadata)
            media, body = ARROW, await asyncio.to_thread(as_arrow, inputs)
            if webhook is not None:
                headers[WEBHOOK_HEADER] = webhook
        response = await self._api.ask(
            Ask(
                method="POST",
                path="/v1/jobs",
                params=query,
                headers={"Content-Type": media, **headers},
                body=body,
                accepts=True,
            )
        )
        return job_of(json_of(response))

    async def submit_many(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        params: Mapping[str, Any] | None = None,
        lane: Lane | str = Lane.INTERACTIVE,
        expires_in: float | timedelta | None = None,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
        retries: int = 0,
    ) -> Sequence[Job]:
        JobOptions.of(expires_in, timeout, retries)
        asked = {
            "model": str(parse_model_uri(model)),
            "lane": str(valid_lane(lane)),
            "expires_in": _seconds(expires_in),
            "timeout": _seconds(timeout),
            "retries": retries,
        }
        body = await asyncio.to_thread(many_lines, inputs)
        if not body:
            return []
        response = await self._api.ask(
            Ask(
                method="POST",
                path="/v1/jobs/bulk",
                params=_query(asked, params, None),
                headers={"Content-Type": NDJSON, "Idempotency-Key": new_id().hex},
                body=body,
                accepts=True,
            )
        )
        return _jobs_of(json_of(response))

    async def get(self, job: Job | UUID | str) -> Job:
        return job_of(await self._json(f"/v1/jobs/{job_id_of(job)}"))

    async def list(
        self,
        *,
        status: JobStatus | str | None = None,
        model: str | None = None,
        batch: Batch | UUID | str | None = None,
        before: Job | UUID | str | None = None,
        limit: int = 50,
    ) -> Jobs:
        found: Jobs = []
        query = {
            "status": None if status is None else str(JobStatus(status)),
            "model": None if model is None else str(parse_model_uri(model)),
            "batch": None if batch is None else str(batch_id_of(batch)),
        }
        cursor = None if before is None else str(job_id_of(before))
        while len(found) < limit:
            page = {**query, "cursor": cursor, "limit": str(min(_MOST_LISTED, limit - len(found)))}
            view = await self._json("/v1/jobs", {name: value for name, value in page.items() if value is not None})
            found += [job_of(one) for one in view.get("data", ())]
            if (cursor := view.get("next_cursor")) is None:
                break
        return found

    async def wait(self, job: Job | UUID | str, timeout: float | None = None) -> Job:  # noqa: ASYNC109
        job_id = job_id_of(job)

        def ended(response: httpx.Response) -> Job | None:
            now = job_of(json_of(response))
            return now if now.is_final else None

        now: Job = await self._poll(job_id, f"/v1/jobs/{job_id}", JSON, timeout, ended)
        return now

    async def result(self, job: Job | UUID | str, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        job_id = job_id_of(job)
        try:
            # Either will do: so it comes as it is kept.
            response = await self._poll(
                job_id,
                f"/v1/jobs/{job_id}/result",
                f"{ARROW}, {JSON}",
                timeout,
                lambda response: None if response.status_code == 202 else response,
            )
        except (JobFailed, RequestRefused) as exc:
            raise await self._why(job_id, exc) from None
        if response.headers.get("content-type", "").startswith(ARROW):
            return decode_result("arrow", response.content)
        document = json_of(response)
        if "predictions" not in document:
            raise WrongApi("what answers is no PyFunQ API, or of another version: it sent no predictions")
        return document["predictions"]

    async def _why(self, job_id: UUID, refused: PyFunQError) -> PyFunQError:
        """A problem names the error; how the job ended, the job itself."""
        if isinstance(refused, RequestRefused) and refused.status != 409:
            return refused
        now = await self.get(job_id)
        if not now.is_final or now.status is JobStatus.SUCCEEDED:
            code = refused.api_code if isinstance(refused, RequestRefused) else None
            return JobFailed(refused.message.removeprefix("the API answered 409: "), error_code=code)
        try:
            decoded(f"job {job_id}", StoredResult(status=now.status, format=None, payload=None, error=now.error))
        except JobFailed as exc:
            return exc
        return refused

    async def _poll(
        self,
        job_id: UUID,
        path: str,
        accept: str,
        timeout: float | None,  # noqa: ASYNC109
        ended: Callable[[httpx.Response], "Any | None"],
    ) -> Any:
        """Asks until the answer is one of a job that ended. Raises WaitTimeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        late = WaitTimeout(f"job {job_id} was not finished after {timeout or 0:g} s; it goes on")
        try:
            async with asyncio.timeout(None if timeout is None else timeout + _GRACE_SECONDS):
                while True:
                    begun = time.monotonic()
                    left = LONGEST_WAIT_SECONDS if deadline is None else max(0.0, deadline - begun)
                    seconds = min(left, LONGEST_WAIT_SECONDS)
                    async with self._polls:
                        response = await self._api.ask(_held(path, seconds, accept, deadline))
                    if (found := ended(response)) is not None:
                        return found
                    if deadline is not None and time.monotonic() >= deadline:
                        raise late
                    if time.monotonic() < begun + min(seconds, _SOONEST_AGAIN_SECONDS):
                        await asyncio.sleep(_SOONEST_AGAIN_SECONDS)
        except TimeoutError as exc:
            if isinstance(exc, WaitTimeout):
                raise
            raise late from None

    async def _some_final(self, ids: Sequence[UUID], seconds: float) -> Sequence[Job]:
        held = min(seconds, LONGEST_WAIT_SECONDS)
        response = await self._api.ask(
            Ask(
                method="POST",
                path="/v1/jobs/final",
                params={"wait": f"{held:.3f}"},
                headers={"Content-Type": JSON},
                body=dumps({"ids": [str(job_id) for job_id in ids]}),
                wait_seconds=held,
            )
        )
        return [job_of(view) for view in json_of(response).get("data", ())]

    async def cancel(self, job: Job | UUID | str, *, terminate: bool = False) -> Job:
        query = {"terminate": "true"} if terminate else None
        ask = Ask(method="POST", path=f"/v1/jobs/{job_id_of(job)}/cancel", params=query)
        return job_of(json_of(await self._api.ask(ask)))

    async def _cancel_all(self, ids: Sequence[UUID]) -> None:
        for job_id in ids:
            await self.cancel(job_id)

    async def requeue_dead(self, jobs: Iterable[Job | UUID | str]) -> int:
        queued = 0
        for job in jobs:
            now = await self.get(job)
            if now.status is JobStatus.DEAD:
                await self._api.ask(Ask(method="POST", path=f"/v1/jobs/{now.id}/retry", repeatable=False))
                queued += 1
        return queued

    async def purge_dead(self, *, older_than_seconds: float = 0.0) -> int:
        raise NotOverHttp

    async def submit_batch(
        self,
        model: str,
        source: Any,
        *,
        params: Mapping[str, Any] | None = None,
        chunk_rows: int | None = None,
        lane: Lane | str = Lane.BULK,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
        retries: int = 0,
        by_reference: bool = False,
        resume: Batch | UUID | str | None = None,
        on_open: Callable[[UUID], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Batch:
        """As `AsyncClient.submit_batch`, streamed: what is read or made piece by piece is never held whole.

        `on_open` and `on_progress` are called when all of it is committed. A file or DataFrame is sent again where the
        API was away before it answered; other iterables can be read but once. Raises NotOverHttp for `by_reference` and
        `resume`.
        """
        if by_reference or resume is not None:
            raise NotOverHttp(
                "over HTTP batches go by value, and are not resumed: there is by_reference, and resume, "
                "where a client has the database's address"
            )
        JobOptions.of(None, timeout, retries)
        asked = {
            "model": str(parse_model_uri(model)),
            "lane": str(valid_lane(lane)),
            "chunk_rows": chunk_rows,
            "timeout": _seconds(timeout),
            "retries": retries,
        }
        body = await asyncio.to_thread(batch_body, source)
        response = await self._api.ask(
            Ask(
                method="POST",
                path="/v1/batches",
                params=_query(asked, params, None),
                headers={"Content-Type": body.media_type, **body.headers, "Idempotency-Key": new_id().hex},
                body=body.stream,
                repeatable=body.is_repeatable,
                accepts=True,
                wait_seconds=_LONGEST_COMMIT_SECONDS,
            )
        )
        batch = batch_of(json_of(response))
        if on_open is not None:
            on_open(batch.id)
        if on_progress is not None:
            on_progress(batch.rows)
        return batch

    async def get_batch(self, batch: Batch | UUID | str) -> Batch:
        return batch_of(await self._json(f"/v1/batches/{batch_id_of(batch)}"))

    async def _end_of(
        self,
        batch: Batch | UUID | str,
        timeout: float | None,  # noqa: ASYNC109
        tell: Callable[[Batch], None],
    ) -> Batch:
        batch_id = batch_id_of(batch)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            begun = time.monotonic()
            seconds = _PROGRESS_SECONDS if deadline is None else min(_PROGRESS_SECONDS, max(0.0, deadline - begun))
            async with self._polls:
                answer = await self._api.ask(_held(f"/v1/batches/{batch_id}", seconds, JSON, deadline))
            now = batch_of(json_of(answer))
            tell(now)
            if now.is_final:
                return now
            if now.is_stopped and now.finished == now.jobs:
                raise SubmissionStopped(stopped_text(now))
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout(f"batch {now.id} was not finished after {timeout:g} s; it goes on")
            if time.monotonic() < begun + min(seconds, _SOONEST_AGAIN_SECONDS):
                await asyncio.sleep(_SOONEST_AGAIN_SECONDS)

    async def batch_results(self, batch: Batch | UUID | str) -> AsyncIterator[BatchPart]:
        batch_id = batch_id_of(batch)
        start: int | None = 0
        while start is not None:
            page = await self._json(f"/v1/batches/{batch_id}/parts", {"start": str(start)})
            for view in page.get("data", ()):
                yield part_of(batch_id, view)
            start = page.get("next")

    async def cancel_batch(self, batch: Batch | UUID | str) -> Batch:
        ask = Ask(method="POST", path=f"/v1/batches/{batch_id_of(batch)}/cancel")
        return batch_of(json_of(await self._api.ask(ask)))

    async def _json(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        return json_of(await self._api.ask(Ask(method="GET", path=path, params=query)))


def _held(path: str, seconds: float, accept: str, deadline: float | None) -> Ask:
    return Ask(
        method="GET",
        path=path,
        params={"wait": f"{seconds:.3f}"},
        headers={"Accept": accept},
        wait_seconds=seconds,
        deadline=deadline,
    )


def _seconds(value: float | timedelta | None) -> float | None:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _query(
    asked: Mapping[str, Any], params: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None
) -> dict[str, str]:
    """What a body that is no JSON object has no place for. Raises InvalidInput."""
    query = {name: str(value) for name, value in asked.items() if value is not None}
    for name, value in (("params", params), ("metadata", metadata)):
        if (encoded := encode_params(value, name=name)) is not None:
            query[name] = encoded.decode()
    if sum(map(len, query.values())) > _MOST_QUERY_BYTES:
        raise InvalidInput(
            f"params and metadata of frames and of many inputs have at most {_MOST_QUERY_BYTES:,} bytes over HTTP",
            field="params",
        )
    return query


def _jobs_of(view: Mapping[str, Any]) -> Jobs:
    """Of the answer to many inputs: what they have in common is said once."""
    try:
        ids = [UUID(job_id) for job_id in view["ids"]]
        if len(ids) != len(view["rows"]) or not ids:
            raise ValueError("rows")
        first = job_of({**view["common"], "id": view["ids"][0], "rows": 0, "created_at": id_time(ids[0]).isoformat()})
        return [
            replace(first, id=job_id, rows=rows, created_at=id_time(job_id))
            for job_id, rows in zip(ids, view["rows"], strict=True)
        ]
    except (KeyError, TypeError, ValueError):
        raise WrongApi("what answers is no PyFunQ API, or of another version: it sent no jobs") from None
