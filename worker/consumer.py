"""Celery's consumer, whose events for Flower go in groups and not before the messages that they tell of."""

import time
from typing import Any

from celery.worker.consumer import Consumer

_EVENTS_WAIT_SECONDS = 0.1


class GroupingConsumer(Consumer):  # type: ignore[misc]
    """Celery's own sends them at its loop's next turn: a round trip to Redis before a message goes to its process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sent_at = 0.0
        super().__init__(*args, **kwargs)

    def on_send_event_buffered(self) -> None:
        now = time.monotonic()
        # A moment and not a flag: a connection that breaks takes the timer with it.
        if self.hub and now >= self._sent_at:
            self._sent_at = now + _EVENTS_WAIT_SECONDS
            self.hub.call_later(_EVENTS_WAIT_SECONDS, self._flush_events)
