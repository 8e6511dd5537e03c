"""The watch: ends a call of a model that takes too long or too much, or that nobody waits for any more."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar
from uuid import UUID

import psutil

from pyfunq.entries import ClaimedJob
from pyfunq.errors import PyFunQError, TimedOut
from worker.draining import Drain
from worker.own_process import memory_of_models

log = logging.getLogger(__name__)

R = TypeVar("R")

_TICK_SECONDS = 0.25
_EARLIER_SECONDS = 1.0
_ASK_SECONDS = 1.0
_GRACE_SECONDS = 5.0
_DRAIN_GRACE_SECONDS = 1.0
_MIB = 1024 * 1024


class Interrupted(BaseException):
    """Raised where the model is; not an Exception, so that the model's own handlers let it pass."""


class Withdrawn(PyFunQError):
    """Jobs were cancelled by somebody who wants their call stopped."""

    code = "withdrawn"
    fault = "caller"

    def __init__(self, ids: Set[UUID] = frozenset()) -> None:
        super().__init__()
        self.ids = ids


class Drained(PyFunQError):
    """The worker stops, and its time to finish is over."""

    code = "drained"
    retryable = True


class Keeper(Protocol):
    """Who holds the jobs that this process has claimed, and can part with them in a hurry."""

    def withdrawn(self, jobs: Sequence[ClaimedJob]) -> set[UUID]: ...
    def part_with(self, culprits: Sequence[ClaimedJob], reason: PyFunQError | None) -> None: ...


@dataclass(slots=True, eq=False)
class _Call:
    jobs: Sequence[ClaimedJob]
    seconds: float
    begun: float
    asked: float
    interruptible: bool
    reason: PyFunQError | None = None
    interrupted: float = 0.0
    delivered: bool = False


class Watch:
    """A thread beside the one that predicts. First the call is interrupted; what does not heed that is killed.

    Only the main thread can be interrupted. A call that never lets another thread run (C code that holds Python's lock)
    is interrupted by a timer as soon as it looks at signals, and ended by a timer of the C library in any case.
    """

    def __init__(self, keeper: Keeper, drain: Drain, *, max_memory_bytes: int | None = None) -> None:
        self._keeper = keeper
        self._drain = drain
        self._max_memory_bytes = max_memory_bytes
        self._process = psutil.Process()
        self._calls: list[_Call] = []
        self._in_main: _Call | None = None
        self._stop = threading.Event()
        self._handles_signals = False
        self._arming = threading.Lock()
        self._due = 0.0
        self._thread = threading.Thread(target=self._run, name="pyfunq-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        with self._arming:
            self._clear_timer()

    def run(self, jobs: Sequence[ClaimedJob], seconds: float, function: Callable[[], R]) -> R:
        """`function()` on behalf of the jobs. Raises TimedOut, Withdrawn or Drained when it was interrupted."""
        if self._drain.over:
            raise Drained
        now = time.monotonic()
        call = _Call(jobs, seconds, now, now, threading.current_thread() is threading.main_thread())
        try:
            self._begin(call)
            try:
                return function()
            finally:
                self._end(call)
        except Interrupted:
            self._end(call)
            raise call.reason or TimedOut(_too_long(seconds)) from None

    def _begin(self, call: _Call) -> None:
        if call.interruptible and not self._handles_signals:
            for number in (signal.SIGALRM, signal.SIGUSR2):
                signal.signal(number, self._handle)
            self._handles_signals = True
        self._calls.append(call)
        if call.interruptible:
            self._in_main = call
            signal.setitimer(signal.ITIMER_REAL, call.seconds)
            self._arm(call.seconds)

    def _end(self, call: _Call) -> None:
        if call.interruptible:
            self._in_main = None  # from here on no signal interrupts
        with suppress(ValueError):
            self._calls.remove(call)
        if call.interruptible:
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _arm(self, seconds: float) -> None:
        """Lets a timer of the C library end this process when the call's time is long over.

        To set it takes longer than many a call: so the one of the call before will do if it is hardly earlier.
        """
        due = time.monotonic() + seconds + 2 * _GRACE_SECONDS
        with self._arming:
            if not due - _EARLIER_SECONDS <= self._due <= due:
                self._set_timer(due)

    def _keep_armed(self) -> None:
        """Between calls nothing is due; and a process that was stopped for long is not to end when it goes on."""
        with self._arming:
            call = self._in_main
            if call is not None:
                self._set_timer(call.begun + call.seconds + 2 * _GRACE_SECONDS)
            elif self._due:
                self._clear_timer()

    def _set_timer(self, due: float) -> None:
        self._due = due
        left = max(_EARLIER_SECONDS, due - time.monotonic())
        faulthandler.dump_traceback_later(left, exit=True, file=sys.__stderr__ or sys.stderr)

    def _clear_timer(self) -> None:
        self._due = 0.0
        faulthandler.cancel_dump_traceback_later()

    def _handle(self, *_: object) -> None:
        call = self._in_main
        if call is None or call.delivered:
            return
        if call.reason is None:
            if time.monotonic() < call.begun + call.seconds:
                return  # a signal that was meant for the call before
            self._mark(call, TimedOut(_too_long(call.seconds)))
        call.delivered = True
        raise Interrupted

    @staticmethod
    def _mark(call: _Call, reason: PyFunQError) -> None:
        call.interrupted = time.monotonic()
        call.reason = reason

    def _run(self) -> None:
        while not self._stop.wait(_TICK_SECONDS):
            self._keep_armed()
            for call in list(self._calls):
                try:
                    self._look_at(call)
                except PyFunQError as exc:
                    log.warning("the watch cannot ask: %s", exc)

    def _look_at(self, call: _Call) -> None:
        if self._max_memory_bytes is not None and self._held_bytes() > self._max_memory_bytes:
            self._kill(call, TimedOut(f"used more than {self._max_memory_bytes / _MIB:.0f} MiB of memory"))
        if call.reason is None:
            reason = self._reason_against(call)
            if reason is not None:
                self._mark(call, reason)
                if call.interruptible:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
        elif time.monotonic() > call.interrupted + self._grace(call.reason):
            self._kill(call, call.reason)

    def _held_bytes(self) -> int:
        return int(self._process.memory_info().rss) + memory_of_models()

    def _reason_against(self, call: _Call) -> PyFunQError | None:
        now = time.monotonic()
        if now > call.begun + call.seconds:
            return TimedOut(_too_long(call.seconds))
        if self._drain.over:
            return Drained()
        if now > call.asked + _ASK_SECONDS:
            call.asked = now
            if ids := self._keeper.withdrawn(call.jobs):
                return Withdrawn(ids)
        return None

    @staticmethod
    def _grace(reason: PyFunQError) -> float:
        return _DRAIN_GRACE_SECONDS if isinstance(reason, Drained) else _GRACE_SECONDS

    def _kill(self, call: _Call, reason: PyFunQError) -> None:
        """The end of this process; first its jobs are put where others find them."""
        if call not in self._calls:
            return
        log.warning("this process ends, with %d jobs in a call: %s", len(call.jobs), reason)
        try:
            if isinstance(reason, TimedOut):
                self._keeper.part_with(call.jobs, reason)
            else:
                self._keeper.part_with((), None)
        except PyFunQError as exc:
            log.warning("its jobs wait for rescue: %s", exc)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


def _too_long(seconds: float) -> str:
    return f"timed out after {seconds:g} s"
