"""Models with queues of their own: where their jobs wait, who takes them, and what happens when that changes."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pytest
from mlflow import MlflowClient
from redis import Redis

from pyfunq.client import AsyncClient
from pyfunq.entries import ModelTags, ModelVersion
from pyfunq.errors import BacklogFull
from pyfunq.ids import new_id
from pyfunq.job import JobStatus, Lane
from pyfunq.lanes import BULK_QUEUES, lane_of, line, moved, own_of, queues_of
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.conftest import RegisterModel, Servers
from tests.integration.conftest import Moody, Work, split
from tests.programs import start_worker
from worker import upkeep
from worker.page_run import run_page
from worker.process import WorkerProcess
from worker.rescue import rescue

GPU = "model.gpu"
ROW = split([3.0], columns=["x"])


@pytest.fixture(scope="session")
def straight(register: RegisterModel) -> str:
    """Answers 2x; the tests that set its tag remove it."""
    register("straight", Moody(), None)
    return "straight"


class Tag:
    """`pyfunq.queue` of a model, as the operator sets it and the watch sees it."""

    def __init__(self, registry: MlflowClient, name: str, process: WorkerProcess) -> None:
        self.registry, self.name, self.process = registry, name, process

    async def set(self, queue: str | None, *, watch: bool = True) -> None:
        if queue is None:
            await asyncio.to_thread(self.registry.delete_registered_model_tag, self.name, "pyfunq.queue")
        else:
            await asyncio.to_thread(self.registry.set_registered_model_tag, self.name, "pyfunq.queue", queue)
        if watch:
            await asyncio.to_thread(upkeep.registry_watch, self.process)


@pytest.fixture
async def tag(servers: Servers, straight: str, process: WorkerProcess) -> AsyncIterator[Tag]:
    registry = MlflowClient(servers.mlflow)
    yield Tag(registry, straight, process)
    registry.set_registered_model_tag(straight, "pyfunq.queue", "")
    registry.delete_registered_model_tag(straight, "pyfunq.queue")


@pytest.fixture
def redis(redis_url: str) -> Any:
    with Redis.from_url(redis_url) as redis:
        yield redis


async def fresh(settings: Settings) -> AsyncClient:
    """A producer that knows nothing yet."""
    return AsyncClient(settings)


async def queues(database: Ledger) -> dict[str, int]:
    return {d["queue"]: d["jobs"] for d in await database.queue_depth()}


async def test_producers_put_a_models_jobs_into_its_own_queue(
    settings: Settings, client: AsyncClient, work: Work, tag: Tag, ledger: Ledger, redis: Any, eventually: Any
) -> None:
    await tag.set(GPU, watch=False)
    other = await client.submit("models:/straight/1", ROW)
    await work.all()
    async with await fresh(settings) as producer:
        single = await producer.submit("models:/straight/1", ROW)
        many = await producer.submit_many("models:/straight/1", [ROW] * 3, lane="bulk")
        batch = await producer.submit_batch("models:/straight/1", pd.DataFrame({"x": range(5)}), chunk_rows=5)
        assert (single.lane, many[0].lane) == ("interactive", "bulk")
        assert {j.lane for j in await producer.list(batch=batch)} == {"bulk"}
        assert (await producer.get(single)).lane == "interactive"
        assert {j.lane for j in await producer.list() if j.id != other.id} == {"interactive", "bulk"}
    waiting = await queues(ledger)
    waiting.pop("interactive", None)  # the first one of all was handed over, see below
    assert waiting.pop(GPU) == 2
    assert sum(waiting.values()) == 4
    assert {(own_of(q), lane_of(q)) for q in waiting} == {(GPU, "bulk")}
    await eventually("the messages are there too", lambda: sum(map(redis.llen, queues_of(f"{GPU}.bulk"))) == 2)
    assert redis.llen(GPU) == 2


async def test_a_worker_hands_over_what_came_before_the_tag_was_known(
    settings: Settings, client: AsyncClient, process: WorkerProcess, tag: Tag, ledger: Ledger, redis: Any
) -> None:
    await tag.set(GPU, watch=False)
    singles = [await client.submit("models:/straight/latest", ROW, lane=lane) for lane in Lane]
    said = [await asyncio.to_thread(run_page, process, job.id) for job in singles]
    assert said == [f"1 handed to {GPU}"] * 2
    assert not process.models.versions(), "it did not even load it"
    now = [await client.get(job) for job in singles]
    assert [(j.status, j.lane, j.attempt, j.crashes) for j in now] == [
        (JobStatus.QUEUED, "interactive", 1, 0),
        (JobStatus.QUEUED, "bulk", 1, 0),
    ]
    assert redis.llen(GPU) == 1
    assert sum(map(redis.llen, queues_of(f"{GPU}.bulk"))) == 1
    taking = WorkerProcess(settings, queues=["pyfunq.control", GPU])
    try:
        await Work(taking, ledger).all()
        for page in await waiting_pages(ledger, GPU):
            await asyncio.to_thread(run_page, taking, page)
        assert [await client.result(job, 5) for job in singles] == [[6.0], [6.0]]
    finally:
        taking.close()


async def waiting_pages(ledger: Ledger, own: str) -> list[UUID]:
    now = {queue: new_id() for lane in Lane for queue in queues_of(line(lane, own))}
    return await ledger.pages_without_message(now)


async def test_a_worker_that_takes_the_queue_itself_hands_nothing_over(
    settings: Settings, client: AsyncClient, tag: Tag, ledger: Ledger
) -> None:
    await tag.set(GPU, watch=False)
    taking = WorkerProcess(settings, queues=["pyfunq.control", "interactive", GPU])
    try:
        job = await client.submit("models:/straight/latest", ROW)
        await Work(taking, ledger).all()
        assert await client.result(job, 5) == [6.0]
    finally:
        taking.close()


async def test_what_already_waits_is_predicted_by_who_has_the_model_and_else_handed_over(
    settings: Settings, client: AsyncClient, work: Work, tag: Tag, process: WorkerProcess
) -> None:
    first = await client.submit("models:/straight/1", ROW)
    await work.all()
    waiting = [await client.submit("models:/straight/1", ROW, lane=lane) for lane in Lane]
    await tag.set(GPU)
    assert await asyncio.to_thread(run_page, process, waiting[0].id) == "1 succeeded"
    other = WorkerProcess(settings)
    try:
        assert await asyncio.to_thread(run_page, other, waiting[1].id) == f"1 handed to {GPU}"
    finally:
        other.close()
    assert await client.result(first) == await client.result(waiting[0]) == [6.0]


async def rescued(process: WorkerProcess, redis: Any) -> int:
    return (await asyncio.to_thread(rescue, process, redis, process.publisher)).published


@pytest.fixture
def graceless(process: WorkerProcess) -> WorkerProcess:
    process.settings = process.settings.model_copy(update={"publish_grace_seconds": 0.001})
    return process


async def submitted_to(client: AsyncClient, redis: Any, *lanes: str) -> list[UUID]:
    jobs = [(await client.submit("models:/straight/1", ROW, lane=lane)).id for lane in lanes]
    deadline = time.monotonic() + 10
    while sum(redis.llen(key) for key in redis.keys("model.*")) < len(jobs):
        assert time.monotonic() < deadline, "the messages were sent"
        await asyncio.sleep(0.02)
    return jobs


async def resolved(tag: Tag, ledger: Ledger, queue: str) -> None:
    await tag.set(queue, watch=False)
    found = await asyncio.to_thread(tag.process.registry.model, tag.name)
    v = found.latest_versions[0]
    version = ModelVersion(
        name=tag.name, version="1", created_ms=v.creation_timestamp, source=v.source, run_id=None, experiment_id=None
    )
    await ledger.point("models:/straight/1", version, ModelTags(queue=queue))


async def test_rescue_knows_own_queues_that_no_worker_takes(
    client: AsyncClient, ledger: Ledger, graceless: WorkerProcess, tag: Tag, redis: Any
) -> None:
    await resolved(tag, ledger, GPU)
    jobs = await submitted_to(client, redis, "interactive", "bulk", "bulk")
    assert await rescued(graceless, redis) == 0, "they only wait"
    redis.flushdb()
    assert await rescued(graceless, redis) == 3
    assert redis.llen(GPU) == 1
    assert sum(map(redis.llen, queues_of(f"{GPU}.bulk"))) >= 1
    assert await rescued(graceless, redis) == 0
    # A job whose process died goes before the others of its queue, and nobody else's.
    (page,) = [p for p in await waiting_pages(ledger, GPU) if await queue_of_page(ledger, p) == GPU]
    (claimed,) = await ledger.claim(page, new_id(), max_jobs=1, max_rows=1, max_bytes=1000)
    assert claimed.id == jobs[0]
    redis.flushdb()
    assert (await asyncio.to_thread(rescue, graceless, redis, graceless.publisher)).put_back == 1
    assert redis.llen(f"{GPU}.first") == 1
    redis.delete(f"{GPU}.first")
    assert await rescued(graceless, redis) >= 1
    assert redis.llen(f"{GPU}.first") == 1


async def queue_of_page(ledger: Ledger, page: UUID) -> str | None:
    rows = await ledger._pool.fetch("SELECT DISTINCT queue FROM job WHERE page_id = $1", page)
    return rows[0]["queue"] if rows else None


@pytest.mark.parametrize("after", ["model.other", None])
async def test_when_the_tag_changes_what_waits_moves_with_it(
    client: AsyncClient, ledger: Ledger, graceless: WorkerProcess, tag: Tag, redis: Any, after: str | None
) -> None:
    await resolved(tag, ledger, GPU)
    jobs = await submitted_to(client, redis, "interactive", "bulk")
    before = {job: (await ledger._pool.fetchval("SELECT queue FROM job WHERE id = $1", job)) for job in jobs}
    await tag.set(after)
    assert await rescued(graceless, redis) == 2
    for job in jobs:
        queue = await ledger._pool.fetchval("SELECT queue FROM job WHERE id = $1", job)
        assert queue == moved(before[job], after)
        assert redis.llen(queue) == 1
    assert await rescued(graceless, redis) == 0
    assert [(await client.get(job)).lane for job in jobs] == ["interactive", "bulk"]
    await Work(graceless, ledger).all()
    for page in await waiting_pages(ledger, after or GPU):
        await asyncio.to_thread(run_page, graceless, page)
    assert [await client.result(job, 5) for job in jobs] == [[6.0], [6.0]]


async def test_while_another_model_has_the_queue_its_worker_hands_on_what_moved(
    client: AsyncClient, ledger: Ledger, graceless: WorkerProcess, tag: Tag, redis: Any
) -> None:
    await resolved(tag, ledger, GPU)
    (job,) = await submitted_to(client, redis, "interactive")
    other = ModelVersion(name="x", version="1", created_ms=1, source="s", run_id=None, experiment_id=None)
    await ledger.point("models:/x/1", other, ModelTags(queue=GPU))
    await ledger.point(
        "models:/straight/1", (await ledger.resolution("models:/straight/1")).version, ModelTags(queue="model.b")
    )  # type: ignore[union-attr]
    assert await rescued(graceless, redis) == 0, "its worker is there"
    assert await asyncio.to_thread(run_page, graceless, job) == "1 handed to model.b"
    assert redis.llen("model.b") == 1


@pytest.mark.parametrize("own", [None, GPU, "model.a.b-c"])
@pytest.mark.parametrize("queue", ["model.q", "model.q.bulk", "model.q.bulk.7", "model.q.4", "model.bulky"])
async def test_the_ledger_moves_jobs_to_the_queue_that_the_workers_would(
    ledger: Ledger, own: str | None, queue: str
) -> None:
    page = new_id()
    uri = "models:/x/1"
    version = ModelVersion(name="x", version="1", created_ms=1, source="s", run_id=None, experiment_id=None)
    await ledger.point(uri, version, ModelTags(queue=own))
    await ledger._pool.execute(
        """INSERT INTO job (id, page_id, rows, max_attempts, queue, model_uri, input_format, input_bytes)
           VALUES ($1, $1, 1, 3, $2, $3, 'split', 2)""",
        page,
        queue,
        uri,
    )
    (again,) = await ledger.repage([page], [new_id()])
    assert again.queue == moved(queue, own)


async def test_a_full_queue_of_its_own_refuses_nobody_else(settings: Settings, ledger: Ledger) -> None:
    version = ModelVersion(name="x", version="1", created_ms=1, source="s", run_id=None, experiment_id=None)
    await ledger.point("models:/x/1", version, ModelTags(queue=GPU))
    async with AsyncClient(settings.model_copy(update={"max_queued_jobs": 2})) as client:
        await client.submit_many("models:/x/1", [ROW] * 2)
        with pytest.raises(BacklogFull, match=rf"queue {GPU} holds as many queued jobs as it may"):
            await client.submit("models:/x/1", ROW)
        await client.submit("models:/x/1", ROW, lane="bulk")
        await client.submit("models:/y/1", ROW)
    assert await ledger.count_queued(GPU, at_most=10) == 2
    assert await ledger.count_queued(f"{GPU}.bulk", at_most=10) == 1
    assert await ledger.count_queued("interactive", at_most=10) == 1


async def test_a_worker_started_for_the_queue_takes_both_lanes_of_it_and_nothing_else(
    settings: Settings,
    client: AsyncClient,
    process: WorkerProcess,
    tag: Tag,
    ledger: Ledger,
    redis: Any,
    tmp_path: Path,
) -> None:
    await tag.set(GPU, watch=False)
    jobs = [await client.submit("models:/straight/latest", ROW, lane=lane) for lane in Lane]
    for job in jobs:
        await asyncio.to_thread(run_page, process, job.id)
    elsewhere = await client.submit("models:/straight/1", ROW)
    program = await asyncio.to_thread(start_worker, settings, tmp_path / "gpu.log", threads=1, lanes=GPU)
    try:
        assert [await client.result(job, 30) for job in jobs] == [[6.0], [6.0]]
        async with await fresh(settings) as producer:
            batch = await producer.submit_batch("models:/straight/latest", pd.DataFrame({"x": [4.0]}))
            await producer.wait_batch(batch, 30)
        assert (await client.get(elsewhere)).status is JobStatus.QUEUED
    finally:
        await asyncio.to_thread(program.stop)
    assert len(queues_of(f"{GPU}.bulk")) == BULK_QUEUES
