"""Which process a pid means: pids are used again, so a recorded one counts only together with its start."""

import subprocess
import sys
from functools import cache
from pathlib import Path


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


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
