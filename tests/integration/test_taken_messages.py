"""Messages that a worker has taken: Redis is told of those that it has had for a while, and gets them back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kombu import Connection, Queue
from kombu.asynchronous import Hub
from redis import Redis

from pyfunq import transport
from pyfunq.transport import Channel, Transport
from tests.programs import until


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def connection(redis_url: str) -> Iterator[Connection]:
    with Connection(redis_url, transport=Transport) as connection:
        yield connection


@pytest.fixture
def channel(connection: Connection) -> Channel:
    return connection.channel()


def take(connection: Connection, channel: Channel, body: str) -> Any:
    """A message from its sending to a worker that has it."""
    queue = Queue("taken", channel=channel)
    with connection.Producer() as producer:
        producer.publish({"say": body}, routing_key="taken", declare=[queue], serializer="json")
    message = queue(channel).get()
    assert message.payload == {"say": body}
    return message


def turn(hub: Hub) -> None:
    hub.fire_timers()


def test_redis_is_not_told_of_what_is_acknowledged_soon(
    hub: Hub, connection: Connection, channel: Channel, redis: Redis
) -> None:
    message = take(connection, channel, "soon")
    assert not redis.exists("unacked", "unacked_index")
    message.ack()
    until("nothing is looked at any more", lambda: turn(hub) or not hub.timer._queue)
    assert not redis.exists("unacked", "unacked_index")


def test_redis_is_told_of_what_takes_longer_until_it_is_acknowledged(
    hub: Hub, connection: Connection, channel: Channel, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(transport, "monotonic", lambda: now[0])
    first = take(connection, channel, "one")
    now[0] += 0.6 * transport._NOTE_AFTER_SECONDS
    second = take(connection, channel, "two")
    now[0] += 0.6 * transport._NOTE_AFTER_SECONDS
    until("the first is noted", lambda: turn(hub) or redis.hlen("unacked"))
    assert redis.hkeys("unacked") == [first.delivery_tag], "the second is too new"
    now[0] += 0.6 * transport._NOTE_AFTER_SECONDS
    until("both are noted", lambda: turn(hub) or redis.hlen("unacked") == 2)
    assert redis.zcard("unacked_index") == 2
    for message in (first, second):
        message.ack()
    assert not redis.exists("unacked", "unacked_index")


@pytest.mark.parametrize("noted", [True, False])
def test_what_was_not_acknowledged_goes_back_when_the_worker_stops(
    hub: Hub, connection: Connection, channel: Channel, redis: Redis, noted: bool
) -> None:
    take(connection, channel, "again")
    if noted:
        until("it is noted", lambda: turn(hub) or redis.hlen("unacked"))
    assert redis.llen("taken") == 0
    channel.close()
    assert redis.llen("taken") == 1
    assert not redis.exists("unacked", "unacked_index")


def test_what_is_handed_back_is_there_again(hub: Hub, connection: Connection, channel: Channel, redis: Redis) -> None:
    take(connection, channel, "no").requeue()
    assert redis.llen("taken") == 1
    assert not redis.exists("unacked", "unacked_index")


@contextmanager
def away(*_: Any) -> Iterator[Any]:
    raise ConnectionError("away")
    yield


def test_a_note_that_fails_is_nobodys_error(
    hub: Hub,
    connection: Connection,
    channel: Channel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = take(connection, channel, "unnoted")
    with monkeypatch.context() as patch:
        patch.setattr(channel, "conn_or_acquire", away)
        until("it was looked at", lambda: turn(hub) or not channel.qos._fresh)
    assert not caplog.records
    message.ack()


def test_without_an_event_loop_redis_is_told_at_once(connection: Connection, channel: Channel, redis: Redis) -> None:
    message = take(connection, channel, "threads")
    assert redis.hkeys("unacked") == [message.delivery_tag]
    message.ack()
    assert not redis.exists("unacked")
