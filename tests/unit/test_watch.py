"""The watch over calls: what it interrupts, what it lets be, and what it kills; and the drain that it heeds."""

import faulthandler
import gc
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

from pyfunq.entries import ClaimedJob
from pyfunq.errors import PyFunQError, TimedOut
from pyfunq.ids import new_id
from worker import watch as module
from worker.draining import Drain
from worker.watch import Drained, Interrupted, Watch, Withdrawn

# The watch takes SIGALRM, which pytest-timeout would use as well.
pytestmark = pytest.mark.timeout(60, method="thread")


def job() -> ClaimedJob:
    return ClaimedJob(
        id=new_id(),
        attempt=1,
        model_uri="models:/a/1",
        queue="bulk",
        rows=1,
        input_format="split",
        input=b"",
        params=None,
        version_id=1,
        confidence=False,
    )


class Keeper:
    def __init__(self) -> None:
        self.gone: set[UUID] = set()

    def withdrawn(self, jobs: Sequence[ClaimedJob]) -> set[UUID]:
        return self.gone & {job.id for job in jobs}

    def part_with(self, culprits: Sequence[ClaimedJob], reason: PyFunQError | None) -> None:
        raise AssertionError("nothing here is to be killed")


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def drain() -> Drain:
    return Drain()


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """What the C library's timer is set to, again and again: in how many seconds it ends this process, None: never."""
    told: list[float | None] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: told.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: told.append(None))
    return told


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time as the watch sees it; and its thread does not look at anything."""
    now = [1000.0]
    monkeypatch.setattr(module, "_TICK_SECONDS", 1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def watch(keeper: Keeper, drain: Drain) -> Iterator[Watch]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGUSR2)}
    watch = Watch(keeper, drain)
    yield watch
    watch.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def loop() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(30)


def backtrack() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")


def swallow() -> None:
    """As many models do: an answer in any case."""
    try:
        sleep()
    except Exception:
        return


@pytest.mark.parametrize("hang", [loop, sleep, backtrack, swallow])
def test_a_call_that_takes_too_long_is_interrupted(watch: Watch, hang: object) -> None:
    begun = time.monotonic()
    with pytest.raises(TimedOut, match=r"^timed out after 0\.3 s$"):
        watch.run([job()], 0.3, hang)  # type: ignore[arg-type]
    assert 0.3 <= time.monotonic() - begun < 15, "it would take 30 s at least"
    assert watch.run([job()], 0.3, lambda: 7) == 7


def test_a_call_in_time_is_left_alone_and_its_errors_are_its_own(watch: Watch) -> None:
    assert watch.run([job()], 5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        watch.run([job()], 5, lambda: 1 // 0)


@pytest.fixture
def _uncollected() -> Iterator[None]:
    """Without garbage collection: what interrupts another library's callback of it is lost, and a warning."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_uncollected")
def test_no_interruption_comes_after_the_end_of_its_call(watch: Watch) -> None:
    ends = {"in time": 0, "late": 0}
    for n in range(400):
        limit = 0.002
        until = time.monotonic() + limit * (0.9 + 0.2 * (n % 20) / 20)
        try:
            watch.run([job()], limit, lambda until=until: _spin(until))  # type: ignore[misc]
            ends["in time"] += 1
        except TimedOut:
            ends["late"] += 1
        except Interrupted:
            pytest.fail("it escaped from its call")
    assert all(ends.values()), ends


def _spin(until: float) -> None:
    while time.monotonic() < until:
        pass


def test_a_call_that_nobody_waits_for_is_interrupted(watch: Watch, keeper: Keeper) -> None:
    jobs = [job(), job()]
    keeper.gone = {jobs[1].id, new_id()}
    begun = time.monotonic()
    with pytest.raises(Withdrawn) as caught:
        watch.run(jobs, 30, sleep)
    assert caught.value.ids == {jobs[1].id}
    assert time.monotonic() - begun < 15


def test_when_the_drain_is_over_a_call_ends_and_none_begins(watch: Watch, drain: Drain) -> None:
    drain.begin(0.2)
    with pytest.raises(Drained):
        watch.run([job()], 30, sleep)
    with pytest.raises(Drained):
        watch.run([job()], 30, lambda: 7)


