"""Back-pressure: a bound on the queued jobs of a line (see lanes.py), kept by each producer with a rare count."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pyfunq.errors import BacklogFull, InvalidInput
from pyfunq.lanes import own_of

_FRESH_SECONDS = 1.0
_FRESH_ENOUGH_TO_REFUSE_SECONDS = 0.1
_COUNTING_SHARE = 0.05
"""Counting a large lane takes a while; it must not be what keeps Postgres busy."""
_FIRST_HINT_SECONDS = 5.0
_SHORTEST_HINT_SECONDS, _LONGEST_HINT_SECONDS = 1.0, 60.0


@dataclass(slots=True)
class _Depth:
    """A line's queued jobs when they were counted, and what this producer has submitted since."""

    counted: int = 0
    since: int = 0
    at: float = float("-inf")
    took: float = 0.0
    drained_per_second: float = 0.0
    counting: asyncio.Task[None] | None = None

    @property
    def now(self) -> int:
        return self.counted + self.since

    @property
    def is_known(self) -> bool:
        return self.at > 0

    def is_older_than(self, seconds: float) -> bool:
        return time.monotonic() > self.at + max(seconds, self.took / _COUNTING_SHARE)

    def update(self, counted: int, since: int, begun: float) -> None:
        now = time.monotonic()
        if self.is_known:
            self.drained_per_second = max(0.0, (self.counted + since - counted) / (begun - self.at))
        self.counted, self.since, self.at, self.took = counted, self.since - since, now, now - begun


class Admission:
    """Approximate by what several producers submit between two counts; far from the bound no submit waits for it."""

    def __init__(self, count: Callable[[str, int], Awaitable[int]], max_queued_jobs: int) -> None:
        """`count` counts a line's queued jobs, up to a number."""
        self._count = count
        self._bound = max_queued_jobs
        self._lines: defaultdict[str, _Depth] = defaultdict(_Depth)

    async def admit(self, line: str, jobs: int) -> None:
        """Raises BacklogFull where the line has no room for the jobs, InvalidInput where it never will."""
        self.check_fits(line, jobs)
        depth = self._lines[line]
        if depth.is_older_than(_FRESH_SECONDS):
            counting = self._start_counting(line, depth)
            if not depth.is_known or depth.now + jobs > self._bound // 2:
                await asyncio.shield(counting)
        if depth.now + jobs > self._bound and depth.is_older_than(_FRESH_ENOUGH_TO_REFUSE_SECONDS):
            await asyncio.shield(self._start_counting(line, depth))
        if depth.now + jobs > self._bound:
            raise self._full(line, depth, jobs)
        depth.since += jobs

    def check_fits(self, line: str, jobs: int) -> None:
        """Raises InvalidInput where the line never has room for so many jobs at once."""
        if jobs > self._bound:
            raise InvalidInput(
                f"more jobs at once than {_called(line)} may hold, {self._bound:,} (PYFUNQ_MAX_QUEUED_JOBS); "
                "submit fewer at a time, or a batch",
                field="inputs",
            )

    async def admit_when_there_is_room(self, line: str, jobs: int) -> None:
        while True:
            try:
                return await self.admit(line, jobs)
            except BacklogFull as exc:
                await asyncio.sleep(min(exc.retry_after_seconds, _FIRST_HINT_SECONDS))

    async def close(self) -> None:
        for depth in self._lines.values():
            if depth.counting is not None and not depth.counting.done():
                depth.counting.cancel()
                await asyncio.wait([depth.counting])

    def _start_counting(self, line: str, depth: _Depth) -> asyncio.Task[None]:
        if depth.counting is None or depth.counting.done():
            depth.counting = asyncio.create_task(self._recount(line, depth))
            # Who waits for it is told of its error. Where nobody does, it is not asyncio's to report.
            depth.counting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return depth.counting

    async def _recount(self, line: str, depth: _Depth) -> None:
        begun, since = time.monotonic(), depth.since
        depth.update(await self._count(line, self._bound + 1), since, begun)

    def _full(self, line: str, depth: _Depth, jobs: int) -> BacklogFull:
        over = depth.now + jobs - self._bound
        rate = depth.drained_per_second
        seconds = over / rate if rate > 0 else _FIRST_HINT_SECONDS
        hint = min(_LONGEST_HINT_SECONDS, max(_SHORTEST_HINT_SECONDS, seconds))
        return BacklogFull(
            f"{_called(line)} holds as many queued jobs as it may, {self._bound:,} (PYFUNQ_MAX_QUEUED_JOBS); "
            f"try again in {hint:.0f} s",
            retry_after_seconds=hint,
        )


def _called(line: str) -> str:
    return f"queue {line}" if own_of(line) else f"lane {line}"
