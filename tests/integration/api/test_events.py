"""Server-sent events of jobs and batches: every change, resuming, heartbeats, the end."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from producer.api import events
from pyfunq.ids import new_id
from pyfunq.ledger import Ledger
from tests.integration.api.conftest import MakeKey, Workers
from tests.integration.conftest import split

Event = dict[str, Any]


async def received(http: httpx.AsyncClient, place: str, **headers: str) -> AsyncIterator[Event]:
    """The events as they come; heartbeats as {"comment": ...}."""
    event: Event = {}
    async with http.stream("GET", f"{place}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if not line:
                if "data" in event:
                    yield event
                event = {}
            elif line.startswith(":"):
                yield {"comment": line}
            else:
                name, _, value = line.partition(": ")
                event[name] = json.loads(value) if name == "data" else value


async def collected(http: httpx.AsyncClient, place: str, **headers: str) -> list[Event]:
    return [event async for event in received(http, place, **headers)]


async def job(http: httpx.AsyncClient, model: str) -> str:
    answer = await http.post("/v1/jobs", json={"model": model, **split([1.0], columns=["x"])})
    return str(answer.headers["location"])


async def test_a_jobs_states_until_it_is_final(http: httpx.AsyncClient, workers: Workers, moody_model: str) -> None:
    place = await job(http, moody_model)
    following = received(http, place)
    first = await anext(following)
    assert (first["event"], first["data"]["status"]) == ("status", "queued")

    async def rest() -> list[Event]:
        return [event async for event in following]

    events = await workers.while_(rest())
    assert events[-1]["data"]["status"] == "succeeded"
    assert events[-1]["data"] == (await http.get(place)).json()
    assert len({event["id"] for event in [first, *events]}) == len(events) + 1


async def test_resuming_gives_what_is_new(http: httpx.AsyncClient, workers: Workers, moody_model: str) -> None:
    place = await job(http, moody_model)
    following = received(http, place)
    seen = (await anext(following))["id"]
    await following.aclose()  # type: ignore[attr-defined]
    events = await workers.while_(collected(http, place, **{"Last-Event-ID": seen}))
    assert seen not in [event["id"] for event in events]
    assert events[-1]["data"]["status"] == "succeeded"
    assert [e["id"] for e in await collected(http, place, **{"Last-Event-ID": seen})] == [events[-1]["id"]]
    over = await http.get(f"{place}/events", headers={"Last-Event-ID": events[-1]["id"]})
    assert (over.status_code, over.content) == (204, b"")


async def test_a_batchs_progress_until_it_is_final(http: httpx.AsyncClient, workers: Workers, moody_model: str) -> None:
    body = b"".join(b'{"x": %d}\n' % x for x in range(4))
    query = {"model": moody_model, "chunk_rows": 1}
    answer = await http.post(
        "/v1/batches", params=query, content=body, headers={"Content-Type": "application/x-ndjson"}
    )
    place = answer.headers["location"]
    following = received(http, place)
    first = await anext(following)
    assert (first["event"], first["data"]["status"], first["data"]["rows_finished"]) == ("status", "running", 0)
    (one, *_) = await workers.ledger.list_jobs(limit=1)
    await workers.ledger.cancel([one.id])
    progress = await anext(following)
    assert (progress["event"], progress["data"]["rows_finished"]) == ("progress", 1)

    async def rest() -> list[Event]:
        return [event async for event in following]

    last = (await workers.while_(rest()))[-1]
    assert (last["event"], last["data"]["status"]) == ("status", "partly_succeeded")
    over = await http.get(f"{place}/events", headers={"Last-Event-ID": last["id"]})
    assert over.status_code == 204


async def test_a_heartbeat_and_the_end_of_a_revoked_key(
    http: httpx.AsyncClient,
    make_key: MakeKey,
    ledger: Ledger,
    moody_model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr("producer.api.callers._FRESH_SECONDS", 0.2)
    key = await make_key()
    accepted = await http.post("/v1/jobs", json={"model": moody_model, **split([1.0], columns=["x"])}, headers=key)
    following = received(http, accepted.headers["location"], **key)
    assert (await anext(following))["data"]["status"] == "queued"
    assert "comment" in await anext(following)
    await ledger.revoke_keys("test")
    async with asyncio.timeout(20):
        assert all("comment" in event for event in [event async for event in following])


async def test_a_closed_connection_stops_the_work(
    http: httpx.AsyncClient, moody_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    original = events._with_heartbeats

    async def watched(*args: Any) -> AsyncIterator[bytes]:
        try:
            async for event in original(*args):
                yield event
        finally:
            loop.call_soon_threadsafe(ended.set)

    monkeypatch.setattr(events, "_with_heartbeats", watched)
    following = received(http, await job(http, moody_model))
    await anext(following)
    assert not ended.is_set()
    await following.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        await ended.wait()


async def test_nobody_follows_what_is_not_there(http: httpx.AsyncClient) -> None:
    for place in ("jobs", "batches"):
        answer = await http.get(f"/v1/{place}/{new_id()}/events")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
