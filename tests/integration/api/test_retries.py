"""Clients of an API that is away for a while, refuses, breaks connections, or is killed: nothing is lost or doubled."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from pyfunq import http_transport
from pyfunq.client import AsyncClient
from pyfunq.errors import AcceptanceUnknown, ApiUnavailable, NotConfigured, PyFunQError, RateLimited, WrongApi
from pyfunq.http_transport import trusted
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.integration.api.conftest import ApiServer
from tests.integration.conftest import IRIS, SETOSA, Work, split
from tests.programs import Program

IRIS_1 = "models:/iris/1"
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
pytestmark = pytest.mark.usefixtures("iris_model")


class Flaky:
    """Around the API: does what is next in `faults` instead of, or after, answering."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.always: str | None = None
        self.requests: list[str] = []

    def around(self, app: Any) -> Any:
        async def serve(scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            self.requests.append(f"{scope['method']} {scope['path']}")
            fault = self.faults.pop(0) if self.faults else self.always
            if fault is None:
                return await app(scope, receive, send)
            if fault == "broken after":
                await app(scope, receive, _nowhere)
            await _fail(fault, send)

        return serve


async def _nowhere(message: Message) -> None:
    """The answer is lost."""


async def _fail(fault: str, send: Send) -> None:
    status, *retry_after = fault.split()
    if status == "broken":
        status, retry_after = "200", []
        headers = [(b"content-length", b"100"), (b"content-type", b"application/json")]
    else:
        headers = [(b"retry-after", seconds.encode()) for seconds in retry_after]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    # Of a body that ends before its length the server breaks the connection.
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


@pytest.fixture
async def client(settings: Settings, flaky: Flaky) -> AsyncIterator[AsyncClient]:
    with ApiServer(settings, flaky.around) as url:
        async with AsyncClient(base_url=url) as opened:
            yield opened


@pytest.fixture
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_transport, "_ATTEMPTS", 3)


@pytest.mark.parametrize("faults", [["503", "broken"], ["429 1"], ["broken after"], ["broken after", "502", "504"]])
@pytest.mark.parametrize("inputs", [split(SETOSA), pd.DataFrame([SETOSA], columns=IRIS)], ids=["json", "arrow"])
async def test_a_submit_is_tried_again_and_accepted_once(
    client: AsyncClient, flaky: Flaky, ledger: Ledger, faults: list[str], inputs: Any
) -> None:
    flaky.faults = list(faults)
    job = await client.submit(IRIS_1, inputs)
    assert [one.id for one in await ledger.list_jobs()] == [job.id]
    assert len(flaky.requests) == len(faults) + 1


async def test_many_are_accepted_once_too(client: AsyncClient, flaky: Flaky, ledger: Ledger) -> None:
    flaky.faults = ["broken after", "broken after"]
    jobs = await client.submit_many(IRIS_1, [split(SETOSA)] * 30)
    assert {job.id for job in jobs} == {job.id for job in await ledger.list_jobs(limit=100)}
    assert len(jobs) == 30


async def test_what_waits_goes_on_waiting(client: AsyncClient, flaky: Flaky, work: Work) -> None:
    job = await client.submit(IRIS_1, split(SETOSA))
    flaky.faults = ["503", "broken", "429", "broken after"]
    result = asyncio.create_task(client.result(job, timeout=60))
    while not result.done():
        await work.all()
        await asyncio.wait([result], timeout=0.05)
    assert await result == [0]


async def test_what_the_api_says_about_when_is_kept_to(client: AsyncClient, flaky: Flaky) -> None:
    flaky.faults = ["429 2"]
    begun = time.monotonic()
    await client.list()
    assert 2.0 <= time.monotonic() - begun < 20.0


async def test_the_callers_timeout_bounds_the_tries(client: AsyncClient, flaky: Flaky) -> None:
    job = await client.submit(IRIS_1, split(SETOSA))
    flaky.always = "503 30"
    begun = time.monotonic()
    with pytest.raises(ApiUnavailable):
        await client.wait(job, timeout=1)
    assert time.monotonic() - begun < 10
    flaky.always = "429 30"
    with pytest.raises(RateLimited):
        await client.result(job, timeout=1)


