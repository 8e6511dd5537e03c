"""What every benchmark runs on: embedded servers, PyFunQ's worker and beat, programs that can stand still."""

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
from pydantic import SecretStr

from benchmarks.failure import BenchmarkFailed
from producer.programs import beat_command, thread_environment, worker_command
from pyfunq.environment import child_environment
from pyfunq.local import EmbeddedMLflow, EmbeddedPostgres, EmbeddedRedis, StateDirectory
from pyfunq.migrate import migrate
from pyfunq.settings import Settings

PROCESSES = 2
READY_SECONDS = 60.0
_IN_TRANSACTION = (
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL "
    "AND backend_type = 'client backend' AND pid <> pg_backend_pid())"
)
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Servers:
    """Addresses of servers that run, and the process id of Postgres."""

    home: Path
    database: str
    redis: str
    mlflow: str
    postgres_pid: int

    def redis_database(self, number: int) -> str:
        return urlunsplit(urlsplit(self.redis)._replace(path=f"/{number}"))

    def settings(self, database: str, redis_number: int) -> Settings:
        return Settings(
            home=self.home,
            database_url=SecretStr(database),
            redis_url=SecretStr(self.redis_database(redis_number)),
            mlflow_tracking_uri=self.mlflow,
        )


@contextmanager
def embedded_servers() -> Iterator[Servers]:
    """Postgres (fsync on), Redis (with its append-only file) and an MLflow server, in a directory that is deleted."""
    home = Path(tempfile.mkdtemp(prefix="pyfunq-benchmark-"))
    home.chmod(0o755)
    state = StateDirectory(home)
    servers = (EmbeddedPostgres(state), EmbeddedRedis(state), EmbeddedMLflow(state))
    try:
        with state.lock():
            try:
                with ThreadPoolExecutor(3) as threads:
                    database, redis, mlflow = threads.map(_start, servers)
                assert servers[0].process is not None
                yield Servers(home, database, redis, mlflow, servers[0].process.pid)
            finally:
                with ThreadPoolExecutor(3) as threads:
                    list(threads.map(lambda server: server.stop(), servers))
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _start(server: EmbeddedPostgres | EmbeddedRedis | EmbeddedMLflow) -> str:
    return server.start()


async def new_database(url: str, name: str) -> str:
    """The URL of a new database beside that of `url`."""
    connection = await asyncpg.connect(url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def new_ledger(url: str, name: str) -> str:
    own = await new_database(url, name)
    await migrate(own)
    return own


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


class Program:
    """A program that was started, with its output in a log; stopped with all that it started."""

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path, cwd: Path = ROOT, **options: Any
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            options = {"stdout": output, **options}
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                [str(part) for part in command], cwd=cwd, env=dict(environment), stderr=output, **options
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises BenchmarkFailed with the end of its log when it has ended."""
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise BenchmarkFailed(f"{self.log.stem} ended with {self.process.returncode}:\n{tail}")

    def stop(self, seconds: float = 60.0) -> None:
        """Asks it to end, then what it has left behind; kills whoever takes too long."""
        if self.process.poll() is not None:
            return
        members = family(self.pid)[1:]
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for end in (psutil.Process.terminate, psutil.Process.kill):
            members = psutil.wait_procs(members, timeout=0.5)[1]
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    end(member)
            members = psutil.wait_procs(members, timeout=5)[1]


def suspend(programs: Iterable[Program]) -> list[psutil.Process]:
    """Stops programs and all that they started (SIGSTOP); returns whom to resume."""
    processes = [p for program in programs if program.process.poll() is None for p in family(program.pid)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    return processes


def resume(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()


@contextmanager
def paused(programs: Iterable[Program]) -> Iterator[None]:
    """Who does not have its turn stands still, so that its heartbeats cost the others nothing."""
    processes = suspend(programs)
    try:
        yield
    finally:
        resume(processes)


class Worker:
    """PyFunQ's worker of two processes (or one of two threads) and, unless `app` is another one, its beat."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        app: str = "worker.app",
        environment: Mapping[str, str] | None = None,
        *,
        threads: bool = False,
    ) -> None:
        self.name, self.settings = name, settings
        self._processes = 1 if threads else PROCESSES
        home = settings.home
        pool = ["--pool", "threads"] if threads else []
        command = worker_command(concurrency=PROCESSES, extra=["--hostname", f"{name}@%h", *pool])
        command[command.index("worker.app")] = app
        variables = {**child_environment(settings), **thread_environment(PROCESSES), **(environment or {})}
        self.programs = [Program(command, variables, home / f"{name}.log")]
        if app == "worker.app":
            (home / name).mkdir()
            self.programs.append(Program(beat_command(home / name), variables, home / f"{name}-beat.log"))
        self._resting: list[psutil.Process] = []

    async def ready(self) -> None:
        connection = await asyncpg.connect(self.settings.database)
        deadline = time.monotonic() + READY_SECONDS
        while await connection.fetchval("SELECT count(*) FROM worker") < self._processes:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"the worker {self.name!r} did not start")
            await asyncio.sleep(0.1)
        await connection.close()

    def processes(self) -> list[psutil.Process]:
        """The worker's processes that predict."""
        children: list[psutil.Process] = psutil.Process(self.programs[0].pid).children()
        return children

    async def rest(self) -> None:
        """Stands still from now on, until its next turn; not in a transaction, for whose locks others would wait."""
        connection = await asyncpg.connect(self.settings.database)
        deadline = time.monotonic() + READY_SECONDS
        self._resting = suspend(self.programs)
        while await connection.fetchval(_IN_TRANSACTION):
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"the worker {self.name!r} does not end its transaction")
            resume(self._resting)
            await asyncio.sleep(0.05)
            self._resting = suspend(self.programs)
        await connection.close()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        resume(self._resting)
        self._resting = []
        try:
            for program in self.programs:
                program.check()
            yield
        finally:
            await self.rest()

    def stop(self) -> None:
        resume(self._resting)
        for program in self.programs:
            program.process.terminate()
        for program in self.programs:
            program.stop()
