"""What the host of a virtual machine takes of its cores' time during a run: nobody here is late because of that."""

import threading
import time
from types import TracebackType

import psutil

_SECONDS = 1.0


class TakenByHost:
    """Watches from `with` on. Where the system does not say, and on a machine of one's own, nothing is taken."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        """From and to, in seconds since the epoch: as long as a second's stolen share of all cores, at its end."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="taken-by-host", daemon=True)

    def __enter__(self) -> "TakenByHost":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        return sum(ended - begun for begun, ended in self.spans)

    def _watch(self) -> None:
        before = (time.time(), *_stolen())
        while not self._over.wait(_SECONDS):
            now = (time.time(), *_stolen())
            if span := span_of(before, now):
                self.spans.append(span)
            before = now


def span_of(before: tuple[float, float, float], now: tuple[float, float, float]) -> tuple[float, float] | None:
    """Each is a time, and the stolen and the whole time of all cores until then."""
    stolen, passed = now[1] - before[1], now[2] - before[2]
    return (now[0] - (now[0] - before[0]) * stolen / passed, now[0]) if stolen > 0 and passed > 0 else None


def _stolen() -> tuple[float, float]:
    times = psutil.cpu_times()
    return getattr(times, "steal", 0.0), sum(times)
