"""Rescue and registry watch without a single point, and processes that die without a word."""

import asyncio
import base64
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from kombu import Connection, Consumer, Exchange, Queue
from kombu.common import ignore_errors
from redis import Redis
from redis.exceptions import RedisError

from pyfunq.client import AsyncClient
from pyfunq.entries import Page
from pyfunq.ids import new_id, oldest_id_at
from pyfunq.job import JobStatus
from pyfunq.ledger import Ledger
from pyfunq.local import EmbeddedRedis, StateDirectory, identity
from pyfunq.publishing import Publisher
from pyfunq.queue import TASK_RESCUE
from pyfunq.settings import Settings
from pyfunq.transport import Transport
from tests.integration.conftest import SETOSA, split
from worker import upkeep
from worker.heartbeat import Heartbeat
from worker.process import WorkerProcess
from worker.rescue import rescue, rescue_crashed


async def test_of_many_who_want_to_begin_one_does(ledger: Ledger) -> None:
    turns = await asyncio.gather(*(ledger.begin_upkeep("x", at_most_every_seconds=60) for _ in range(10)))
    assert sorted(turns) == [False] * 9 + [True]
    assert not await ledger.begin_upkeep("x", at_most_every_seconds=60)
    assert await ledger.begin_upkeep("y", at_most_every_seconds=60)
    assert await ledger.begin_upkeep("x", at_most_every_seconds=0)


async def test_the_jobs_of_a_sibling_that_died_are_published_at_once(
    settings: Settings,
    client: AsyncClient,
    ledger: Ledger,
    process: WorkerProcess,
    redis_url: str,
    iris_model: str,
    eventually: Callable[..., Any],
) -> None:
    child = subprocess.Popen(["/bin/sleep", "60"])  # noqa: ASYNC220
    dead = new_id()
    await ledger.beat(dead, socket.gethostname(), child.pid, identity.started(child.pid))
    job = await client.submit("models:/iris/1", split(SETOSA))
    await ledger.claim(job.id, dead, max_jobs=1, max_rows=1, max_bytes=1000)
    with Redis.from_url(redis_url) as redis:
        await eventually("its message is sent", lambda: redis.llen("interactive"))
        redis.flushdb()  # and was taken
        stand_in = upkeep.StandIn(process)
        try:
            await eventually("a look at the living", lambda: asyncio.sleep(1.5, True))
            assert (await client.get(job)).status is JobStatus.RUNNING, "it lives"
            child.kill()
            child.wait()
            await eventually("the job is back, with a message", lambda: redis.llen("interactive.first") == 1, 10)
            assert redis.llen("interactive") == 0
        finally:
            stand_in.close()
    now = await client.get(job)
    assert (now.status, now.attempt) == (JobStatus.QUEUED, 1)


