"""What the host of a virtual machine gives to others of its cores' time, and measuring again when that was much."""

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import psutil

R = TypeVar("R")

STOLEN_AT_MOST = 0.03
ATTEMPTS_AT_LEAST = 3
PATIENCE_SECONDS = 180.0
_PROBE_SECONDS = 0.5
_PAUSE_SECONDS = 2.0
_BLOCK = bytes(1_000_000)


class Stolen:
    """What was taken since this was made. Where the system does not say, and on a machine of one's own: nothing."""

    def __init__(self) -> None:
        self._before = psutil.cpu_times()

    def share(self) -> float:
        """Of the time of all cores."""
        now = psutil.cpu_times()
        passed = sum(now) - sum(self._before)
        return (getattr(now, "steal", 0.0) - getattr(self._before, "steal", 0.0)) / passed if passed > 0 else 0.0


def _probe() -> float:
    """What is taken while all cores are asked for: one that idles is not missed."""

    def burn() -> None:
        until = time.monotonic() + _PROBE_SECONDS
        while time.monotonic() < until:
            hashlib.sha256(_BLOCK)

    cores = os.cpu_count() or 1
    stolen = Stolen()
    with ThreadPoolExecutor(cores) as threads:
        for burning in [threads.submit(burn) for _ in range(cores)]:
            burning.result()
    return stolen.share()


@dataclass
class Disturbance:
    """Measures a workload's figures, and keeps account of what was taken meanwhile."""

    settle: Callable[[], Awaitable[None]]
    """Before each attempt: nobody is to pay for another's pages."""
    patience_seconds: float = PATIENCE_SECONDS
    """How long a measurement waits for moments without disturbance, and is made again in them."""
    probe: Callable[[], float] = _probe
    watch: Callable[[], Stolen] = Stolen
    measured: int = 0
    again: int = 0
    largest_share: float = 0.0

    async def measure(self, once: Callable[[], Awaitable[R]]) -> R:
        """What `once` returns when it is left in peace; else, when patience ends, of the attempt with least taken.

        Which attempt counts does not depend on what it measured.
        """
        self.measured += 1
        until = time.monotonic() + self.patience_seconds
        shares: list[float] = []
        while True:
            await self.settle()
            await self._quiet_moment(until)
            stolen = self.watch()
            found = await once()
            shares.append(stolen.share())
            if shares[-1] == min(shares):
                best = found
            if shares[-1] <= STOLEN_AT_MOST or (len(shares) >= ATTEMPTS_AT_LEAST and time.monotonic() > until):
                break
            print(f"  the host took {shares[-1]:.0%} of that: again", flush=True)
        self.again += len(shares) - 1
        self.largest_share = max(self.largest_share, min(shares))
        return best

    async def _quiet_moment(self, until: float) -> None:
        """Returns when the cores are one's own, or then."""
        while True:
            if await asyncio.to_thread(self.probe) <= STOLEN_AT_MOST or time.monotonic() > until:
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    def __str__(self) -> str:
        return (
            f"During what counts here the host took {self.largest_share:.0%} of the cores' time at most. "
            f"Attempts that do not count, because it took more: {self.again} beside {self.measured}."
        )
