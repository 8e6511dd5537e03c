"""The bare flow as a side of the comparison: its worker, and a client whose callers share pages and reads."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
from celery import Celery
from redis.asyncio import Redis as AsyncRedis

from benchmarks.celery_side import GIVE_UP_SECONDS, POLL_SECONDS, CeleryPeer
from benchmarks.failure import BenchmarkFailed
from benchmarks.models import split_inputs
from benchmarks.peers.bare_table import CHANNEL, OPTIONS, TABLE
from benchmarks.report import BARE_FLOW
from benchmarks.servers import Program, Servers
from benchmarks.sessions import Answers, Rows, by_callers, no_collections

PAGE = 1_000
PAGES_IN_FLIGHT = 2
ID_BYTES = 16
_MODEL = "model"
# While jobs are queued the index on pages serves; what is running has none.
_OPEN = (
    "SELECT EXISTS (SELECT FROM job WHERE status = 'queued' AND page >= '00000000-0000-0000-0000-000000000000') "
    "OR EXISTS (SELECT FROM job WHERE status <> 'succeeded')"
)
_READ = "SELECT id, prediction FROM job WHERE id = ANY ($1::uuid[])"


class BareFlow(CeleryPeer):
    takes_beforehand = False

    def __init__(self, servers: Servers, redis_number: int) -> None:
        super().__init__(BARE_FLOW, "bare_flow", servers, redis_number)

    def session(self, program: Program) -> "BareSession":
        return BareSession(self.name, program, self.broker)


class BareSession:
    def __init__(self, name: str, program: Program, broker: str) -> None:
        self._name, self._program = name, program
        self._app = Celery("driver", broker=broker, set_as_current=False)
        self._app.conf.update(task_serializer="json", task_ignore_result=True)
        self._redis = AsyncRedis.from_url(broker)
        self._new: list[tuple[UUID, bytes]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._waiters: dict[UUID, asyncio.Future[int]] = {}

    async def open(self, database: str) -> None:
        # Pages in flight, and one that reads.
        connect = [asyncpg.connect(database, server_settings=OPTIONS) for _ in range(PAGES_IN_FLIGHT + 1)]
        self._reading, *self._writing = await asyncio.gather(*connect)
        await self._reading.execute(TABLE)
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
        for connection in (self._reading, *self._writing):
            await connection.close()

    async def at_once(self, rows: Rows, *, beforehand: bool = False) -> Answers:
        await self._reading.execute("TRUNCATE job")
        inputs = split_inputs(rows)
        ids: dict[int, list[UUID]] = {}
        places = iter(range(0, len(inputs), PAGE))

        async def submit_pages(connection: "asyncpg.Connection") -> None:
            for at in places:
                jobs = [(uuid4(), orjson.dumps(one)) for one in inputs[at : at + PAGE]]
                ids[at] = [job for job, _ in jobs]
                await self._submit(connection, jobs, announce=False)

        with no_collections():
            begun = time.perf_counter()
            await asyncio.gather(*(submit_pages(connection) for connection in self._writing))
            await self._until_done()
            seconds = time.perf_counter() - begun
        found = dict(await self._reading.fetch("SELECT id, prediction FROM job"))
        return Answers(seconds, [found[job] for at in sorted(ids) for job in ids[at]])

    async def callers(self, rows: Rows, callers: int) -> Answers:
        await self._reading.execute("TRUNCATE job")
        inputs = split_inputs(rows)
        return await by_callers(lambda number: self._call(inputs[number]), len(inputs), callers)

    async def _call(self, one: Any) -> int:
        job = uuid4()
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters[job] = future
        self._new.append((job, orjson.dumps(one)))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        return await asyncio.wait_for(future, GIVE_UP_SECONDS)

    async def _flush(self) -> None:
        """What gathers while one page is written is the next one."""
        try:
            while self._new:
                jobs, self._new = self._new, []
                await self._submit(self._writing[0], jobs, announce=True)
        finally:
            self._flushing = None

    async def _submit(
        self, connection: "asyncpg.Connection", jobs: Sequence[tuple[UUID, bytes]], *, announce: bool
    ) -> None:
        page = uuid4()
        records = [(job, page, _MODEL, "queued", encoded) for job, encoded in jobs]
        await connection.copy_records_to_table(
            "job", records=records, columns=["id", "page", "model", "status", "input"]
        )
        self._app.send_task(
            "bare.page",
            args=(str(page), _MODEL, announce),
            queue="bare",
            producer=self._producer,
            ignore_result=True,
            retry=False,
        )

    async def _until_done(self) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while await self._reading.fetchval(_OPEN):
            self._program.check()
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{self._name}: jobs are still not finished")
            await asyncio.sleep(POLL_SECONDS)

    async def _listen(self) -> None:
        message: dict[str, Any]
        async for message in self._channel.listen():
            if message["type"] == "message":
                data = message["data"]
                ids = [UUID(bytes=data[at : at + ID_BYTES]) for at in range(0, len(data), ID_BYTES)]
                for job, prediction in await self._reading.fetch(_READ, ids):
                    waiter = self._waiters.pop(job, None)
                    if waiter is not None and not waiter.done():
                        waiter.set_result(prediction)
