"""A real API server on loopback, on real Postgres and Redis, with a worker process that a test lets work."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest
import uvicorn

from producer.api.app import make_app
from producer.api.serving import ServerConfig
from pyfunq.api_keys import Scope, new_key
from pyfunq.http_transport import trusted
from pyfunq.job import JobStatus
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.programs import until
from worker.page_run import run_page
from worker.process import WorkerProcess


class AppServer(uvicorn.Server):
    """In a thread, with an event loop of its own."""

    def __init__(self, app: Any, settings: Settings | None = None) -> None:
        config = ServerConfig(app, settings or Settings(), host="127.0.0.1", port=0, log_config=None)
        super().__init__(config)
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._ready = threading.Event()
        self._told = asyncio.Event()

    async def main_loop(self) -> None:
        """Without uvicorn's ticks: a tenth of a second for each of hundreds of tests."""
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        await self._told.wait()

    def __enter__(self) -> str:
        self._thread.start()
        until("the API listens", lambda: self._ready.wait(0.5) or not self._thread.is_alive())
        assert self.started
        port = self.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._told.set)
        self._thread.join(30)


class ApiServer(AppServer):
    def __init__(self, settings: Settings, around: Callable[[Any], Any] = lambda app: app) -> None:
        """`around`: another ASGI app around the API's."""
        super().__init__(around(make_app(settings)), settings)


@pytest.fixture
def api_url(settings: Settings) -> Iterator[str]:
    with ApiServer(settings) as url:
        yield url


@pytest.fixture
async def http(api_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=api_url, timeout=60, verify=trusted()) as client:
        yield client


Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def serve(settings: Settings) -> Serve:
    """A server with other settings: `async with serve(max_input_bytes=1000) as http`."""

    @asynccontextmanager
    async def serving(**changed: Any) -> AsyncIterator[httpx.AsyncClient]:
        server = ApiServer(settings.model_copy(update=changed))
        url = await asyncio.to_thread(server.__enter__)
        try:
            async with httpx.AsyncClient(base_url=url, timeout=60, verify=trusted()) as client:
                yield client
        finally:
            await asyncio.to_thread(server.__exit__)

    return serving


@dataclass
class Workers:
    """Plays the Celery worker while a block runs: takes what is queued as soon as it is there."""

    process: WorkerProcess
    ledger: Ledger

    async def all(self) -> int:
        jobs = await self.ledger.list_jobs(status=JobStatus.QUEUED, limit=1000)
        for job in jobs:
            await asyncio.to_thread(run_page, self.process, job.id)
        return len(jobs)

    async def while_(self, awaited: Awaitable[Any]) -> Any:
        """Works until this is done; returns what it gives."""
        task = asyncio.ensure_future(awaited)
        while not task.done():
            if not await self.all():
                await asyncio.wait([task], timeout=0.02)
        return await task


@pytest.fixture
def workers(settings: Settings, ledger: Ledger) -> Iterator[Workers]:
    process = WorkerProcess(settings)
    yield Workers(process, ledger)
    process.close()


MakeKey = Callable[..., Awaitable[dict[str, str]]]


@pytest.fixture
def make_key(ledger: Ledger) -> MakeKey:
    """Makes a key; returns the headers that bring it along."""

    async def make(tenant: str = "acme", *scopes: Scope, **limits: Any) -> dict[str, str]:
        key = new_key()
        await ledger.add_key(key, tenant=tenant, scopes=scopes or tuple(Scope), **{"name": "test", **limits})
        return {"Authorization": f"Bearer {key}"}

    return make


def job_id_of(response: httpx.Response) -> UUID:
    return UUID(response.json()["id"])
