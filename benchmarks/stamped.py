"""The worker's app with time stamps where a job passes (`celery -A benchmarks.stamped`); a client's by `stamp_client`.

All processes append lines to the file that BENCHMARK_STAMPS names: seconds of the clock that they share, what begins or
has ended, and of how many jobs. Never run it for anything else.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Sized
from typing import Any

VARIABLE = "BENCHMARK_STAMPS"


class Stamps:
    """Lines of several processes in one file: each is written at once, and to the end."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, name: str, jobs: int = 0) -> None:
        os.write(self._file, f"{time.monotonic():.6f} {name} {jobs}\n".encode())

    def coroutine(self, owner: Any, method: str, begins: str, ended: str) -> None:
        """Stamps the begin of a method, with the size of its first argument if it has one, and its end likewise."""
        original = getattr(owner, method)

        @functools.wraps(original)
        async def stamped(*args: Any, **kwargs: Any) -> Any:
            self.add(begins, _size(args[1]))
            found = await original(*args, **kwargs)
            self.add(ended, _size(found))
            return found

        setattr(owner, method, stamped)

    def function(self, owner: Any, name: str, begins: str = "", ended: str = "") -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(original)
        def stamped(*args: Any, **kwargs: Any) -> Any:
            if begins:
                self.add(begins)
            found = original(*args, **kwargs)
            if ended:
                self.add(ended, _size(found))
            return found

        setattr(owner, name, stamped)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 0


def stamp_client(stamps: Stamps) -> None:
    from pyfunq.ledger import Ledger
    from pyfunq.waiting import FinishedJobs

    stamps.coroutine(Ledger, "submit", "submit", "committed")
    stamps.coroutine(Ledger, "results", "ask", "answered")
    stamps.function(FinishedJobs, "_wake", begins="announced")


def stamp_worker(stamps: Stamps) -> None:
    from pyfunq.ledger import Ledger
    from worker import page_run

    stamps.function(page_run, "run_page", begins="message")
    stamps.coroutine(Ledger, "claim", "claim", "claimed")
    stamps.function(page_run, "endings_of", ended="predicted")
    stamps.coroutine(Ledger, "finish", "finish", "recorded")


if "celery" in sys.argv[0]:
    stamp_worker(Stamps(os.environ[VARIABLE]))
    from worker.app import app  # noqa: F401
