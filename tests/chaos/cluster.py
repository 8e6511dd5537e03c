"""What is attacked: servers, workers, the beat and producers, each of which can be ended and started again."""

import asyncio
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil

from producer.programs import beat_command, thread_environment, worker_command
from producer.stack import STOP_MARGIN_SECONDS
from pyfunq.environment import child_environment, load_settings
from pyfunq.local import EmbeddedMLflow, EmbeddedPostgres, EmbeddedRedis, GuardedProcess, StateDirectory
from pyfunq.migrate import migrate
from pyfunq.settings import Settings
from tests.chaos import models, verdict
from tests.chaos.load import TOKENS_A_RECORD

WORKERS, PROCESSES, PRODUCERS = 2, 2, 2
READY_SECONDS = 90.0
QUICK = {
    "PYFUNQ_HEARTBEAT_SECONDS": "1",
    "PYFUNQ_STALE_SECONDS": "4",
    "PYFUNQ_RESCUE_SECONDS": "1",
    "PYFUNQ_PUBLISH_GRACE_SECONDS": "2",
    "PYFUNQ_REGISTRY_WATCH_SECONDS": "1",
    "PYFUNQ_DRAIN_SECONDS": "2",
    "PYFUNQ_TIMEOUT_SECONDS": "3",
    "PYFUNQ_MAX_ATTEMPTS": "20",
    "PYFUNQ_BATCH_MAX_JOBS": "50",
}
"""Everything that takes 20 s in production takes some here, so that a minute holds many faults."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(slots=True)
class Component:
    """A server or program. Who changes whether it runs holds `hold`; its death in between was nobody's."""

    name: str
    start: Callable[[], GuardedProcess]
    hold: threading.Lock = field(default_factory=threading.Lock)
    process: GuardedProcess | None = None

    def begin(self) -> None:
        self.process = self.start()

    @property
    def running(self) -> GuardedProcess:
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process

    def runs(self) -> bool:
        return self.process is not None and self.process.returncode() is None

    def send(self, number: signal.Signals) -> None:
        """To the program itself, behind its guard's back; waits for its end."""
        with suppress(ProcessLookupError):
            os.kill(self.running.pid, number)
        self.running.wait(30.0)