@pytest.mark.usefixtures("few_attempts")
async def test_what_nobody_can_say_is_said(client: AsyncClient, flaky: Flaky) -> None:
    flaky.always = "broken"
    with pytest.raises(AcceptanceUnknown):
        await client.submit(IRIS_1, split(SETOSA))
    flaky.always = "503"
    with pytest.raises(ApiUnavailable):
        await client.submit(IRIS_1, split(SETOSA))
    assert len(flaky.requests) == 6


async def test_what_cannot_be_repeated_is_not(client: AsyncClient, flaky: Flaky) -> None:
    flaky.always = "broken"
    with pytest.raises(AcceptanceUnknown):
        await client.submit_batch(IRIS_1, iter([pd.DataFrame({"x": [1.0]})]))
    assert flaky.requests == ["POST /v1/batches"]


async def test_no_answer_of_another_kind_is_taken_for_one(client: AsyncClient, flaky: Flaky) -> None:
    for status in ("200", "301", "404", "500"):
        flaky.faults = [status]
        with pytest.raises(WrongApi, match="no PyFunQ API"):
            await client.list()


@pytest.mark.usefixtures("few_attempts")
async def test_nobody_there() -> None:
    async with AsyncClient(base_url=f"http://127.0.0.1:{_free_port()}", api_key="secret") as client:
        with pytest.raises(ApiUnavailable, match="does not answer") as raised:
            await client.submit(IRIS_1, split(SETOSA))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["", "host:80", "ftp://host", "http://", "http://a:b@host", "http://host/?x=1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(NotConfigured, match="URL"):
        AsyncClient(base_url=url)


def test_pauses_grow_differ_and_end() -> None:
    pauses = [[http_transport._pause(attempt) for attempt in range(1, 9)] for _ in range(50)]
    assert len({round(some[0], 6) for some in pauses}) > 10
    for some in pauses:
        for attempt, pause in enumerate(some):
            assert min(8.0, 0.25 * 2**attempt) / 2 <= pause <= min(8.0, 0.25 * 2**attempt)


@pytest.fixture
def api_process(settings: Settings, tmp_path: Path) -> Iterator["ApiProcess"]:
    process = ApiProcess(settings, tmp_path / "api.log")
    process.start()
    yield process
    process.program.stop()


class ApiProcess:
    """`python -m producer.api`, always on the same port."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings, self._log, self._port = settings, log, _free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "producer.api", "--port", str(self._port)]
        self.program = Program(command, self._settings, self._log, {})

    def kill(self) -> None:
        os.kill(self.program.pid, signal.SIGKILL)
        self.program.process.wait(10)

    async def answers(self) -> bool:
        with suppress(httpx.HTTPError):
            async with httpx.AsyncClient(verify=trusted()) as http:
                return (await http.get(f"{self.url}/health/live")).is_success
        return False


@pytest.mark.thorough
async def test_every_job_of_a_killed_api_is_there_and_none_twice(
    api_process: ApiProcess, ledger: Ledger, eventually: Any
) -> None:
    await eventually("the API answers", api_process.answers)
    accepted: dict[int, Any] = {}
    unknown: list[int] = []
    stopping, numbers = asyncio.Event(), iter(range(1_000_000))

    async def submit_on(client: AsyncClient) -> None:
        while not stopping.is_set():
            number = next(numbers)
            try:
                accepted[number] = (await client.submit(IRIS_1, split(SETOSA), metadata={"n": number})).id
            except PyFunQError:
                unknown.append(number)

    async with AsyncClient(base_url=api_process.url) as client:
        tasks = [asyncio.create_task(submit_on(client)) for _ in range(8)]
        for _ in range(2):
            before = len(accepted)
            await eventually("it is under load", lambda before=before: len(accepted) > before + 100)
            api_process.kill()
            api_process.start()
            await eventually("it answers again", api_process.answers)
        stopping.set()
        await asyncio.gather(*tasks)

    stored: list[Any] = []
    while page := await ledger.list_jobs(limit=1000, before=stored[-1].id if stored else None):
        stored += page
    assert set(accepted.values()) <= {job.id for job in stored}
    times = Counter(job.metadata["n"] for job in stored)
    assert max(times.values()) == 1
    assert set(times) <= {*accepted, *unknown}
    assert len(accepted) > 200


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
