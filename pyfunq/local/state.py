"""The state directory: who uses it, what runs in it or was left by a crash, and where its servers listen."""

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pyfunq.errors import AlreadyRunning
from pyfunq.local import identity
from pyfunq.local.files import make_directory, write_private
from pyfunq.local.process import GuardedProcess

LOCK_SECONDS = 2.0
"""A program that is just ending gets this long to give the directory up."""


class StateDirectory:
    """`home` with the data of the embedded servers, `logs/`, and `run/` with a record of what runs.

    Made for its owner alone; root's can be passed through, because PostgreSQL runs as a user of its own.
    An existing directory keeps its permissions.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.logs = self.home / "logs"
        self.run = self.home / "run"
        make_directory(self.home, 0o711 if os.geteuid() == 0 else 0o700)
        for directory in (self.logs, self.run):
            make_directory(directory, 0o700)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Use the directory alone, once what a crash left is ended; AlreadyRunning when another has it."""
        with os.fdopen(os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            give_up = time.monotonic() + LOCK_SECONDS
            while not _locked(file.fileno()):
                if time.monotonic() > give_up:
                    file.seek(0)
                    pid = file.read().strip() or "unknown"
                    raise AlreadyRunning(
                        f"another PyFunQ (pid {pid}) uses the state directory {self.home}; "
                        "stop it, or set PYFUNQ_HOME to another directory"
                    )
                time.sleep(0.05)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            self.clean_leftovers()
            yield

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_seconds: float = 10.0,
    ) -> GuardedProcess:
        """`GuardedProcess.start`, logging to `logs/`, recorded so that the next `lock` ends what a crash left."""
        return GuardedProcess.start(
            name,
            argv,
            log=self.logs / f"{name}.log",
            env=env,
            cwd=cwd,
            user=user,
            stop_signal=stop_signal,
            stop_seconds=stop_seconds,
            record=self.run / f"{name}.{os.urandom(4).hex()}.json",
        )

    def clean_leftovers(self) -> None:
        """End what programs that are gone left running; what a living program started is not touched."""
        for path in sorted(self.run.glob("*.json")):
            from pyfunq.local.leftovers import end_leftover  # psutil, which `read_endpoints` must do without

            try:
                record = json.loads(path.read_text())
                if identity.alive(*record["owner"]):
                    continue
                end_leftover(record)
            except (ValueError, KeyError, TypeError):
                pass  # not a record of ours, or torn by a crash of the machine: nothing of it can be running
            path.unlink(missing_ok=True)

    def write_endpoints(self, endpoints: Mapping[str, str]) -> None:
        """Tell `read_endpoints` of other programs where this one's servers listen, passwords included."""
        content = {"endpoints": dict(endpoints), "owner": [os.getpid(), identity.started(os.getpid())]}
        write_private(self.home / "endpoints.json", json.dumps(content))

    def remove_endpoints(self) -> None:
        (self.home / "endpoints.json").unlink(missing_ok=True)


def read_endpoints(home: Path) -> dict[str, str]:
    """What the running owner of the state directory wrote; empty when none runs or it cannot be read."""
    try:
        content = json.loads((home / "endpoints.json").read_text())
        return dict(content["endpoints"]) if identity.alive(*content["owner"]) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
