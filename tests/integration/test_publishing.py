"""Messages in Redis: what Celery would have put there, for a consumer to take; and which queue is chosen."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from celery.worker.request import Request
from kombu import Exchange, Queue
from redis import Redis

from pyfunq.entries import Page
from pyfunq.errors import QueueUnavailable
from pyfunq.ids import new_id
from pyfunq.lanes import queues_of
from pyfunq.message import EARLY, TASK_PREDICT, message_of
from pyfunq.publishing import AsyncPublisher, Publisher
from pyfunq.queue import make_app
from pyfunq.settings import Settings
from worker import tasks

NOWHERE = "redis://127.0.0.1:1/0"
BULK = queues_of("bulk")


def page(queue: str = "bulk", jobs: int = 1, first: bool = False) -> Page:
    return Page(id=new_id(), model_uri="models:/a/1", queue=queue, jobs=jobs, first=first)


def read(message: bytes) -> Any:
    """A message with its body, but for what says who sent it and which one it is."""
    found = json.loads(message)
    found["body"] = json.loads(base64.b64decode(found["body"]))
    for part, name in (("headers", "origin"), ("properties", "reply_to"), ("properties", "delivery_tag")):
        assert isinstance(found[part].pop(name), str)
    return found


@pytest.fixture
def redis(redis_url: str) -> Iterator[Any]:
    with Redis.from_url(redis_url) as opened:
        yield opened


@pytest.fixture
def publisher(redis_url: str) -> Iterator[Publisher]:
    opened = Publisher(redis_url)
    yield opened
    opened.close()


@pytest.fixture
async def asynchronous(redis_url: str) -> AsyncIterator[AsyncPublisher]:
    opened = AsyncPublisher(redis_url)
    yield opened
    await opened.aclose()


@pytest.mark.parametrize(
    ("page", "queue", "args", "kwargs"),
    [
        (page(), "bulk", "models:/a/1 · 1 job", "lane=bulk"),
        (page(jobs=2), "bulk", "models:/a/1 · 2 jobs", "lane=bulk"),
        (page("bulk.3", jobs=2), "bulk.3", "models:/a/1 · 2 jobs", "lane=bulk"),
        (page("bulk.3", first=True), "bulk.first", "models:/a/1 · 1 job", "lane=bulk"),
        (page("interactive"), "interactive", "models:/a/1 · 1 job", "lane=interactive"),
        (page("interactive", first=True), "interactive.first", "models:/a/1 · 1 job", "lane=interactive"),
        (page("model.x"), "model.x", "models:/a/1 · 1 job", "lane=interactive, queue=model.x"),
        (page("model.x.bulk.3", first=True), "model.x.first", "models:/a/1 · 1 job", "lane=bulk, queue=model.x"),
    ],
)
async def test_a_message_is_what_celery_would_send(
    settings: Settings,
    redis: Any,
    publisher: Publisher,
    asynchronous: AsyncPublisher,
    page: Page,
    queue: str,
    args: str,
    kwargs: str,
) -> None:
    with make_app(settings) as app:
        app.send_task(
            TASK_PREDICT,
            kwargs={"page_id": str(page.id)},
            task_id=str(page.id),
            queue=queue,
            ignore_result=True,
            retry=False,
            argsrepr=args,
            kwargsrepr=kwargs,
        )
    expected = read(redis.rpop(queue))
    assert expected["properties"]["delivery_info"]["routing_key"] == queue
    assert read(message_of(page)) == expected
    publisher.publish_now([page])
    await asynchronous.publish([page])
    await asynchronous.publish([page, page])
    assert [read(message) for message in redis.lrange(queue, 0, -1)] == [expected] * 4


async def test_a_message_that_goes_before_its_pages_commit_says_so(redis: Any, asynchronous: AsyncPublisher) -> None:
    one = page("interactive")
    await asynchronous.publish([one], early=True)
    await asynchronous.publish([one, one], early=True)
    for message in map(read, redis.lrange("interactive", 0, -1)):
        assert message["headers"].pop(EARLY) is True
        assert message == read(message_of(one))


@pytest.mark.parametrize("early", [True, False])
async def test_a_worker_is_told_whether_a_message_went_before_its_pages_commit(
    settings: Settings, asynchronous: AsyncPublisher, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    one, told = page("interactive"), []
    await asynchronous.publish([one], early=early)
    monkeypatch.setattr("worker.page_run.run_page", lambda *args, **options: told.append((args[1:], options)) or "")
    queue = Queue("interactive", Exchange("interactive"), routing_key="interactive")
    with make_app(settings) as app, app.connection_for_read() as connection:
        tasks.register(app, lambda: None)  # type: ignore[arg-type,return-value]
        message = queue(connection.channel()).get(accept=["json"])
        Request(message, app=app, task=app.tasks[TASK_PREDICT]).execute()
    assert told == [((one.id, "interactive"), {"early": early})]


def test_every_message_has_a_tag_of_its_own() -> None:
    one = page()
    tags = {json.loads(message_of(one))["properties"]["delivery_tag"] for _ in range(100)}
    assert len(tags) == 100


async def test_many_pages_are_sent_in_their_order(
    redis: Any, publisher: Publisher, asynchronous: AsyncPublisher
) -> None:
    pages = [page() for _ in range(1001)]
    publisher.publish_now(pages)
    await asynchronous.publish(pages)
    sent = [read(message)["headers"]["id"] for message in reversed(redis.lrange("bulk", 0, -1))]
    assert sent == [str(one.id) for one in pages] * 2


def test_a_consumer_takes_and_acknowledges_what_was_sent(settings: Settings, redis: Any, publisher: Publisher) -> None:
    pages = [page("bulk.3", jobs=2) for _ in range(3)]
    publisher.publish_now(pages)
    taken: list[Any] = []
    queue = Queue("bulk.3", Exchange("bulk.3"), routing_key="bulk.3")
    with (
        make_app(settings) as app,
        app.connection_for_read() as connection,
        connection.Consumer([queue], callbacks=[lambda body, message: taken.append((body, message))], accept=["json"]),
    ):
        while len(taken) < len(pages):
            connection.drain_events(timeout=10)
        assert redis.llen("bulk.3") == 0
        assert redis.hlen("unacked") == 3
        for one, (body, message) in zip(pages, taken, strict=True):
            assert body[:2] == [[], {"page_id": str(one.id)}]
            assert (message.headers["task"], message.headers["id"]) == (TASK_PREDICT, str(one.id))
            assert message.delivery_info == {"exchange": "", "routing_key": "bulk.3"}
            message.ack()
        assert redis.hlen("unacked") == 0
    assert redis.llen("bulk.3") == 0, "none was given back"


async def test_the_shortest_queue_is_chosen(redis: Any, asynchronous: AsyncPublisher) -> None:
    for length, queue in enumerate([*BULK[4:], *BULK[:4]], 1):
        redis.lpush(queue, *["a message"] * length)
    assert [await asynchronous.shortest_of(BULK) for _ in range(3)] == ["bulk.4"] * 3
    redis.lpush("bulk.4", "another")
    assert {await asynchronous.shortest_of(BULK) for _ in range(2)} == {"bulk.4", "bulk.5"}
    redis.delete("bulk.2")
    assert await asynchronous.shortest_of(BULK) == "bulk.2"


async def test_of_queues_of_one_length_each_is_chosen_in_turn(redis: Any, asynchronous: AsyncPublisher) -> None:
    for _ in range(3):
        assert sorted([await asynchronous.shortest_of(BULK) for _ in BULK]) == sorted(BULK)
    redis.lpush("bulk", "a message")
    assert sorted([await asynchronous.shortest_of(BULK) for _ in BULK[1:]]) == sorted(BULK[1:])


async def test_producers_do_not_begin_with_the_same_queue(redis_url: str) -> None:
    chosen = set()
    for _ in range(40):
        producer = AsyncPublisher(redis_url)
        chosen.add(await producer.shortest_of(BULK))
        await producer.aclose()
    assert len(chosen) > 1


async def test_without_redis_a_queue_is_chosen_and_nothing_is_sent() -> None:
    asynchronous, publisher = AsyncPublisher(NOWHERE), Publisher(NOWHERE)
    try:
        assert sorted([await asynchronous.shortest_of(BULK) for _ in BULK]) == sorted(BULK)
        for pages in ([page()], [page(), page()]):
            with pytest.raises(QueueUnavailable, match=r"^Redis cannot be reached \(ConnectionError\)$"):
                await asynchronous.publish(pages)
            with pytest.raises(QueueUnavailable, match=r"^Redis cannot be reached \(ConnectionError\)$"):
                publisher.publish_now(pages)
    finally:
        await asynchronous.aclose()
        publisher.close()
