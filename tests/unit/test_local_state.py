"""The state directory: one owner at a time, leftovers ended by proof, endpoints of a living owner; paths."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyfunq.errors import AlreadyRunning, ServerFailed
from pyfunq.local import identity, state
from pyfunq.local.postgres import fits_socket, private_temporary
from pyfunq.local.redis import find_redis
from pyfunq.local.state import StateDirectory, read_endpoints

ROOT = Path(__file__).parents[2]
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
OWNER = """
import os, sys, time, json
from pathlib import Path
from pyfunq.local.state import StateDirectory
directory = StateDirectory(Path(sys.argv[1]))
with directory.lock():
    directory.write_endpoints({"redis_url": "redis://here"})
    sleep = "import time; time.sleep(60)"
    stray = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)"
    running = directory.start("sample", [sys.executable, "-c", f"{stray}; {sleep}"])
    print(json.dumps([running.pid, running._guard.pid]), flush=True)
    time.sleep(60)
"""


def eventually(holds: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, f"not within {seconds} s: {what}"
        threading.Event().wait(0.01)


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "home")


class Owner:
    """Another program that has the directory, and a guarded process with a child in a session of its own."""

    def __init__(self, home: Path) -> None:
        self.program = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(home)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.program.stdout is not None
        self.pid, self.guard = json.loads(self.program.stdout.readline())

    def kill(self) -> None:
        self.program.kill()
        self.program.wait()
        assert self.program.stdout is not None
        self.program.stdout.close()


@pytest.fixture
def owner(directory: StateDirectory) -> Iterator[Owner]:
    other = Owner(directory.home)
    yield other
    other.kill()


def test_directories_are_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = StateDirectory(tmp_path / "deep" / "home")
    finally:
        os.umask(before)
    assert made.home.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)
    assert {d.stat().st_mode & 0o777 for d in (made.logs, made.run)} == {0o700}


def test_directory_that_is_there_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o750)
    assert StateDirectory(tmp_path / "home").home.stat().st_mode & 0o777 == 0o750


def test_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(ServerFailed, match="in the way"):
        StateDirectory(tmp_path / "home")


def test_second_program_is_told_who_has_the_directory(
    directory: StateDirectory, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "LOCK_SECONDS", 0.1)
    with pytest.raises(AlreadyRunning) as caught, directory.lock():
        pass
    assert f"pid {owner.program.pid})" in caught.value.message
    assert str(directory.home) in caught.value.message
    assert identity.started(owner.pid)


def test_lock_is_free_again_after_use_and_waits_for_a_program_that_is_ending(directory: StateDirectory) -> None:
    release = threading.Event()
    taken = threading.Event()

    def hold() -> None:
        with directory.lock():
            taken.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(10)
    threading.Timer(0.2, release.set).start()
    with directory.lock():
        assert release.is_set()
    holder.join()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the environment of others is read by /proc")
def test_next_owner_ends_what_a_killed_program_and_guard_left(directory: StateDirectory, owner: Owner) -> None:
    def strays() -> list[int]:
        mark = json.loads(record.read_text())["token"].encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    record = next(directory.run.glob("sample.*.json"))
    eventually(lambda: len(strays()) == 2, "the program and its child run")
    os.kill(owner.program.pid, signal.SIGSTOP)  # lets neither see the other's end
    os.kill(owner.guard, signal.SIGKILL)
    owner.kill()
    eventually(lambda: identity.started(owner.pid) is None, "the program is gone with its guard")
    left = strays()
    assert len(left) == 1
    with directory.lock():
        assert not any(identity.started(pid) for pid in left)
        assert list(directory.run.iterdir()) == []


def test_record_of_a_pid_that_another_process_has_now_harms_nobody(directory: StateDirectory) -> None:
    bystander = subprocess.Popen(SLEEP)
    try:
        nobody = [bystander.pid, "another start"]
        record = {"owner": nobody, "guard": nobody, "program": nobody, "token": "x", "stop_seconds": 1}
        (directory.run / "sample.1.json").write_text(json.dumps(record))
        (directory.run / "sample.2.json").write_text('{"owner":')
        with directory.lock():
            assert list(directory.run.iterdir()) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_processes_of_a_living_program_are_not_leftovers(directory: StateDirectory) -> None:
    running = directory.start("sample", SLEEP)
    directory.clean_leftovers()
    assert running.returncode() is None
    assert len(list(directory.run.iterdir())) == 1
    running.stop()
    assert list(directory.run.iterdir()) == []


def test_endpoints_are_those_of_a_living_owner(directory: StateDirectory, owner: Owner) -> None:
    assert read_endpoints(directory.home) == {"redis_url": "redis://here"}
    owner.kill()
    assert read_endpoints(directory.home) == {}


def test_endpoints_are_private_and_can_be_removed(directory: StateDirectory) -> None:
    assert read_endpoints(directory.home) == {}
    directory.write_endpoints({"database_url": "postgresql://x"})
    assert (directory.home / "endpoints.json").stat().st_mode & 0o777 == 0o600
    assert read_endpoints(directory.home) == {"database_url": "postgresql://x"}
    directory.remove_endpoints()
    directory.remove_endpoints()
    assert read_endpoints(directory.home) == {}


def test_reading_endpoints_needs_nothing_of_the_servers() -> None:
    code = "import sys; from pyfunq.local import read_endpoints; raise SystemExit('psutil' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_identity_is_of_one_process(tmp_path: Path) -> None:
    assert identity.alive(os.getpid(), identity.started(os.getpid()))
    assert not identity.alive(os.getpid(), "another start")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    eventually(lambda: identity.started(ended.pid) is None, "a zombie counts as gone")
    ended.wait()
    assert not identity.alive(ended.pid, None)


def test_missing_redis_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ServerFailed, match=r"apt install redis-server.*brew install redis.*PYFUNQ_REDIS_URL"):
        find_redis()


def test_redis_on_path_goes_before_the_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "valkey-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis() == program


@pytest.mark.parametrize(
    ("path", "fits"),
    [("/var/lib/pyfunq/postgres/socket", True), ("/a" * 50, False), ("/a,b", False), ("/a b", False), ("/ä", False)],
)
def test_socket_paths_are_short_and_plain(path: str, fits: bool) -> None:
    assert fits_socket(Path(path)) is fits


def test_temporary_directory_of_another_user_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    name = f"pyfunq-test-{os.getpid()}"
    mine = private_temporary(name)
    try:
        assert mine == Path("/tmp") / name
        assert private_temporary(name) == mine
        mine.chmod(0o755)
        other = private_temporary(name)
        other.rmdir()
        assert other != mine
    finally:
        mine.rmdir()
