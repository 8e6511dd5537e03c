"""What the embedded servers have in common: a state directory, a guarded process, a log, and an end."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import psutil

from pyfunq.local.process import GuardedProcess
from pyfunq.local.state import StateDirectory


class EmbeddedServer:
    """`start` of each server returns its URL, or raises ServerFailed and leaves nothing running.

    Several servers can be started at the same time by threads; one server is started once at a time.
    """

    name: ClassVar[str]

    def __init__(self, state: StateDirectory) -> None:
        self.state = state
        self.process: GuardedProcess | None = None
        """The running server; its `returncode()` tells when it ended by itself."""

    @property
    def log(self) -> Path:
        return self.state.logs / f"{self.name}.log"

    def stop(self, timeout: float | None = None) -> None:
        """Stop gracefully, kill after `timeout` seconds (default: the server's own); no-op when not running."""
        if self.process is not None:
            self.process.stop(timeout)

    def _run(self, process: GuardedProcess, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until it is ready; end it when it is not, or when waiting is interrupted."""
        try:
            process.wait_until(ready, seconds)
        except BaseException:
            process.stop(2.0)
            raise
        self.process = process


def free_port() -> int:
    """A port of 127.0.0.1 that is free now; another program can take it before a server does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens(process: GuardedProcess, port: int) -> bool:
    """Whether it is this program, or a child of it, that listens there, and not another one."""
    try:
        program = psutil.Process(process.pid)
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for member in (program, *program.children(recursive=True))
            for connection in member.net_connections("tcp")
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # where that cannot be seen, the answer on the port has to do


def port_was_taken(process: GuardedProcess) -> bool:
    """Whether a server that ended said in its log that another program has its port."""
    return any("address already in use" in line.lower() for line in process.log_tail())
