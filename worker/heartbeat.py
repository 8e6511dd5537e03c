"""This process's heartbeats as Postgres got them: while none arrived, nobody's could be told from silence."""

import time
from collections.abc import Callable

_MISSED_INTERVALS = 2


class Heartbeat:
    """Notes the beats that arrived; `interval_seconds` is the time that lies between two of them."""

    def __init__(self, interval_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._normal_gap = interval_seconds * _MISSED_INTERVALS
        self._clock = clock
        self._last = self._back = clock()
        self._gap = 0.0

    def arrived(self) -> None:
        now = self._clock()
        if now - self._last > self._normal_gap:
            self._gap, self._back = now - self._last, now
        self._last = now

    def silence_of_the_dead(self, stale_seconds: float) -> float:
        """For how many seconds another process must have been silent to count as dead.

        That is `stale_seconds`; and, until all have had that long to be heard again, the time that this process was cut
        off itself: what stood between it and Postgres may have stood before the others too.
        """
        now = self._clock()
        if now - self._last > self._normal_gap:
            return stale_seconds + now - self._last
        return stale_seconds + (self._gap if now - self._back < stale_seconds else 0.0)
