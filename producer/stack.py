"""The whole of PyFunQ on one machine: servers that are not configured, worker, beat and Flower, started and stopped."""

import asyncio
import base64
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from producer.programs import (
    beat_command,
    flower_command,
    flower_environment,
    thread_environment,
    worker_command,
    worker_processes,
)
from pyfunq.environment import child_environment
from pyfunq.ledger import Ledger
from pyfunq.local import EmbeddedMLflow, EmbeddedPostgres, EmbeddedRedis, GuardedProcess, StateDirectory
from pyfunq.local.server import EmbeddedServer, free_port, is_free
from pyfunq.migrate import migrate
from pyfunq.settings import Settings

_READY_SECONDS = 60.0
_FLOWER_PORT = 5555

Report = Callable[[str, str, str], None]
"""Called with a component's name, its address and its state."""


@dataclass(slots=True)
class Stack:
    """What runs. `settings` has the addresses in use; `flower_url` holds no password, `flower_login` does."""

    settings: Settings
    state: StateDirectory
    report: Report
    servers: list[EmbeddedServer] = field(default_factory=list)
    programs: list[GuardedProcess] = field(default_factory=list)
    flower_url: str = ""
    flower_login: str = ""

    def processes(self) -> list[GuardedProcess]:
        return [*self.programs, *(s.process for s in self.servers if s.process is not None)]

    def check(self) -> None:
        """Raises ServerFailed if a component has ended by itself."""
        for process in self.processes():
            if process.returncode() is not None:
                raise process.failure(f"ended by itself (return code {process.returncode()})")

    def stop(self) -> None:
        """Drains the worker, then stops everything, the servers last."""
        self.state.remove_endpoints()
        for group in (self.programs, self.servers):
            if group:
                with ThreadPoolExecutor(len(group)) as threads:
                    list(threads.map(lambda component: component.stop(), group))
                for component in group:
                    self.report(component.name, "", "stopped")

    def kill(self) -> None:
        """Ends everything at once; the ledger has what was queued."""
        self.state.remove_endpoints()
        for process in self.processes():
            process.kill()


@contextmanager
def running_stack(settings: Settings, report: Report, *, fresh: bool = False) -> Iterator[Stack]:
    """A stack in the settings' state directory, ready when the block begins and stopped when it ends.

    `fresh` forgets what an earlier run left in the directory. Raises AlreadyRunning, ServerFailed, or what the
    configured servers answer.
    """
    state = StateDirectory(settings.home)
    with state.lock():
        if fresh:
            _forget(state)
        stack = Stack(settings, state, report)
        try:
            _start(stack)
            yield stack
        finally:
            stack.stop()


def _forget(state: StateDirectory) -> None:
    """Removes what an earlier run left: data, files and logs."""
    EmbeddedPostgres(state).erase()
    for name in ("redis", "mlflow", "models"):
        shutil.rmtree(state.home / name, ignore_errors=True)
    for path in (*state.logs.iterdir(), *state.home.glob("beat-schedule*")):
        path.unlink(missing_ok=True)


def _start(stack: Stack) -> None:
    stack.settings = _start_servers(stack)
    asyncio.run(migrate(stack.settings.database))
    with ThreadPoolExecutor(3) as threads:
        for started in [threads.submit(start, stack) for start in (_start_worker, _start_beat, _start_flower)]:
            started.result()
    stack.state.write_endpoints(
        {
            "database_url": stack.settings.database,
            "redis_url": stack.settings.redis,
            "mlflow_tracking_uri": stack.settings.mlflow,
            "flower_url": stack.flower_url,
        }
    )


def _start_servers(stack: Stack) -> Settings:
    """Starts what is not configured; returns settings with every address."""
    wanted: dict[str, EmbeddedServer] = {
        "database_url": EmbeddedPostgres(stack.state),
        "redis_url": EmbeddedRedis(stack.state),
        "mlflow_tracking_uri": EmbeddedMLflow(stack.state),
    }
    embedded = {name: server for name, server in wanted.items() if getattr(stack.settings, name) is None}

    def start(name: str) -> tuple[str, str]:
        server = embedded[name]
        url: str = server.start()  # type: ignore[attr-defined]
        stack.servers.append(server)
        stack.report(server.name, without_password(url), "ready")
        return name, url

    for name, server in wanted.items():
        if name not in embedded:
            configured = {"database_url": "database", "redis_url": "redis", "mlflow_tracking_uri": "mlflow"}[name]
            stack.report(server.name, without_password(getattr(stack.settings, configured)), "configured")
    if not embedded:
        return stack.settings
    with ThreadPoolExecutor(len(embedded)) as threads:
        started = [threads.submit(start, name) for name in embedded]
        urls = dict(future.result() for future in started)
    return Settings.model_validate({**stack.settings.model_dump(), **urls})


def _start_worker(stack: Stack) -> None:
    concurrency = worker_processes(stack.settings)
    since = time.time()
    process = stack.state.start(
        "worker",
        worker_command(concurrency=concurrency),
        env={**child_environment(stack.settings), **thread_environment(concurrency)},
        stop_seconds=stack.settings.drain_seconds,
    )
    stack.programs.append(process)
    process.wait_until(lambda: _live_processes(stack.settings, since) >= concurrency, _READY_SECONDS)
    stack.report("worker", f"{concurrency} processes, lanes interactive and bulk", "ready")


def _live_processes(settings: Settings, since: float) -> int:
    async def count() -> int:
        async with Ledger.open(settings.database, max_connections=1) as ledger:
            workers = await ledger.live_workers(settings.stale_seconds)
        return sum(1 for w in workers if w["started_at"].timestamp() >= since - 1)

    return asyncio.run(count())


def _start_beat(stack: Stack) -> None:
    process = stack.state.start(
        "beat", beat_command(stack.state.home), env=child_environment(stack.settings), stop_seconds=5.0
    )
    stack.programs.append(process)
    process.wait_until(lambda: any("beat: Starting" in line for line in process.log_tail()), _READY_SECONDS)
    stack.report("beat", f"registry watch every {stack.settings.registry_watch_seconds:g} s", "ready")


def _start_flower(stack: Stack) -> None:
    environment, generated = flower_environment(stack.settings)
    login = environment.get("FLOWER_BASIC_AUTH") or os.environ["FLOWER_BASIC_AUTH"]
    port = _FLOWER_PORT if is_free(_FLOWER_PORT) else free_port()
    process = stack.state.start(
        "flower",
        flower_command(address="127.0.0.1", port=port),
        env={**child_environment(stack.settings), **environment},
        stop_seconds=5.0,
    )
    stack.programs.append(process)
    stack.flower_url, stack.flower_login = f"http://127.0.0.1:{port}", login
    process.wait_until(lambda: _answers(f"{stack.flower_url}/workers", login), _READY_SECONDS)
    user, _, password = login.partition(":")
    shown = f"(user {user}, password {password})" if generated else f"(user {user})"
    stack.report("flower", f"{stack.flower_url} {shown}", "ready")


def _answers(url: str, login: str) -> bool:
    token = base64.b64encode(login.encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {token}"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=2) as response:  # noqa: S310
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def without_password(url: str) -> str:
    """A URL that may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
