"""Memory: what this process may have, what it has, and by how much that grew while models were loaded."""

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CACHE_SHARE = 0.5


def memory_limit() -> int:
    """Bytes that all processes here may have together: the container's limit, else the machine's memory."""
    limits = [int(psutil.virtual_memory().total)]
    for name in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # `max` is no number
            limits.append(int(Path(name).read_text()))
    return min(limits)


def cache_share(processes: int) -> int:
    """Bytes for the models of each of so many worker processes: together half of the limit."""
    return int(memory_limit() * _CACHE_SHARE / max(1, processes))


def own_memory() -> int:
    """Bytes that are this process's own, not pages of files."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def trim() -> None:
    """Gives back what is free, so that what is measured next is not hidden in it."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)


@dataclass(slots=True)
class Measured:
    floor: int
    """Bytes that it takes at least."""
    bytes: int = 0
    """Set when it has been loaded."""


class Growth:
    """By how much memory grew during loads; those that overlap share it by their floors. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._group: list[Measured] = []
        self._running = 0
        self._before = 0

    @contextmanager
    def during(self, floor: int) -> Iterator[Measured]:
        measured = Measured(max(1, floor))
        with self._lock:
            if not self._running:
                trim()
                self._before = own_memory()
                self._group = []
            self._group.append(measured)
            self._running += 1
        try:
            yield measured
        finally:
            with self._lock:
                self._running -= 1
                measured.bytes = max(measured.floor, self._share(measured))

    def _share(self, measured: Measured) -> int:
        if not self._running:
            trim()
        grown = own_memory() - self._before
        if not self._running:
            return grown - sum(other.bytes for other in self._group if other is not measured)
        return int(grown * measured.floor / sum(other.floor for other in self._group))
