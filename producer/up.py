"""`pyfunq up`: the stack in the foreground, until Ctrl-C."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from producer.output import messages, say
from producer.stack import Stack, running_stack
from pyfunq.environment import read_settings

_CHECK_SECONDS = 0.5
EXIT_INTERRUPTED = 130


def run_up(*, logs: bool, concurrency: int | None, **overrides: Any) -> None:
    """What ends by itself is started again. Raises ServerFailed when something does not start in the first place."""
    settings = read_settings(**({} if concurrency is None else {"concurrency": concurrency}), **overrides)
    with stop_signals() as stop, running_stack(settings, report_component) as stack:
        stop.kill_on_second(stack)
        say(f"ready; state in {stack.state.home}, logs in {stack.state.logs}; Ctrl-C stops")
        followed = _Follower(stack.state.logs) if logs else None
        while not stop.wait(_CHECK_SECONDS):
            stack.heal()
            if followed is not None:
                followed.show_new()
        say("stopping: the worker finishes what it has; Ctrl-C again stops at once")


def report_component(name: str, address: str, state: str) -> None:
    messages.print(f"{name:<9} {state:<11} {address}".rstrip(), markup=False)


class StopSignals:
    """The first SIGINT or SIGTERM asks to stop; the second kills what runs."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._stack: Stack | None = None

    def kill_on_second(self, stack: Stack) -> None:
        self._stack = stack

    def wait(self, seconds: float) -> bool:
        return self._asked.wait(seconds)

    def handle(self, *_: object) -> None:
        if not self._asked.is_set():
            self._asked.set()
            if self._stack is None:  # still starting: unwind, which stops what runs already
                raise KeyboardInterrupt
            return
        if self._stack is not None:
            self._stack.kill()
        os._exit(EXIT_INTERRUPTED)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    stop = StopSignals()
    before = {s: signal.signal(s, stop.handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Follower:
    """Shows what is appended to log files, each line with its component."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: dict[Path, int] = {p: p.stat().st_size for p in directory.glob("*.log")}

    def show_new(self) -> None:
        for path in sorted(self._directory.glob("*.log")):
            start = self._seen.get(path, 0)
            with path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < start:
                    start = 0
                file.seek(start)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._seen[path] = start + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                say(f"{path.stem} | {line}")