class Cluster:
    """Everything in a new directory; a context manager that ends all of it and, unless told to keep it, removes it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.home = Path(tempfile.mkdtemp(prefix="pyfunq-chaos-"))
        self.home.chmod(0o755)
        self.state = StateDirectory(self.home)
        self.records = self.home / "records"
        self.records.mkdir()
        self.keep = False
        self.postgres = EmbeddedPostgres(self.state)
        self.redis = EmbeddedRedis(self.state)
        self.mlflow = EmbeddedMLflow(self.state)
        self.components: dict[str, Component] = {}
        self._bases = count(TOKENS_A_RECORD, TOKENS_A_RECORD)
        self._starts = count(1)

    def __enter__(self) -> "Cluster":
        for name in [n for n in os.environ if n.startswith("PYFUNQ_") or n == "MLFLOW_TRACKING_URI"]:
            del os.environ[name]
        os.environ.update(QUICK | _QUIET | {"PYFUNQ_HOME": str(self.home)})
        logging.getLogger("asyncpg").setLevel(logging.CRITICAL)  # its pool reports each Postgres that we kill
        self._lock = self.state.lock()
        self._lock.__enter__()
        try:
            self._start_servers()
            self._start_programs()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        servers = [s.process for s in (self.postgres, self.redis, self.mlflow) if s.process is not None]
        programs = [c.process for c in self.components.values() if c.process is not None]
        for group in ([p for p in programs if p not in servers], servers):
            if group:
                with ThreadPoolExecutor(len(group)) as threads:
                    list(threads.map(lambda process: process.kill(), group))
        self.postgres.stop()
        self._lock.__exit__(None, None, None)
        if not self.keep:
            shutil.rmtree(self.home, ignore_errors=True)

    def _start_servers(self) -> None:
        with ThreadPoolExecutor(3) as threads:
            urls = list(threads.map(lambda s: s.start(), (self.postgres, self.redis, self.mlflow)))
        self.redis.port, self.mlflow.port = urlsplit(urls[1]).port, urlsplit(urls[2]).port
        names = ("PYFUNQ_DATABASE_URL", "PYFUNQ_REDIS_URL", "MLFLOW_TRACKING_URI")
        os.environ.update(dict(zip(names, urls, strict=True)))
        for server in (self.postgres, self.redis, self.mlflow):
            self.components[server.name] = Component(server.name, partial(_restarted, server), process=server.process)
        self.settings: Settings = load_settings()
        asyncio.run(migrate(self.settings.database))
        asyncio.run(verdict.install(self.settings.database))
        models.register(self.settings.mlflow)

    def _start_programs(self) -> None:
        starts: dict[str, Callable[[], GuardedProcess]] = {"beat": self._start_beat}
        starts |= {name: partial(self._start_worker, name) for name in self.worker_names()}
        starts |= {f"producer{n}": partial(self._start_producer, f"producer{n}") for n in range(PRODUCERS)}
        for name, start in starts.items():
            self.components[name] = Component(name, start)
        for name in ("beat", *self.worker_names()):
            self.components[name].begin()
        for name in self.worker_names():
            self.components[name].running.wait_until(lambda n=name: self.ready(n), READY_SECONDS)  # type: ignore[misc]
        for n in range(PRODUCERS):
            self.components[f"producer{n}"].begin()

    @staticmethod
    def worker_names() -> list[str]:
        return [f"worker{n}" for n in range(WORKERS)]

    def _start_worker(self, name: str) -> GuardedProcess:
        return self.state.start(
            name,
            worker_command(concurrency=PROCESSES, extra=["--hostname", f"{name}-{next(self._starts)}@%h"]),
            env={**child_environment(self.settings), **thread_environment(PROCESSES)},
            stop_seconds=self.settings.drain_seconds + STOP_MARGIN_SECONDS,
        )

    def _start_beat(self) -> GuardedProcess:
        return self.state.start("beat", beat_command(self.home), env=child_environment(self.settings), stop_seconds=5.0)

    def _start_producer(self, name: str) -> GuardedProcess:
        base = next(self._bases)
        arguments = {"--record": self.records / f"{base}.jsonl", "--base": base, "--seed": self.seed}
        argv = [part for option in arguments.items() for part in map(str, option)]
        command = [*_python("tests.chaos.load"), *argv]
        return self.state.start(name, command, env=child_environment(self.settings), stop_seconds=60.0)

    def children(self, name: str) -> list[psutil.Process]:
        """A worker's predicting processes; empty while it starts."""
        component = self.components[name]
        if not component.runs():
            return []
        with suppress(psutil.Error):
            found = psutil.Process(component.running.pid).children()
            return [child for child in found if "celery" in " ".join(child.cmdline())]
        return []

    def ready(self, name: str) -> bool:
        """Whether the ledger has a heartbeat of each of the worker's processes."""
        pids = [child.pid for child in self.children(name)]
        if len(pids) < PROCESSES:
            return False
        try:
            rows = asyncio.run(
                self._ask("SELECT pid FROM worker WHERE pid = ANY ($1::int[]) AND stopped_at IS NULL", pids)
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return len({row["pid"] for row in rows}) >= PROCESSES

    def busy_pids(self) -> set[int]:
        """Processes that hold running jobs now; empty while Postgres is away."""
        query = "SELECT DISTINCT w.pid FROM job j JOIN worker w ON w.id = j.worker_id WHERE j.status = 'running'"
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return {row["pid"] for row in asyncio.run(self._ask(query))}
        return set()

    def open_jobs(self) -> int:
        rows = asyncio.run(self._ask("SELECT count(*) AS n FROM job WHERE status IN ('queued', 'running')"))
        return int(rows[0]["n"])

    async def _ask(self, query: str, *args: Any) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.settings.database, timeout=5)
        try:
            rows: list[asyncpg.Record] = await connection.fetch(query, *args)
            return rows
        finally:
            await connection.close()

    def take_ended(self) -> list[Component]:
        """What does not run though nobody ended it, now held."""
        ended = []
        for component in self.components.values():
            if component.hold.acquire(blocking=False):
                if component.process is not None and not component.runs():
                    ended.append(component)
                else:
                    component.hold.release()
        return ended

    def stop_producers(self) -> None:
        producers = [c for name, c in self.components.items() if name.startswith("producer")]
        with ThreadPoolExecutor(len(producers)) as threads:
            list(threads.map(lambda c: c.running.stop(), producers))
        for producer in producers:
            producer.process = None

    def settle(self, seconds: float) -> float | None:
        """Waits until no job is open; how long that took, or None."""
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            if self.open_jobs() == 0:
                return time.monotonic() - begun
            time.sleep(0.25)
        return None


def _restarted(server: EmbeddedPostgres | EmbeddedRedis | EmbeddedMLflow) -> GuardedProcess:
    server.start()
    if server.process is None:
        raise RuntimeError(f"{server.name} did not start")
    return server.process


def _python(module: str) -> list[str]:
    import sys

    return [sys.executable, "-m", module]
