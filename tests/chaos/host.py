"""What the host of a virtual machine takes of its cores' time during a run: nobody here is late because of that."""

import threading
import time
from types import TracebackType

from benchmarks.disturbance import Stolen

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
        begun, stolen = time.time(), Stolen()
        while not self._over.wait(_SECONDS):
            now, share = time.time(), stolen.share()
            if share > 0:
                self.spans.append(span_of(begun, now, share))
            begun, stolen = now, Stolen()


def span_of(begun: float, ended: float, share: float) -> tuple[float, float]:
    """The share of a time, at its end."""
    return ended - (ended - begun) * share, ended
