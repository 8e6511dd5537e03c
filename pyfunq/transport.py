"""kombu's Redis transport, repaired: a channel without a connection closes and forgets; one with it has one client."""

from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, time
from typing import Any

from kombu.asynchronous import get_event_loop
from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis.exceptions import RedisError

_NOTE_AFTER_SECONDS = 0.1


class QoS(redis.QoS):  # type: ignore[misc]
    """Which messages were taken and not acknowledged: in Redis only those that have been so for a while.

    kombu tells Redis of each message before it is passed on, and again when it is acknowledged. Most have ended by the
    time that this takes effect here. A worker that dies before that takes their messages with it, as one does that dies
    when it has just taken them: rescue publishes jobs without a message again.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._fresh: dict[str, tuple[float, Any]] = {}
        """When each message was taken that Redis is not told of."""
        self._looks_at = 0.0
        super().__init__(*args, **kwargs)

    def append(self, message: Any, delivery_tag: str) -> None:
        hub = get_event_loop()
        if hub is None:
            super().append(message, delivery_tag)
            return
        self._fresh[delivery_tag] = monotonic(), message
        virtual.QoS.append(self, message, delivery_tag)
        self._look_later(hub)

    def ack(self, delivery_tag: str) -> None:
        if self._fresh.pop(delivery_tag, None) is None:
            super().ack(delivery_tag)
        else:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        self._note(list(self._fresh))
        super().reject(delivery_tag, requeue=requeue)

    def restore_unacked(self, client: Any = None) -> None:
        self._note(list(self._fresh))
        super().restore_unacked(client)

    def _look_later(self, hub: Any) -> None:
        # A moment and not a flag: a connection that breaks takes the timer with it.
        if (now := monotonic()) >= self._looks_at:
            self._looks_at = now + _NOTE_AFTER_SECONDS
            hub.call_later(_NOTE_AFTER_SECONDS, self._look, hub)

    def _look(self, hub: Any) -> None:
        before = monotonic() - _NOTE_AFTER_SECONDS
        self._note([tag for tag, (at, _) in list(self._fresh.items()) if at <= before])
        if self._fresh:
            self._look_later(hub)

    def _note(self, tags: Sequence[str]) -> None:
        taken = {tag: found for tag in tags if (found := self._fresh.pop(tag, None)) is not None}
        # Whoever uses the connection next says that it is broken.
        if taken and self.channel.connection is not None:
            with suppress(RedisError, OSError), self.pipe_or_acquire() as pipe:
                pipe.zadd(self.unacked_index_key, dict.fromkeys(taken, time()))
                pipe.hset(self.unacked_key, mapping={tag: self._kept(message) for tag, (_, message) in taken.items()})
                pipe.execute()

    @staticmethod
    def _kept(message: Any) -> str:
        told = message.delivery_info
        return str(dumps([message._raw, told["exchange"], told["routing_key"]]))


class Channel(redis.Channel):  # type: ignore[misc]
    """In kombu 5.7, what a channel does for a message fails with an AttributeError once its connection is gone.

    `close` would put messages back that were not acknowledged, and a task that ends would acknowledge its message.
    Neither need be: the jobs are in the ledger, and what is delivered again finds nothing to do.

    And it makes a redis-py client for each message, acknowledgement and event, which takes longer than to use it.
    """

    QoS = QoS
    _pooled: Any = None

    def close(self) -> None:
        if self.connection is not None and self.connection.client is None:
            self.do_restore = False
        super().close()

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        if self.connection is not None:
            super().basic_ack(delivery_tag, multiple=multiple)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if self.connection is not None:
            super().basic_reject(delivery_tag, requeue=requeue)

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:  # it holds a connection
            return super()._create_client(asynchronous=True)
        if self._pooled is None or self._pooled.connection_pool is not self.pool:
            self._pooled = super()._create_client()
        return self._pooled


class Transport(redis.Transport):  # type: ignore[misc]
    Channel = Channel
