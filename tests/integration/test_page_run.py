"""A page of several micro-batches: one ahead, one behind, and others that go first."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import orjson
import pytest
from redis import Redis

from pyfunq.client import AsyncClient
from pyfunq.entries import NewJob
from pyfunq.fault_points import FaultPoint, on_reach
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput
from pyfunq.job import JobStatus, Lane
from pyfunq.lanes import queues_of
from pyfunq.ledger import Ledger
from pyfunq.message import EARLY_SECONDS
from pyfunq.settings import Settings
from tests.integration.conftest import SETOSA, split
from worker.draining import Drain
from worker.page_run import run_page
from worker.process import WorkerProcess

MODEL = "models:/iris/1"
QUEUES = ["pyfunq.control", "interactive.first", "bulk.first", "interactive", *queues_of("bulk")]


@pytest.fixture
def small(settings: Settings) -> Iterator[WorkerProcess]:
    """Predicts two jobs at a time, for a worker that takes from all queues."""
    process = WorkerProcess(settings.model_copy(update={"batch_max_jobs": 2}), Drain(), QUEUES)
    yield process
    process.close()


@pytest.fixture
def at(request: pytest.FixtureRequest) -> Iterator[Callable[[FaultPoint, Callable[[], None]], None]]:
    """Has something done whenever a point is reached."""

    def set_(point: FaultPoint, do: Callable[[], None]) -> None:
        on_reach(lambda reached: do() if reached is point else None)

    yield set_
    on_reach(None)


async def page_of(ledger: Ledger) -> tuple[UUID, str]:
    """The page of all that is queued, and its queue."""
    later = {queue: new_id() for queue in QUEUES}
    (page,) = await ledger.pages_without_message(later)
    (queue,) = {depth["queue"] for depth in await ledger.queue_depth()}
    return page, queue


async def statuses(client: AsyncClient, jobs: Sequence[Any]) -> dict[JobStatus, int]:
    return dict(Counter([(await client.get(job)).status for job in jobs]))


async def submitted(client: AsyncClient, n: int, lane: str = "bulk") -> Any:
    return await client.submit_many(MODEL, [split([i, 3.5, 1.4, 0.2]) for i in range(n)], lane=lane)


async def test_while_one_is_predicted_the_next_is_claimed_and_the_last_is_written(
    client: AsyncClient, small: WorkerProcess, ledger: Ledger, iris_model: str, at: Any, eventually: Any
) -> None:
    jobs = await submitted(client, 6)
    page, queue = await page_of(ledger)
    seen = []

    def look() -> None:
        found = small.run(statuses_of(small.ledger, [job.id for job in jobs]))
        seen.append((found.get(JobStatus.SUCCEEDED, 0), found.get(JobStatus.RUNNING, 0)))

    at(FaultPoint.PREDICTING, look)
    await asyncio.to_thread(run_page, small, page, queue)
    assert await statuses(client, jobs) == {JobStatus.SUCCEEDED: 6}
    # (written, running) when a micro-batch has been predicted; how far the writing behind it is depends.
    assert [done + running for done, running in seen] == [4, 6, 6]
    assert seen[0] == (0, 4)


async def statuses_of(ledger: Ledger, ids: Sequence[UUID]) -> dict[JobStatus, int]:
    return dict(Counter(job.status for job in (await ledger.get_many(ids)).values()))


@pytest.mark.parametrize("waits_in", ["interactive", "interactive.first", "bulk.first", "pyfunq.control"])
async def test_after_each_micro_batch_a_backlog_lets_those_before_it_go_first(
    client: AsyncClient, small: WorkerProcess, ledger: Ledger, redis_url: str, iris_model: str, waits_in: str
) -> None:
    jobs = await submitted(client, 7)
    page, queue = await page_of(ledger)
    with Redis.from_url(redis_url) as redis:
        redis.delete(*QUEUES)
        redis.lpush(waits_in, "somebody's message")
        words = await asyncio.to_thread(run_page, small, page, queue)
        assert words == "2 succeeded"
        assert await statuses(client, jobs) == {JobStatus.SUCCEEDED: 2, JobStatus.QUEUED: 5}
        assert redis.llen(queue) == 2, "what was claimed ahead, and the rest"
        redis.delete(waits_in)
    later = {queue: new_id()}
    for rest in await ledger.pages_without_message(later):
        assert rest != page
        await asyncio.to_thread(run_page, small, rest, queue)
    assert await statuses(client, jobs) == {JobStatus.SUCCEEDED: 7}
    assert {(await client.get(job)).crashes for job in jobs} == {0}


@pytest.mark.parametrize(("lane", "waits_in"), [("bulk", "bulk.7"), ("interactive", "bulk"), ("interactive", None)])
async def test_nobody_else_is_let_go_first(
    client: AsyncClient,
    small: WorkerProcess,
    ledger: Ledger,
    redis_url: str,
    iris_model: str,
    lane: str,
    waits_in: str | None,
) -> None:
    jobs = await submitted(client, 5, lane)
    page, queue = await page_of(ledger)
    with Redis.from_url(redis_url) as redis:
        redis.lpush(waits_in or queue, "somebody's message")
        assert await asyncio.to_thread(run_page, small, page, queue) == "5 succeeded"
    assert await statuses(client, jobs) == {JobStatus.SUCCEEDED: 5}


async def test_a_worker_that_takes_only_backlogs_waits_for_nobody(
    client: AsyncClient, settings: Settings, ledger: Ledger, redis_url: str, iris_model: str
) -> None:
    update = {"batch_max_jobs": 2}
    process = WorkerProcess(settings.model_copy(update=update), Drain(), ["pyfunq.control", "bulk.first", "bulk"])
    try:
        jobs = await submitted(client, 5)
        page, _ = await page_of(ledger)
        with Redis.from_url(redis_url) as redis:
            redis.lpush("interactive", "somebody's message")
        assert await asyncio.to_thread(run_page, process, page, "bulk") == "5 succeeded"
        assert await statuses(client, jobs) == {JobStatus.SUCCEEDED: 5}
    finally:
        process.close()


async def test_what_was_claimed_ahead_is_given_back_when_the_page_ends_badly(
    client: AsyncClient, small: WorkerProcess, ledger: Ledger, iris_model: str, at: Any
) -> None:
    jobs = await submitted(client, 6)
    page, queue = await page_of(ledger)

    def fail() -> None:
        raise RuntimeError("a defect")

    at(FaultPoint.PREDICTING, fail)
    with pytest.raises(RuntimeError, match="a defect"):
        await asyncio.to_thread(run_page, small, page, queue)
    # What was being predicted is this process's still; rescue takes it when the process has ended.
    assert await statuses(client, jobs) == {JobStatus.RUNNING: 2, JobStatus.QUEUED: 4}


async def test_a_worker_that_begins_to_drain_passes_on_what_it_has_not_begun(
    client: AsyncClient, small: WorkerProcess, ledger: Ledger, redis_url: str, iris_model: str, at: Any
) -> None:
    jobs = await submitted(client, 6)
    page, queue = await page_of(ledger)
    at(FaultPoint.PREDICTING, lambda: small.drain.begin(60))
    assert await asyncio.to_thread(run_page, small, page, queue) == "2 succeeded"
    assert await statuses(client, jobs) == {JobStatus.SUCCEEDED: 2, JobStatus.QUEUED: 4}


async def test_backlogs_of_one_producer_wait_in_queues_of_their_own(
    client: AsyncClient, redis_url: str, iris_model: str, ledger: Ledger
) -> None:
    import pandas as pd

    frame = pd.DataFrame([SETOSA], columns=["sepal_length", "sepal_width", "petal_length", "petal_width"])
    for _ in range(8):
        await client.submit_batch(MODEL, frame)
    assert {d["queue"]: d["jobs"] for d in await ledger.queue_depth()} == dict.fromkeys(queues_of("bulk"), 1)


async def test_a_page_whose_message_came_before_it_is_waited_for(
    process: WorkerProcess, iris_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = EncodedInput("split", orjson.dumps(split(SETOSA)["dataframe_split"]), None, 1)
    one = NewJob(id=new_id(), model_uri=MODEL, input=encoded, queue=Lane.INTERACTIVE, max_attempts=3)
    looked: list[bool] = []
    is_there = process.ledger.is_there

    async def look(page_id: UUID) -> bool:
        if len(looked) == 3:
            await process.ledger.submit([(one.id, one)])
        looked.append(await is_there(page_id))
        return looked[-1]

    monkeypatch.setattr("worker.process.EARLY_SECONDS", 30.0)
    monkeypatch.setattr(process.ledger, "is_there", look)
    assert await asyncio.to_thread(run_page, process, one.id, early=True) == "1 succeeded"
    assert looked == [False, False, False, True]


async def test_a_page_that_never_comes_is_looked_for_no_longer_than_a_moment(
    process: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, looked, is_there = time.monotonic(), [], process.ledger.is_there

    async def look(page_id: UUID) -> bool:
        looked.append(time.monotonic() - begun)
        return await is_there(page_id)

    monkeypatch.setattr(process.ledger, "is_there", look)
    said = await asyncio.to_thread(run_page, process, new_id(), early=True)
    assert said == "its jobs went with another message"
    assert EARLY_SECONDS <= looked[-1] < 10, "once more when the time is over"


async def test_a_page_whose_jobs_went_with_another_message_is_not_waited_for(
    client: AsyncClient, process: WorkerProcess, iris_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.process.EARLY_SECONDS", 60.0)
    first, second = [await client.submit(MODEL, split(SETOSA)) for _ in range(2)]
    begun = time.monotonic()
    assert await asyncio.to_thread(run_page, process, first.id, early=True) == "2 succeeded"
    said = await asyncio.to_thread(run_page, process, second.id, early=True)
    assert said == "its jobs went with another message"
    assert time.monotonic() - begun < 30
