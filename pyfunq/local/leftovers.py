"""Ends what a program that was killed left running, by the record that was written when it started."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import psutil

from pyfunq.local import identity
from pyfunq.local.identity import TOKEN_VARIABLE, kill_group

GUARD_SECONDS = 5.0
"""What a guard gets beyond its program's own time to stop."""


def end_leftover(record: dict[str, Any]) -> None:
    """A guard whose owner is gone is stopping its program: let it, then end what is left.

    The record is the one of `GuardedProcess.start`; KeyError, TypeError or ValueError when it is not.
    """
    give_up = time.monotonic() + float(record["stop_seconds"]) + GUARD_SECONDS
    while identity.alive(*record["guard"]) and time.monotonic() < give_up:
        time.sleep(0.02)
    kill_group(*record["guard"])
    pid, start = record["program"]
    end_program(pid, start, record["token"])


def end_program(pid: int, start: str | None, token: str) -> None:
    """SIGKILL a program whose guard is gone, its descendants, and what carries its token; wait for their end."""
    descendants: list[psutil.Process] = []
    if identity.alive(pid, start):
        with contextlib.suppress(psutil.NoSuchProcess):
            descendants = psutil.Process(pid).children(recursive=True)
    kill_group(pid, start)
    end_all([*descendants, *_marked(token)])


def end_in_directory(name: str, directory: Path) -> None:
    """SIGKILL the processes of this name that work in `directory`, a private one of ours; wait for it."""
    found = []
    resolved = str(directory.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() == name and process.cwd() == resolved:
                found.append(process)
    end_all(found)


def end_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def _marked(token: str) -> list[psutil.Process]:
    """Processes that the program started, in whatever session: they carry its token in their environment.

    So does this program, when it was started from a terminal below the old one; it and its parents are spared.
    """
    found = []
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in spared and process.environ().get(TOKEN_VARIABLE) == token:
                found.append(process)
    return found