async def test_without_a_beat_a_worker_process_stands_in(
    settings: Settings,
    client: AsyncClient,
    process: WorkerProcess,
    redis_url: str,
    iris_model: str,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> None:
    monkeypatch.setattr(upkeep, "_BEAT_SILENT_SECONDS", 0.5)
    process.settings = settings.model_copy(update={"rescue_seconds": 0.2, "publish_grace_seconds": 0.01})
    await client.submit("models:/iris/1", split(SETOSA))
    with Redis.from_url(redis_url) as redis:
        await eventually("the message is sent", lambda: redis.llen("interactive"))
        redis.flushdb()
        stand_in = upkeep.StandIn(process)
        try:
            await eventually("it is published again", lambda: redis.llen("interactive"))
        finally:
            stand_in.close()


async def test_while_the_beat_beats_nobody_stands_in(
    settings: Settings, ledger: Ledger, process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not await asyncio.to_thread(upkeep.begun_elsewhere, process, TASK_RESCUE, settings.rescue_seconds)
    assert await asyncio.to_thread(upkeep.begun_elsewhere, process, TASK_RESCUE, settings.rescue_seconds), "two beats"
    stand_in = upkeep.StandIn.__new__(upkeep.StandIn)
    stand_in._process = process
    assert not await asyncio.to_thread(stand_in._overdue, TASK_RESCUE, settings.rescue_seconds)


async def test_this_process_is_no_dead_sibling(ledger: Ledger, process: WorkerProcess) -> None:
    from worker.rescue import ended_siblings

    assert await asyncio.to_thread(ended_siblings, process) == []
    assert [pid for _, pid, _ in await ledger.processes_of_host(socket.gethostname())] == [os.getpid()]


async def test_a_process_that_was_cut_off_takes_nobody_for_dead_at_once(
    settings: Settings, client: AsyncClient, ledger: Ledger, process: WorkerProcess, database_url: str, iris_model: str
) -> None:
    """A partition: nobody's heartbeat arrived for 60 s, and the one that is back first does the rescue."""
    other = new_id()
    await ledger.beat(other, "another", 1, "1")
    job = await client.submit("models:/iris/1", split(SETOSA))
    await ledger.claim(job.id, other, max_jobs=1, max_rows=1, max_bytes=1000)
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
        await pool.execute("UPDATE worker SET seen_at = now() - interval '30 s' WHERE id = $1", other)
        now = 0.0
        process.settings = settings.model_copy(update={"stale_seconds": 1.0})
        process.heartbeat = Heartbeat(0.2, lambda: now)
        now += 60
        process.heartbeat.arrived()
        publisher = Publisher(settings.redis)
        try:
            assert await asyncio.to_thread(rescue_crashed, process, publisher) == (0, 0)
            for _ in range(5):
                now += 0.2
                process.heartbeat.arrived()
            assert await asyncio.to_thread(rescue_crashed, process, publisher) == (1, 0), "it did not come back"
        finally:
            publisher.close()


def page_id_of(message: bytes) -> str:
    page_id: str = orjson.loads(base64.b64decode(orjson.loads(message)["body"]))[1]["page_id"]
    return page_id


async def test_a_waiting_backlog_is_published_again_only_when_its_messages_are_gone(
    settings: Settings, ledger: Ledger, process: WorkerProcess, database_url: str, redis_url: str
) -> None:
    """100,000 jobs on 100 pages, all older than the grace."""
    pages = [oldest_id_at(time.time() - seconds) for seconds in range(200, 100, -1)]
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        """INSERT INTO job (id, page_id, rows, max_attempts, queue, model_uri, input_format, input_bytes)
           SELECT (left(page_id::text, 15) || substr(gen_random_uuid()::text, 16))::uuid, page_id, 1, 3, 'bulk',
                  'models:/a/1', 'split', 2
           FROM unnest($1::uuid[]) AS page_id, generate_series(1, 1000)""",
        pages,
    )
    await connection.close()
    process.settings = settings.model_copy(update={"publish_grace_seconds": 0.001})
    publisher = Publisher(settings.redis)
    publisher.publish_now([Page(id=page, model_uri="models:/a/1", queue="bulk", jobs=1000) for page in pages])
    with Redis.from_url(redis_url) as redis:
        assert redis.llen("bulk") == 100
        for _ in range(3):
            assert (await asyncio.to_thread(rescue, process, redis, publisher)).published == 0, "they only wait"
        redis.rpop("bulk", 10)
        assert (await asyncio.to_thread(rescue, process, redis, publisher)).published == 10_000, "the oldest ten"
        redis.flushdb()
        assert (await asyncio.to_thread(rescue, process, redis, publisher)).published == 100_000
        published = [page_id_of(message) for message in reversed(redis.lrange("bulk", 0, -1))]
        assert len(published) == 100
        assert published == sorted(published), "in the order of their ids, whatever order Postgres found them in"
        assert (await asyncio.to_thread(rescue, process, redis, publisher)).published == 0
    publisher.close()


async def test_what_goes_first_is_missed_although_its_lane_has_an_older_backlog(
    settings: Settings,
    client: AsyncClient,
    ledger: Ledger,
    process: WorkerProcess,
    redis_url: str,
    iris_model: str,
    eventually: Callable[..., Any],
) -> None:
    process.settings = settings.model_copy(update={"publish_grace_seconds": 0.001})
    publisher = Publisher(settings.redis)
    waiting = oldest_id_at(time.time() - 100)
    job = await client.submit("models:/iris/1", split(SETOSA))
    await ledger.claim(job.id, new_id(), max_jobs=1, max_rows=1, max_bytes=1000)
    with Redis.from_url(redis_url) as redis:
        await eventually("its message is sent", lambda: redis.llen("interactive"))
        redis.flushdb()
        publisher.publish_now([Page(id=waiting, model_uri="models:/a/1", queue="interactive", jobs=1)])
        assert (await asyncio.to_thread(rescue, process, redis, publisher)).put_back == 1
        assert redis.llen("interactive.first") == 1
        redis.delete("interactive.first")
        await asyncio.sleep(0.01)
        assert (await asyncio.to_thread(rescue, process, redis, publisher)).published == 1
        assert (redis.llen("interactive.first"), redis.llen("interactive")) == (1, 1)
        assert (await asyncio.to_thread(rescue, process, redis, publisher)).published == 0, "it is there again"
    publisher.close()


async def test_dead_jobs_can_be_tried_again_or_deleted(
    client: AsyncClient,
    ledger: Ledger,
    database_url: str,
    redis_url: str,
    iris_model: str,
    eventually: Callable[..., Any],
) -> None:
    jobs = [await client.submit("models:/iris/1", split(SETOSA)) for _ in range(2)]
    for _ in range(3):
        for job in jobs:
            await ledger.claim(job.id, new_id(), max_jobs=1, max_rows=1, max_bytes=1000)
            await ledger.rescue_crashed(60)
    assert {job.id for job in await client.list(status="dead")} == {job.id for job in jobs}
    with Redis.from_url(redis_url) as redis:
        await eventually("the messages are sent", lambda: redis.llen("interactive") == 2)
        redis.flushdb()
        assert await client.requeue_dead([jobs[0], new_id()]) == 1
        await eventually("it is published", lambda: redis.llen("interactive") == 1)
    again = await client.get(jobs[0])
    assert (again.status, again.crashes, again.error, again.finished_at) == (JobStatus.QUEUED, 0, None, None)
    assert await client.purge_dead(older_than_seconds=3600) == 0
    assert await client.purge_dead() == 1
    assert [job.id for job in await client.list()] == [jobs[0].id]
    connection = await asyncpg.connect(database_url)
    assert [row["id"] for row in await connection.fetch("SELECT id FROM job_input")] == [jobs[0].id]
    await connection.close()


def test_a_worker_survives_the_end_of_redis_with_messages_in_its_hands(home: Path) -> None:
    """What Celery's consumer does then, in its order; kombu alone raises AttributeError in the last step."""
    state = StateDirectory(home)
    with state.lock():
        server = EmbeddedRedis(state)
        url = server.start()
        connection = Connection(url, transport=Transport)
        tasks = Consumer(
            connection.default_channel,
            [Queue("tasks", Exchange("tasks"), routing_key="tasks")],
            callbacks=[lambda body, message: None],
        )
        control_channel = connection.channel()
        control = Consumer(
            control_channel,
            [Queue("control", Exchange("control.fan", type="fanout"), auto_delete=True)],
            callbacks=[lambda body, message: None],
        )
        tasks.consume()
        control.consume()
        with Connection(url) as other:
            other.Producer().publish({}, routing_key="tasks")
        for _ in range(3):
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.3)
        assert server.process is not None
        server.process.kill()
        with suppress(RedisError, OSError):
            control_channel._receive()
        connection.collect(socket_timeout=1.0)
        ignore_errors(connection, connection.close)
        server.stop()


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pyfunq-tests-") as place:
        yield Path(place)
