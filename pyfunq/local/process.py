"""One guarded program: its output in a log, stopped gracefully, and gone when its starter is gone."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from pyfunq.errors import ServerFailed
from pyfunq.local import identity
from pyfunq.local.files import write_private

GUARD = Path(__file__).with_name("guard.py")
REPORT_SECONDS = 30.0
"""A guard that says nothing for this long after its start is given up."""
GUARD_KILL_SECONDS = 10.0
"""After a SIGKILL of the program, its guard ends within this."""
ERROR_WORDS = ("FATAL", "PANIC", "ERROR", "Error", "error:")
LOG_BYTES = 16 * 1024 * 1024
"""A log larger than this is put aside as `<name>.1` at the next start."""


class GuardedProcess:
    """A running program and its guard (`pyfunq.local.guard`). Made by `start`; safe to use from threads.

    On Linux the guard ends whatever the program started, also in other sessions; elsewhere its process group.
    """

    def __init__(
        self,
        name: str,
        log: Path,
        guard: subprocess.Popen[bytes],
        token: str,
        stop_seconds: float,
        record: Path | None,
    ) -> None:
        self.name = name
        self.log = log
        self.pid = 0
        """Of the program itself, not of its guard."""
        self.started: str | None = None
        self._record = record
        self._guard = guard
        self._token = token
        self._stop_seconds = stop_seconds
        self._log_start = log.stat().st_size if log.exists() else 0
        self._lock = threading.Lock()
        self._returncode: int | None = None

    @classmethod
    def start(
        cls,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_seconds: float = 10.0,
        record: Path | None = None,
    ) -> Self:
        """Start `argv`, its output appended to `log`; `env` is its whole environment, by default the caller's.

        `user` (root only) is the system user that it runs as. To stop, `stop_signal` goes to the program alone;
        what is left of it and its children after `stop_seconds` is killed. `record` is a file that says what runs,
        as long as it runs (`StateDirectory.start` gives one). Raises ServerFailed when it cannot be executed.
        """
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))
        token = os.urandom(12).hex()
        spec = {
            "argv": [str(part) for part in argv],
            "env": {**(os.environ if env is None else env), identity.TOKEN_VARIABLE: token},
            "cwd": str(cwd or Path.cwd()),
            "user": user,
            "log": str(log.absolute()),
            "stop_signal": int(stop_signal),
            "stop_seconds": stop_seconds,
            "parent": os.getpid(),
        }
        guard = subprocess.Popen(
            # By path: -m would import the package. Isolated: this folder on the path would hide `redis`.
            [sys.executable, "-I", "-S", str(GUARD), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        process = cls(name, log, guard, token, stop_seconds, record)
        try:
            process._ask(spec)
            process._await_report()
            process._write_record()
        except BaseException:
            process._abandon()
            raise
        return process

    def returncode(self) -> int | None:
        """None while the program runs; negative is the number of the signal that ended it."""
        if self._returncode is None and self._guard.poll() is not None:
            self._finish()
        return self._returncode

    def stop(self, timeout: float | None = None) -> None:
        """Ask it to end, kill it after `timeout` seconds (default `stop_seconds`); returns when it is gone."""
        seconds = self._stop_seconds if timeout is None else timeout
        self._end({"stop": seconds}, seconds + GUARD_KILL_SECONDS)

    def kill(self) -> None:
        """End it and all that it started at once."""
        self._end({"kill": True}, GUARD_KILL_SECONDS)

    def wait(self, timeout: float | None = None) -> int | None:
        """The return code, or None when it still runs after `timeout` seconds."""
        try:
            self._guard.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        return self.returncode()

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Poll `ready` until it holds; ServerFailed when the program ends before, or after `seconds`."""
        give_up = time.monotonic() + seconds
        while True:
            came_up = ready()
            if self.returncode() is not None:
                raise self.failure(f"ended while it started (return code {self.returncode()})")
            if came_up:
                return
            if time.monotonic() > give_up:
                raise self.failure(f"did not answer within {seconds:g} s")
            time.sleep(0.03)

    def failure(self, what: str) -> ServerFailed:
        gist = self.log_gist()
        return ServerFailed(f"{self.name} {what}{': ' + gist if gist else ''}; its log is {self.log}")

    def log_tail(self) -> list[str]:
        """The last lines (of at most 16 KiB) that were logged since this start."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - 16384))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [line.strip() for line in text.splitlines() if line.strip()]

    def log_gist(self) -> str:
        """The last three lines that look like errors, else the last three."""
        lines = self.log_tail()
        errors = [x for x in lines if any(word in x for word in ERROR_WORDS)]
        return " | ".join(line[:200] for line in (errors or lines)[-3:])

    def _ask(self, request: dict[str, Any]) -> None:
        with self._lock:
            try:
                _pipe(self._guard.stdin).write(json.dumps(request).encode() + b"\n")
                _pipe(self._guard.stdin).flush()
            except (BrokenPipeError, ValueError):
                return  # the guard is gone already, and the program with it

    def _await_report(self) -> None:
        pipe = _pipe(self._guard.stdout)
        if not select.select([pipe], [], [], REPORT_SECONDS)[0]:
            raise ServerFailed(f"{self.name} could not be started: its guard does not answer")
        report = json.loads(pipe.readline() or b'{"error": "its guard ended"}')
        if "pid" not in report:
            raise ServerFailed(f"{self.name} could not be started: {report['error']}")
        self.pid = report["pid"]
        self.started = identity.started(self.pid)

    def _write_record(self) -> None:
        if self._record is None:
            return
        content = {
            "owner": [os.getpid(), identity.started(os.getpid())],
            "guard": [self._guard.pid, identity.started(self._guard.pid)],
            "program": [self.pid, self.started],
            "token": self._token,
            "stop_seconds": self._stop_seconds,
        }
        write_private(self._record, json.dumps(content))

    def _end(self, request: dict[str, Any], seconds: float) -> None:
        if self.returncode() is not None:
            return
        self._ask(request)
        try:
            self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self.returncode()

    def _finish(self) -> None:
        """The guard has ended: learn how the program did, and end it where a killed guard could not."""
        with self._lock:
            if self._returncode is not None:
                return
            report = _pipe(self._guard.stdout).readline()
            if report:
                code = int(json.loads(report)["exit"])
            else:
                from pyfunq.local.leftovers import end_program  # psutil, which starting must do without

                end_program(self.pid, self.started, self._token)
                code = -signal.SIGKILL
            self._close()
            if self._record is not None:
                self._record.unlink(missing_ok=True)
            self._returncode = code

    def _abandon(self) -> None:
        """Closing the pipe is the request to end."""
        self._close()
        try:
            self._guard.wait(GUARD_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()

    def _close(self) -> None:
        for pipe in (self._guard.stdin, self._guard.stdout):
            try:
                _pipe(pipe).close()
            except BrokenPipeError:
                continue


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ServerFailed("a guard was started without its pipes")
    return pipe
