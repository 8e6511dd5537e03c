"""kombu's Redis transport, repaired: a channel without a connection closes and forgets; one with it has one client."""

from typing import Any

from kombu.transport import redis


class Channel(redis.Channel):  # type: ignore[misc]
    """In kombu 5.7, what a channel does for a message fails with an AttributeError once its connection is gone.

    `close` would put messages back that were not acknowledged, and a task that ends would acknowledge its message.
    Neither need be: the jobs are in the ledger, and what is delivered again finds nothing to do.

    And it makes a redis-py client for each message, acknowledgement and event, which takes longer than to use it.
    """

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
