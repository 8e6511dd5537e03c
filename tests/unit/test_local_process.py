"""The guard and GuardedProcess, with small programs in place of servers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pyfunq.errors import ServerFailed
from pyfunq.local import identity, process
from pyfunq.local.process import GuardedProcess

ROOT = Path(__file__).parents[2]
ON_LINUX = sys.platform.startswith("linux")
IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
ENDS_ON_SIGINT = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(5))
print("up", flush=True)
time.sleep(60)
"""
STARTS_SLEEPERS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
tell = "import signal, time\\nsignal.signal(signal.SIGTERM, lambda *_: print('child asked', flush=True))\\n"
tell += "time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", tell])
stray = subprocess.Popen([sys.executable, "-c", tell], start_new_session=True)
print("children", child.pid, stray.pid, flush=True)
time.sleep(60)
"""


def eventually(holds: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, f"not within {seconds} s: {what}"
        threading.Event().wait(0.01)


Start = Callable[..., GuardedProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started = []

    def start_python(code: str, **options: object) -> GuardedProcess:
        started.append(
            GuardedProcess.start("sample", [sys.executable, "-c", code], log=tmp_path / "log", **options)  # type: ignore[arg-type]
        )
        return started[-1]

    yield start_python
    for running in started:
        running.kill()


def logged(running: GuardedProcess, word: str) -> list[str]:
    eventually(lambda: any(word in line for line in running.log_tail()), f"{word!r} in the log")
    return next(line for line in running.log_tail() if word in line).split()


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9), ("", 0)]
)
def test_return_code_is_that_of_the_program(start: Start, code: str, expected: int) -> None:
    assert start(code).wait(10) == expected


def test_program_has_its_log_environment_and_directory_and_no_terminal_session_of_ours(
    start: Start, tmp_path: Path
) -> None:
    shown = "os.getcwd(), os.environ['WORD'], os.getsid(0), repr(sys.stdin.read()), os.environ.get('HOME')"
    running = start(f"import os, sys; print({shown})", env={"WORD": "hello"}, cwd=tmp_path)
    assert running.wait(10) == 0
    directory, word, session, stdin, home = running.log_tail()[-1].split()
    assert (directory, word, stdin, home) == (str(tmp_path), "hello", "''", "None")
    assert int(session) != os.getsid(0)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_signals_that_the_caller_ignores_or_blocks_reach_the_program(start: Start) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = start(
            "import signal; print('hup', signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, "
            "signal.pthread_sigmask(signal.SIG_BLOCK, []))"
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert running.wait(10) == 0
    assert logged(running, "hup")[1:] == ["True", "set()"]


def test_stop_asks_the_program_alone_then_ends_all_that_it_started(start: Start) -> None:
    running = start(STARTS_SLEEPERS)
    pids = [int(pid) for pid in logged(running, "children")[1:]]
    running.stop()
    assert running.returncode() == 3
    assert not any("child asked" in line for line in running.log_tail())
    gone = pids if ON_LINUX else pids[:1]
    eventually(lambda: not any(identity.started(pid) for pid in gone), "children are gone")
    running.stop()  # a second time: nothing to do


def test_stop_kills_after_its_time(start: Start) -> None:
    running = start(IGNORES_SIGTERM)
    logged(running, "up")
    before = time.monotonic()
    running.stop(0.3)
    assert running.returncode() == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - before < 5
    assert identity.started(running.pid) is None


def test_kill_from_another_thread_ends_a_stop_that_waits(start: Start) -> None:
    running = start(IGNORES_SIGTERM)
    logged(running, "up")
    waiting = threading.Thread(target=running.stop, args=(60,))
    waiting.start()
    running.kill()
    waiting.join(10)
    assert not waiting.is_alive()
    assert running.returncode() == -signal.SIGKILL


def test_stop_signal_is_the_one_asked_for(start: Start) -> None:
    running = start(ENDS_ON_SIGINT, stop_signal=signal.SIGINT)
    logged(running, "up")
    running.stop()
    assert running.returncode() == 5


def test_program_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="sample could not be started: FileNotFoundError"):
        GuardedProcess.start("sample", [tmp_path / "nothing"], log=tmp_path / "log")


def test_failure_while_starting_names_the_last_errors_and_the_log(start: Start, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("FATAL: of an earlier start\n")
    running = start("print('noise'); print('FATAL: no room'); raise SystemExit(2)")
    with pytest.raises(ServerFailed) as caught:
        running.wait_until(lambda: False, 10)
    assert "sample ended while it started (return code 2): FATAL: no room" in caught.value.message
    assert str(tmp_path / "log") in caught.value.message


def test_start_that_takes_too_long_is_a_failure(start: Start) -> None:
    with pytest.raises(ServerFailed, match=r"did not answer within 0\.1 s"):
        start("import time; time.sleep(60)").wait_until(lambda: False, 0.1)


def test_large_log_is_put_aside(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_BYTES", 10)
    (tmp_path / "log").write_text("of an earlier start\n")
    assert start("print('new')").wait(10) == 0
    assert (tmp_path / "log").read_text() == "new\n"
    assert (tmp_path / "log.1").read_text() == "of an earlier start\n"


@pytest.mark.skipif(not ON_LINUX, reason="elsewhere the next look at the process ends it")
def test_program_and_what_it_started_end_with_its_guard(start: Start) -> None:
    running = start(STARTS_SLEEPERS)
    pids = [int(pid) for pid in logged(running, "children")[1:]]
    guard = psutil.Process(running.pid).parent()
    assert guard is not None
    guard.kill()
    eventually(lambda: identity.started(running.pid) is None, "the program is gone, looked for or not")
    eventually(lambda: running.returncode() == -signal.SIGKILL, "its end is seen")
    assert not any(identity.started(pid) for pid in pids)


HOLDER = """
import json, os, sys, time
from pathlib import Path
from pyfunq.local.process import GuardedProcess
running = GuardedProcess.start("sample", [sys.executable, "-c", sys.argv[2]], log=Path(sys.argv[1]), stop_seconds=0.3)
holds_the_pipe = 0
if sys.argv[3] == "forks":
    holds_the_pipe = os.fork()
    if holds_the_pipe == 0:
        time.sleep(60)
print(json.dumps([running.pid, running.started, holds_the_pipe]), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["plain", "forks"])
def test_program_ends_when_its_starter_is_killed(tmp_path: Path, how: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "log"), IGNORES_SIGTERM, how],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None
    with holder.stdout:
        pid, started, fork = json.loads(holder.stdout.readline())
    assert identity.alive(pid, started)
    holder.kill()
    holder.wait()
    try:
        eventually(lambda: not identity.alive(pid, started), "the program is gone")
    finally:
        if fork:
            os.kill(fork, signal.SIGKILL)
