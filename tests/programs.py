"""A real Celery worker, started by a test against the test's own database and Redis database."""

import asyncio
import atexit
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
import pytest
from redis import Redis

from producer.programs import LANES, beat_command, worker_command
from pyfunq.environment import child_environment
from pyfunq.settings import Settings
from tests.chaos import verdict
from tests.conftest import Servers, database_named

ROOT = Path(__file__).parents[1]
READY_SECONDS = 60.0


def until(what: str, condition: Callable[[], Any], seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (held := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        threading.Event().wait(0.05)
    return held


class Program:
    """A program in the background, with its output in a file."""

    def __init__(self, command: list[str], settings: Settings, log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,  # where Celery finds an app that is a module of the tests
                env={**child_environment(settings), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        atexit.register(self._leave_nobody)

    def _leave_nobody(self) -> None:
        """After a test that failed before it stopped what it had started."""
        if self.process.poll() is None:
            self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[int]:
        with suppress(psutil.Error):
            return sorted(child.pid for child in psutil.Process(self.pid).children())
        return []

    def stop(self, seconds: float = 90.0) -> int:
        """As an operator does; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not stop within {seconds:g} s:\n{self.text()[-3000:]}")

    def kill(self) -> None:
        for pid in [self.pid, *self.children()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def start_worker(
    settings: Settings,
    log: Path,
    *,
    app: str = "worker.app",
    processes: int = 2,
    threads: int = 0,
    lanes: str = LANES,
    **environment: str,
) -> Program:
    """A worker whose processes have heartbeats; without a beat, its processes stand in for that.

    With `threads` it is one process of so many.
    """
    pool = ["--pool", "threads"] if threads else []
    extra = [*pool, "--hostname", f"{log.stem}-{time.monotonic_ns()}@%h"]
    command = worker_command(concurrency=threads or processes, lanes=lanes, extra=extra)
    command[command.index("worker.app")] = app
    program = Program(command, settings, log, environment)
    try:
        beating = 1 if threads else processes
        until("the worker's processes beat", lambda: _beating(settings, program) >= beating, READY_SECONDS)
    except BaseException:
        program.kill()
        print(program.text()[-3000:])
        raise
    return program


def start_beat(settings: Settings, log: Path, **environment: str) -> Program:
    return Program(beat_command(log.parent), settings, log, environment)


def _beating(settings: Settings, program: Program) -> int:
    if program.process.poll() is not None:
        pytest.fail(f"the worker ended:\n{program.text()[-3000:]}")
    query = "SELECT count(*) AS n FROM worker WHERE pid = ANY ($1::int[]) AND stopped_at IS NULL"
    return int(ask(settings.database, query, [program.pid, *program.children()])[0]["n"])


def ask(database_url: str, query: str, *arguments: Any) -> list[asyncpg.Record]:
    async def fetch() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(database_url)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return rows
        finally:
            await connection.close()

    return asyncio.run(fetch())


@contextmanager
def own_place(servers: Servers, name: str, redis_number: int, home: Path, **more: Any) -> Iterator[Settings]:
    """Settings with a database and a Redis database of one's own; the database notes every change of a job's status."""
    admin = database_named(servers.database, "postgres")
    template = urlsplit(servers.database).path.lstrip("/")
    ask(admin, f'CREATE DATABASE {name} TEMPLATE "{template}"')
    database = database_named(servers.database, name)
    asyncio.run(verdict.install(database))
    redis_url = urlunsplit(urlsplit(servers.redis)._replace(path=f"/{redis_number}"))
    with Redis.from_url(redis_url) as redis:
        redis.flushdb()
    try:
        yield Settings(
            home=home, database_url=database, redis_url=redis_url, mlflow_tracking_uri=servers.mlflow, **more
        )
    finally:
        ask(admin, f"DROP DATABASE {name} WITH (FORCE)")
