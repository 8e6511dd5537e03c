"""The repaired channel: one client for all that it does for messages."""

from collections.abc import Iterator

import pytest
import redis
from kombu import Connection

from pyfunq.transport import Channel, Transport


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    """Its server is away; to be opened, a channel only asks whether it is there."""
    monkeypatch.setattr(redis.Redis, "ping", lambda _: True)
    with Connection("redis://127.0.0.1:1/0", transport=Transport) as connection:
        yield connection.channel()


def test_messages_share_a_client(channel: Channel) -> None:
    client = channel._create_client()
    assert client.connection_pool is channel.pool
    for _ in range(3):
        with channel.conn_or_acquire() as acquired:
            assert acquired is client


def test_one_that_waits_for_messages_holds_a_connection_and_is_apart(channel: Channel) -> None:
    shared = channel._create_client()
    waiting = [channel._create_client(asynchronous=True) for _ in range(2)]
    assert len({id(client) for client in (shared, *waiting)}) == 3
    assert {id(client.connection_pool) for client in waiting} == {id(channel.async_pool)}
    assert channel._create_client() is shared
    assert channel.client is not shared


def test_channels_share_nothing(channel: Channel) -> None:
    other = channel.connection.client.channel()
    assert other._create_client() is not channel._create_client()


def test_a_client_goes_with_its_pool(channel: Channel) -> None:
    before = channel._create_client()
    channel._disconnect_pools()
    after = channel._create_client()
    assert after is not before
    assert after.connection_pool is channel.pool is not before.connection_pool
    assert channel._create_client() is after
