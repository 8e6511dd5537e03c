"""A server that is told to stop: what only waits is answered with what is known by then, and nothing holds it up."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from producer.programs import api_command
from pyfunq.environment import child_environment
from pyfunq.http_transport import trusted
from pyfunq.local.server import free_port
from pyfunq.settings import Settings
from tests.integration.api.conftest import ApiServer
from tests.integration.conftest import SETOSA, split
from tests.programs import until

JOB = {"model": "models:/iris/1", **split(SETOSA)}
IN_PROGRESS = "pyfunq_http_requests_in_progress"


async def test_what_waits_is_answered_when_the_server_stops(
    settings: Settings, iris_model: str, eventually: Callable[..., Any]
) -> None:
    server = ApiServer(settings)
    url = await asyncio.to_thread(server.__enter__)
    async with httpx.AsyncClient(base_url=url, timeout=60, verify=trusted()) as http:
        job = (await http.post("/v1/jobs", json=JOB)).json()["id"]
        waiting = [
            asyncio.ensure_future(request)
            for request in (
                http.post("/v1/jobs", json=JOB, headers={"Prefer": "wait=60"}),
                http.get(f"/v1/jobs/{job}?wait=60"),
                http.get(f"/v1/jobs/{job}/result?wait=60"),
                http.post("/v1/jobs/final?wait=60", json={"ids": [job]}),
                http.post("/invocations?model=models:/iris/1", json=split(SETOSA)),
            )
        ]
        told = asyncio.Event()
        following = asyncio.ensure_future(follow(http, f"/v1/jobs/{job}/events", told))

        async def all_wait() -> bool:
            # With the stream of events and this one.
            return f"{IN_PROGRESS} {len(waiting) + 2}.0" in (await http.get("/metrics")).text

        await eventually("all of them wait", all_wait)
        await asyncio.wait_for(told.wait(), 60)
        begun = time.monotonic()
        await asyncio.to_thread(server.__exit__)
        assert time.monotonic() - begun < 10
        answers = await asyncio.gather(*waiting)
        assert await following == 200
    assert [answer.status_code for answer in answers] == [202, 200, 202, 200, 504]
    assert answers[0].json()["status"] == answers[1].json()["status"] == "queued"
    assert answers[3].json() == {"data": []}
    assert answers[4].headers["location"].startswith("/v1/jobs/")


async def follow(http: httpx.AsyncClient, path: str, told: asyncio.Event) -> int:
    """Reads a stream to its end, as it should have one; `told`: a status has come."""
    async with http.stream("GET", path) as response:
        async for line in response.aiter_lines():
            if line == "event: status":
                told.set()
    return response.status_code


@pytest.mark.parametrize("processes", [1, 2])
def test_who_stops_as_told_has_not_failed(settings: Settings, processes: int) -> None:
    port = free_port()
    command = api_command(host="127.0.0.1", port=port, processes=processes)
    program = subprocess.Popen(command, env=child_environment(settings), stderr=subprocess.DEVNULL)

    def is_ready() -> bool:
        assert program.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    until("it is ready", is_ready)
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 0
