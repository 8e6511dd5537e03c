"""A repair of kombu's Redis channel: one whose connection is gone closes, instead of ending the worker."""

from kombu.transport.redis import Channel, Transport


class ClosableChannel(Channel):  # type: ignore[misc]
    """In kombu 5.7, `close` puts messages back that were not acknowledged, and fails where the connection is gone.

    Then it need not put them back: their jobs are in the ledger, and rescue publishes them again.
    """

    def close(self) -> None:
        if self.connection is not None and self.connection.client is None:
            self.do_restore = False
        super().close()


def close_without_connection() -> None:
    """Makes every Redis connection of this process use such channels."""
    Transport.Channel = ClosableChannel
