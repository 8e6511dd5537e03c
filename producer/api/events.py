"""Server-sent events: a job or a batch again whenever it changes, until it is final."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Scope

from producer.api.jobs import PROBLEMS
from producer.api.problems import Problem
from producer.api.rates import while_asked
from producer.api.state import caller_of, service_of
from producer.api.views import BATCHES, JOBS, batch_view, job_view
from pyfunq import api_keys
from pyfunq.errors import LedgerUnavailable, UnknownBatch, UnknownJob

router = APIRouter(tags=["events"])

EVENT_STREAM = "text/event-stream"
HEARTBEAT_SECONDS = 15.0
_AGAIN_SECONDS = 2.0
"""After Postgres was away; also what a client is told to wait before it connects again."""
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_LastEventId = Annotated[str | None, Header(description="The `id` of the last event that was received.")]
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events until it is final", "content": {EVENT_STREAM: {}}},
    204: {"description": "The last event was the final one: do not connect again"},
    **{s: PROBLEMS[s] for s in (401, 403, 404, 422, 503)},
}

Views = Callable[[], AsyncIterator[dict[str, Any]]]
"""Views of the same thing, one after another, that end with the final one."""


@router.get(f"{JOBS}/{{job_id}}/events", response_class=Response, responses=_RESPONSES)
async def job_events(request: Request, job_id: UUID, last_event_id: _LastEventId = None) -> Response:
    """A job's states as `status` events, each with the job as its data."""
    service = service_of(request)
    job = await service.find(await caller_of(request, api_keys.Scope.READ), job_id)

    async def views() -> AsyncIterator[dict[str, Any]]:
        async for state in service.job_states(job_id):
            yield job_view(state)

    return _response(request, views, last_event_id, job_view(job) if job.is_final else None)


@router.get(f"{BATCHES}/{{batch_id}}/events", response_class=Response, responses=_RESPONSES)
async def batch_events(request: Request, batch_id: UUID, last_event_id: _LastEventId = None) -> Response:
    """A batch's states, each with the batch as its data: `status` events where its status changes, else `progress`."""
    service = service_of(request)
    batch = await service.find_batch(await caller_of(request, api_keys.Scope.READ), batch_id)

    async def views() -> AsyncIterator[dict[str, Any]]:
        async for state in service.batch_states(batch_id):
            yield batch_view(state)

    return _response(request, views, last_event_id, batch_view(batch) if batch.is_final else None)


def _response(request: Request, views: Views, last_id: str | None, final: dict[str, Any] | None) -> Response:
    if final is not None and last_id == _id(orjson.dumps(final)):
        return Response(status_code=204)

    async def check() -> None:
        await caller_of(request, api_keys.Scope.READ)

    body = _with_heartbeats(request.scope, _events(views, last_id), check)
    return StreamingResponse(body, media_type=EVENT_STREAM, headers=_HEADERS)


async def _events(views: Views, last_id: str | None) -> AsyncIterator[bytes]:
    """An event for each view that differs from the one before, or from the one that the client has."""
    yield b"retry: %d\n\n" % (_AGAIN_SECONDS * 1000)
    status = None
    while True:
        try:
            async for view in views():
                data = orjson.dumps(view)
                name = b"status" if view["status"] != status else b"progress"
                status = view["status"]
                if (event_id := _id(data)) != last_id:
                    last_id = event_id
                    yield b"event: %b\nid: %b\ndata: %b\n\n" % (name, event_id.encode(), data)
            return
        except (UnknownJob, UnknownBatch):
            return
        except LedgerUnavailable:
            await asyncio.sleep(_AGAIN_SECONDS)


async def _with_heartbeats(
    scope: Scope, events: AsyncIterator[bytes], check: Callable[[], Awaitable[None]]
) -> AsyncIterator[bytes]:
    """Ends with the events, when the server stops, and soon after a key was revoked.

    A proxy sees that the connection is in use.
    """
    upcoming = asyncio.ensure_future(anext(events, b""))
    try:
        while True:
            waited = await while_asked(scope, asyncio.wait([upcoming], timeout=HEARTBEAT_SECONDS))
            if waited is None:
                return
            if not waited[0]:
                try:
                    await check()
                except Problem:
                    return
                except LedgerUnavailable:
                    pass
                yield b": still here\n\n"
                continue
            if not (event := upcoming.result()):
                return
            yield event
            upcoming = asyncio.ensure_future(anext(events, b""))
    finally:
        upcoming.cancel()


def _id(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=9).hexdigest()
