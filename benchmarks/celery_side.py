"""The Celery peers as sides of the comparison: their worker, and a producer as economical as Celery allows."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from celery import Celery
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from benchmarks.failure import BenchmarkFailed
from benchmarks.models import Model, check, random_rows
from benchmarks.peers.peer_store import TABLE
from benchmarks.servers import PROCESSES, Program, Servers, new_database, paused
from benchmarks.sessions import PEERS, Answers, Rows, Session, by_callers, no_collections

WARM_ROWS = 300
POLL_SECONDS = 0.02
GIVE_UP_SECONDS = 300.0
CHANNEL = "peer:finished"


def peer_environment(**variables: str | Path) -> dict[str, str]:
    """This process's environment, without what would lead another virtual environment to this one's packages."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**inherited, **{name: str(value) for name, value in variables.items()}}


class CeleryPeer:
    """A worker of two processes that is started for each turn; `module` is its app in benchmarks/peers."""

    has_queue, takes_beforehand = True, True

    def __init__(self, name: str, module: str, servers: Servers, redis_number: int, python: Path | None = None) -> None:
        self.name, self.module, self.servers = name, module, servers
        self.broker = servers.redis_database(redis_number)
        self.python = python or Path(sys.executable)
        self.database = ""

    async def prepare(self) -> None:
        self.database = await new_database(self.servers.database, self.module)

    def command(self) -> list[str | Path]:
        options = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
        worker = ["worker", "--concurrency", str(PROCESSES), *options]
        return [self.python, "-m", "celery", "-A", self.module, *worker]

    @asynccontextmanager
    async def serving(self, model: Model) -> AsyncIterator["TableSession"]:
        environment = peer_environment(PEER_BROKER=self.broker, PEER_DATABASE=self.database, PEER_MODEL=model.files)
        with Redis.from_url(self.broker) as redis:
            redis.flushdb()
        program = Program(self.command(), environment, self.servers.home / f"{self.module}.log", PEERS)
        try:
            async with AsyncExitStack() as stack:
                session = self.session(program)
                await session.open(self.database)
                stack.push_async_callback(session.close)
                rows = random_rows(WARM_ROWS, seed=2)
                check(f"{self.name}, warming up", (await session.at_once(rows)).predictions, model.truth(rows))
                yield session
        finally:
            program.stop()

    def session(self, program: Program) -> "TableSession":
        return CelerySession(self.name, program, self.broker)


class TableSession(Session, Protocol):
    """A session whose results are in a table of its own database."""

    async def open(self, database: str) -> None: ...

    async def close(self) -> None: ...


class CelerySession:
    def __init__(self, name: str, program: Program, broker: str) -> None:
        self._name, self._program = name, program
        self._app = Celery("driver", broker=broker, set_as_current=False)
        self._app.conf.update(task_serializer="json", task_ignore_result=True)
        self._redis = AsyncRedis.from_url(broker)
        self._waiters: dict[int, asyncio.Future[int]] = {}

    async def open(self, database: str) -> None:
        self._connection = await asyncpg.connect(database)
        await self._connection.execute(TABLE)
        self._publishing = self._app.connection_for_write()
        self._producer = self._app.amqp.Producer(self._publishing)
        self._channel = self._redis.pubsub()
        await self._channel.subscribe(CHANNEL)
        self._listening = asyncio.create_task(self._listen())

    async def close(self) -> None:
        self._listening.cancel()
        with suppress(asyncio.CancelledError):
            await self._listening
        await self._channel.aclose()  # type: ignore[no-untyped-call]
        await self._redis.aclose()
        self._publishing.release()
        await self._connection.close()

    async def at_once(self, rows: Rows, *, beforehand: bool = False) -> Answers:
        """Publishing blocks this process: nothing else is to be done in it meanwhile."""
        await self._connection.execute("TRUNCATE prediction")
        jobs = rows.tolist()
        with no_collections():
            begun = time.perf_counter()
            if beforehand:
                with paused([self._program]):
                    self._publish_all(jobs)
                begun = time.perf_counter()
            else:
                self._publish_all(jobs)
            await self._until_stored(len(jobs))
            seconds = time.perf_counter() - begun
        found = await self._connection.fetch("SELECT prediction FROM prediction ORDER BY number")
        return Answers(seconds, [row[0] for row in found])

    async def callers(self, rows: Rows, callers: int) -> Answers:
        await self._connection.execute("TRUNCATE prediction")
        jobs = rows.tolist()
        return await by_callers(lambda number: self._call(number, jobs[number]), len(jobs), callers)

    async def _call(self, number: int, row: list[float]) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters[number] = future
        self._publish(number, row, True)
        return await asyncio.wait_for(future, GIVE_UP_SECONDS)

    def _publish_all(self, jobs: list[list[float]]) -> None:
        for number, row in enumerate(jobs):
            self._publish(number, row, False)

    def _publish(self, number: int, row: list[float], announce: bool) -> None:
        self._app.send_task(
            "peer.predict",
            args=(number, row, announce),
            queue="peer",
            producer=self._producer,
            ignore_result=True,
            retry=False,
        )

    async def _until_stored(self, rows: int) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while (stored := await self._connection.fetchval("SELECT count(*) FROM prediction")) < rows:
            self._program.check()
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{self._name}: {stored} of {rows} results are there")
            await asyncio.sleep(POLL_SECONDS)

    async def _listen(self) -> None:
        """One subscription serves all the callers of the process."""
        message: dict[str, Any]
        async for message in self._channel.listen():
            if message["type"] == "message":
                number, prediction = map(int, message["data"].split())
                waiter = self._waiters.pop(number, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(prediction)
