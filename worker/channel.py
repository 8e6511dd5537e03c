"""A repair of kombu's Redis channel: one whose connection is gone closes and forgets, instead of ending the worker."""

from kombu.transport.redis import Channel, Transport


class ClosableChannel(Channel):  # type: ignore[misc]
    """In kombu 5.7, what a channel does for a message fails with an AttributeError once its connection is gone.

    `close` would put messages back that were not acknowledged, and a task that ends would acknowledge its message.
    Neither need be: the jobs are in the ledger, and what is delivered again finds nothing to do.
    """

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


def close_without_connection() -> None:
    """Makes every Redis connection of this process use such channels."""
    Transport.Channel = ClosableChannel
