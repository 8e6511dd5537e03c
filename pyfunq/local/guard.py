"""The guard: a small program that runs one server and ends it when the program that asked for it is gone.

`pyfunq.local.process` starts it by path, isolated from the environment: it imports the standard library only.
Its standard input is a pipe from the parent. The first line, JSON, says what to run; later lines are
`{"stop": seconds}` or `{"kill": true}`. End of file means that the parent is gone, however it ended. On standard
output it reports `{"pid": ...}` or `{"error": ...}`, and `{"exit": returncode}` at the end.
"""

import contextlib
import json
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TICK_SECONDS = 1.0
"""How often it looks whether the parent lives: a fork of the parent may hold the pipe open."""
ORPHAN_SECONDS = 5.0
"""What a program gets when its owner is gone: what it talks to ends at the same time, so more would not help it."""
KILL_SECONDS = 5.0
"""How long to wait for killed processes; only one that hangs in the kernel takes longer."""


def find_prctl() -> Callable[[int, int], Any] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        return lambda option, value: libc.prctl(option, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return None


class Guard:
    """One program, from its start to the end of the last process that it left behind."""

    def __init__(self, spec: dict[str, Any], buffer: bytes) -> None:
        self.spec = spec
        self.buffer = buffer
        """What was read of the requests and does not yet make a line."""
        self.prctl = find_prctl()
        self.pid = 0
        self.returncode: int | None = None
        self.deadline: float | None = None
        self.parent_listens = True
        self.terminated = False
        self.wakeup = os.pipe()
        for end in self.wakeup:
            os.set_blocking(end, False)

    def run(self) -> None:
        self.watch_signals()
        try:
            self.spawn()
        except (OSError, KeyError, ValueError, subprocess.SubprocessError) as e:
            report({"error": f"{type(e).__name__}: {e}"})
            return
        report({"pid": self.pid})
        self.obey(b"")
        while self.returncode is None:
            self.wait()
        self.kill_rest()
        report({"exit": self.returncode})

    def watch_signals(self) -> None:
        """Handlers, not SIG_IGN: an ignored signal would stay ignored in the server."""
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.set_wakeup_fd(self.wakeup[1], warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGTERM, self.on_terminate)

    def on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        self.terminated = True

    def spawn(self) -> None:
        guard, prctl = os.getpid(), self.prctl
        if prctl:
            # What the server leaves behind, in whatever session, becomes the guard's child, which then ends it.
            prctl(PR_SET_CHILD_SUBREAPER, 1)

        def die_with_guard() -> None:
            # After the change of user, which clears it. It follows the forking thread: the guard has but one.
            if prctl:
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != guard:
                    os._exit(1)

        entry = pwd.getpwnam(self.spec["user"]) if self.spec["user"] else None
        log = os.open(self.spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        process = subprocess.Popen(
            self.spec["argv"],
            env=self.spec["env"],
            cwd=self.spec["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            preexec_fn=die_with_guard,
            user=entry.pw_uid if entry else None,
            group=entry.pw_gid if entry else None,
            extra_groups=[] if entry else None,
        )
        os.close(log)
        self.pid = process.pid
        # `reap` waits for every child, this one included.
        process.returncode = 0

    def wait(self) -> None:
        """Sleep until a request, a signal, a deadline or the next look at the parent, and act on it."""
        timeout = TICK_SECONDS
        if self.deadline is not None:
            timeout = max(0.0, min(timeout, self.deadline - time.monotonic()))
        watched = [self.wakeup[0], 0] if self.parent_listens else [self.wakeup[0]]
        readable, _, _ = select.select(watched, [], [], timeout)
        if self.wakeup[0] in readable:
            os.read(self.wakeup[0], 4096)
        self.reap()
        if self.returncode is not None:
            return
        if 0 in readable:
            data = os.read(0, 65536)
            self.parent_listens = bool(data)
            self.obey(data)
        if self.terminated:
            self.stop(self.spec["stop_seconds"])
        if not self.parent_listens or os.getppid() != self.spec["parent"]:
            self.stop(min(self.spec["stop_seconds"], ORPHAN_SECONDS))
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.kill_rest()

    def obey(self, data: bytes) -> None:
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "kill" in request:
                self.kill_rest()
            elif "stop" in request:
                self.stop(request["stop"])

    def stop(self, seconds: float) -> None:
        """Ask the program itself, not its children, to end, and give it this long; never longer than before."""
        deadline = time.monotonic() + seconds
        if self.deadline is None:
            self.deadline = deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self.spec["stop_signal"])
        self.deadline = min(self.deadline, deadline)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.returncode = os.waitstatus_to_exitcode(status)

    def kill_rest(self) -> None:
        """SIGKILL the program's group and, on Linux, every descendant, also in sessions of their own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        give_up = time.monotonic() + KILL_SECONDS
        while time.monotonic() < give_up:
            self.reap()
            children = children_of(os.getpid())
            if not children and self.returncode is not None:
                return
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        if self.returncode is None:
            self.returncode = -signal.SIGKILL


def children_of(parent: int) -> list[int]:
    """Direct children by /proc; elsewhere none, and the process group has to do."""
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
            # The command's name, in parentheses, can hold spaces and parentheses.
            if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                found.append(int(entry))
    return found


def report(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(message).encode() + b"\n")


def main() -> None:
    data = b""
    while b"\n" not in data:
        more = os.read(0, 65536)
        if not more:
            return
        data += more
    line, _, rest = data.partition(b"\n")
    Guard(json.loads(line), rest).run()


if __name__ == "__main__":
    main()