def test_a_thread_that_cannot_be_interrupted_is_not(watch: Watch) -> None:
    ended: list[int] = []
    thread = threading.Thread(target=lambda: ended.append(watch.run([job()], 0.1, lambda: _spin_for(0.8))))
    thread.start()
    thread.join()
    assert ended == [7]


def _spin_for(seconds: float) -> int:
    _spin(time.monotonic() + seconds)
    return 7


@pytest.mark.parametrize(
    ("call", "limits", "reason"),
    [
        ("stubborn()", {}, "timed out after 0.3 s"),
        (
            "held = bytearray(b'x') * 400_000_000; time.sleep(30)",
            {"max_memory_bytes": 300_000_000},
            "used more than",
        ),
        ("drain.begin(0.1); stubborn()", {}, None),
    ],
)
def test_what_does_not_heed_an_interruption_is_killed_after_its_jobs_are_parted_with(
    tmp_path: Path, call: str, limits: dict[str, int], reason: str | None
) -> None:
    limit = 0.3 if reason and "timed" in reason else 30
    program = f"""
        import json, sys, time
        from tests.unit.test_watch import job
        from worker import watch as w
        from worker.draining import Drain
        w._GRACE_SECONDS = 1.0
        class Keeper:
            def withdrawn(self, jobs):
                return set()
            def part_with(self, culprits, reason):
                with open({str(tmp_path / "parted")!r}, "w") as file:
                    json.dump([len(culprits), reason and str(reason)], file)
        def stubborn():
            end = time.monotonic() + 30
            while time.monotonic() < end:
                try:
                    time.sleep(30)
                except BaseException:
                    pass
        drain = Drain()
        def call():
            {call}
        w.Watch(Keeper(), drain, **{limits!r}).run([job(), job()], {limit}, call)
    """
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    culprits, said = json.loads((tmp_path / "parted").read_text())
    assert culprits == (2 if reason else 0)
    assert (said or "").startswith(reason or "")
    assert time.monotonic() - begun < 20, "the call would take 30 s"


def test_a_drain_is_seen_by_the_processes_forked_before_it() -> None:
    drain = Drain()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        deadline = time.monotonic() + 10
        while not drain.over and time.monotonic() < deadline:
            pass
        os.write(writing, b"over" if drain.over else b"not")
        os._exit(0)
    assert not drain.begun
    assert not drain.over
    drain.begin(0.05)
    drain.begin(100)
    assert os.read(reading, 10) == b"over"
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    assert drain.begun


# The timer of the C library, which ends a process that lets no other thread run.


def test_many_short_calls_set_the_timer_once_a_second(
    timer: list[float | None], clock: list[float], watch: Watch
) -> None:
    for _ in range(100):
        watch.run([job()], 5, lambda: 7)
        clock[0] += 0.009
    assert timer == [15]
    clock[0] += 0.2
    for _ in range(100):
        watch.run([job()], 5, lambda: 7)
    assert timer == [15, 15]


def test_the_timer_is_set_anew_for_another_limit(timer: list[float | None], clock: list[float], watch: Watch) -> None:
    for limit in (5, 60, 60, 5, 5):
        watch.run([job()], limit, lambda: 7)
    assert timer == [15, 70, 15], "never before the call's time is over, nor long after it"


def test_calls_that_cannot_be_interrupted_set_no_timer(
    timer: list[float | None], clock: list[float], watch: Watch
) -> None:
    thread = threading.Thread(target=lambda: watch.run([job()], 5, lambda: 7))
    thread.start()
    thread.join()
    assert timer == []
    watch.run([job()], 5, lambda: 7)
    assert timer == [15]


def test_while_a_call_runs_the_timer_stays_and_soon_after_the_last_one_it_is_off(
    timer: list[float | None], watch: Watch
) -> None:
    def is_kept() -> bool:
        return _within(10, lambda: len(timer) > 2)

    assert watch.run([job()], 30, is_kept)
    first, second, third = (left or 0.0 for left in timer[:3])
    assert 40 >= first > second > third > 10, "it counts from when the call began"
    assert _within(10, lambda: timer[-1] is None)
    assert watch.run([job()], 30, lambda: timer[-1] is not None)
    assert _within(10, lambda: timer[-1] is None)


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        pass
    return holds()


def test_a_watch_that_closes_leaves_no_timer(timer: list[float | None], clock: list[float], watch: Watch) -> None:
    watch.run([job()], 5, lambda: 7)
    assert timer == [15]
    watch.close()
    assert timer == [15, None]
