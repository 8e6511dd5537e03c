"""The end of a worker, announced to all of its processes: what they hold may be finished until the deadline."""

import logging
import mmap
import os
import struct
import threading
import time

log = logging.getLogger(__name__)

_DEADLINE = struct.Struct("d")
_LAST_RESORT_SECONDS = 4.0


class Drain:
    """Made before the fork, and shared by it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _DEADLINE.size)

    def begin(self, seconds: float) -> None:
        """Called in the parent. A second call changes nothing."""
        if not self.begun:
            _DEADLINE.pack_into(self._memory, 0, time.monotonic() + seconds)

    @property
    def begun(self) -> bool:
        return self._deadline > 0.0

    @property
    def over(self) -> bool:
        return 0.0 < self._deadline <= time.monotonic()

    @property
    def _deadline(self) -> float:
        deadline: float = _DEADLINE.unpack_from(self._memory, 0)[0]
        return deadline


def exit_after(seconds: float) -> None:
    """Ends this parent, and with it its processes, should one of them be stuck beyond the end of the drain."""

    def exit_now() -> None:
        log.warning("a process did not end in time; what it held is rescued")
        os._exit(os.EX_TEMPFAIL)

    timer = threading.Timer(seconds + _LAST_RESORT_SECONDS, exit_now)
    timer.daemon = True
    timer.start()
