"""Which process a pid means: pids are used again, so a recorded one counts only together with its start."""

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

TOKEN_VARIABLE = "PYFUNQ_GUARDED"  # noqa: S105
"""In the environment of the program and of what it starts: by it, leftovers of a crash are recognised."""
KILL_SECONDS = 10.0


def started(pid: int) -> str | None:
    """What no other process with this pid has, also after a reboot; None when there is none, or a zombie."""
    if sys.platform.startswith("linux"):
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        # The command's name, in parentheses, can hold spaces and parentheses.
        fields = stat.rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else f"{_boot()}:{int(fields[19])}"
    shown = subprocess.run(  # `ps` is on every Unix, in different places
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split(maxsplit=1)
    return shown[1].strip() if len(shown) == 2 and not shown[0].startswith("Z") else None


def alive(pid: int, start: str | None) -> bool:
    """Whether the process that was recorded with this start still runs."""
    return start is not None and started(pid) == start


def kill_group(pid: int, start: str | None, seconds: float = KILL_SECONDS) -> None:
    """SIGKILL the group that the process leads, if it is still the recorded one; wait until it is gone."""
    give_up = time.monotonic() + seconds
    while alive(pid, start) and time.monotonic() < give_up:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.01)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
