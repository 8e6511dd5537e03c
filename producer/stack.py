"""The whole of PyFunQ on one machine: servers that are not configured, and its programs, started and stopped."""

import asyncio
import base64
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from producer.programs import (
    api_command,
    api_is_installed,
    beat_command,
    flower_command,
    flower_environment,
    thread_environment,
    worker_command,
    worker_processes,
)
from pyfunq.environment import child_environment
from pyfunq.errors import ServerFailed
from pyfunq.ledger import Ledger
from pyfunq.local import EmbeddedMLflow, EmbeddedPostgres, EmbeddedRedis, GuardedProcess, StateDirectory
from pyfunq.local.server import EmbeddedServer, free_port, is_free
from pyfunq.migrate import migrate
from pyfunq.settings import Settings

_READY_SECONDS = 180.0
_FLOWER_PORT = 5555
_API_PORT = 8080
_API_STOP_SECONDS = 25.0
_SETTLED_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 30.0
STOP_MARGIN_SECONDS = 5.0
"""What a worker is given on top of its drain, to give back the rest and end."""

Report = Callable[[str, str, str], None]
"""Called with a component's name, its address and its state."""


@dataclass(slots=True)
class Component:
    """A server or program of the stack, and how to start it (again, at the same address)."""

    name: str
    launch: Callable[[], GuardedProcess]
    process: GuardedProcess
    failures: int = 0
    try_at: float = 0.0


@dataclass(slots=True)
class Stack:
    """What runs. `settings` has the addresses in use; `flower_url` holds no password, `flower_login` does."""

    settings: Settings
    state: StateDirectory
    report: Report
    servers: list[Component] = field(default_factory=list)
    programs: list[Component] = field(default_factory=list)
    flower_url: str = ""
    flower_login: str = ""
    api_url: str = ""
    """Empty where the packages of the extra `api` are not there."""

    def start(self, group: list[Component], name: str, launch: Callable[[], GuardedProcess], address: str = "") -> None:
        """Raises ServerFailed when it does not come up."""
        group.append(Component(name, launch, launch()))
        if address:
            self.report(name, address, "ready")

    def check(self) -> None:
        """Raises ServerFailed if a component has ended by itself."""
        for component in (*self.programs, *self.servers):
            if component.process.returncode() is not None:
                raise component.process.failure(_ended(component))

    def heal(self) -> None:
        """Starts components that have ended again: at once, and with growing pauses where they end again."""
        for component in (*self.servers, *self.programs):
            if component.process.returncode() is None:
                if component.failures and time.monotonic() > component.try_at + _SETTLED_SECONDS:
                    component.failures = 0
                continue
            if time.monotonic() >= component.try_at:
                self._restart(component)

    def _restart(self, component: Component) -> None:
        self.report(component.name, f"{_ended(component)}; its log is {component.process.log}", "restarting")
        component.failures += 1
        try:
            component.process = component.launch()
        except ServerFailed as exc:
            self.report(component.name, exc.message, "failed")
        else:
            self.report(component.name, "", "ready")
        component.try_at = time.monotonic() + min(_LONGEST_PAUSE_SECONDS, 2.0 ** (component.failures - 1))

    def stop(self) -> None:
        """Drains the worker, then stops everything, the servers last."""
        self.state.remove_endpoints()
        for group in (self.programs, self.servers):
            if group:
                with ThreadPoolExecutor(len(group)) as threads:
                    list(threads.map(lambda component: component.process.stop(), group))
                for component in group:
                    self.report(component.name, "", "stopped")

    def kill(self) -> None:
        """Ends everything at once; the ledger has what was queued."""
        self.state.remove_endpoints()
        for component in (*self.programs, *self.servers):
            component.process.kill()


def _ended(component: Component) -> str:
    return f"ended by itself (return code {component.process.returncode()})"


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
    programs = (_start_worker, _start_beat, _start_flower, _start_api)
    with ThreadPoolExecutor(len(programs)) as threads:
        for started in [threads.submit(start, stack) for start in programs]:
            started.result()
    stack.state.write_endpoints(
        {
            "database_url": stack.settings.database,
            "redis_url": stack.settings.redis,
            "mlflow_tracking_uri": stack.settings.mlflow,
            "flower_url": stack.flower_url,
            "api_url": stack.api_url,
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
        server, urls = embedded[name], []

        def launch() -> GuardedProcess:
            urls.append(server.start())  # type: ignore[attr-defined]
            assert server.process is not None  # noqa: S101
            return server.process

        stack.start(stack.servers, server.name, launch)
        stack.report(server.name, without_password(urls[0]), "ready")
        return name, urls[0]

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

    def launch() -> GuardedProcess:
        since = time.time()
        return _launch(
            stack,
            "worker",
            worker_command(concurrency=concurrency),
            lambda _: _live_processes(stack.settings, since) >= concurrency,
            thread_environment(concurrency),
            stop_seconds=stack.settings.drain_seconds + STOP_MARGIN_SECONDS,
        )

    stack.start(stack.programs, "worker", launch, f"{concurrency} processes, lanes interactive and bulk")


def _launch(
    stack: Stack,
    name: str,
    command: list[str],
    ready: Callable[[GuardedProcess], bool],
    environment: Mapping[str, str] | None = None,
    *,
    stop_seconds: float = 5.0,
) -> GuardedProcess:
    """Starts a program and waits until it is ready; ends it if it is not within three minutes."""
    process = stack.state.start(
        name, command, env={**child_environment(stack.settings), **(environment or {})}, stop_seconds=stop_seconds
    )
    try:
        process.wait_until(lambda: ready(process), _READY_SECONDS)
    except BaseException:
        process.stop(2.0)
        raise
    return process


def _live_processes(settings: Settings, since: float) -> int:
    async def count() -> int:
        async with Ledger.open(settings.database, max_connections=1) as ledger:
            workers = await ledger.live_workers(settings.stale_seconds)
        return sum(1 for w in workers if w["started_at"].timestamp() >= since - 1)

    return asyncio.run(count())


def _start_beat(stack: Stack) -> None:
    def launch() -> GuardedProcess:
        return _launch(
            stack,
            "beat",
            beat_command(stack.state.home),
            lambda process: any("beat: Starting" in line for line in process.log_tail()),
        )

    stack.start(stack.programs, "beat", launch, f"registry watch every {stack.settings.registry_watch_seconds:g} s")


def _start_flower(stack: Stack) -> None:
    environment, generated = flower_environment(stack.settings)
    login = environment.get("FLOWER_BASIC_AUTH") or os.environ["FLOWER_BASIC_AUTH"]
    port = _FLOWER_PORT if is_free(_FLOWER_PORT) else free_port()
    stack.flower_url, stack.flower_login = f"http://127.0.0.1:{port}", login

    def launch() -> GuardedProcess:
        command = flower_command(address="127.0.0.1", port=port)
        return _launch(
            stack, "flower", command, lambda _: _answers(f"{stack.flower_url}/workers", _basic(login)), environment
        )

    user, _, password = login.partition(":")
    shown = f"(user {user}, password {password})" if generated else f"(user {user})"
    stack.start(stack.programs, "flower", launch, f"{stack.flower_url} {shown}")


def _start_api(stack: Stack) -> None:
    if not api_is_installed():
        stack.report("api", "its packages are not here: install pyfunq[api]", "left out")
        return
    port = _API_PORT if is_free(_API_PORT) else free_port()
    stack.api_url = f"http://127.0.0.1:{port}"

    def launch() -> GuardedProcess:
        command = api_command(host="127.0.0.1", port=port)
        return _launch(
            *(stack, "api", command, lambda _: _answers(f"{stack.api_url}/health/ready", {})),
            stop_seconds=_API_STOP_SECONDS,
        )

    stack.start(stack.programs, "api", launch, stack.api_url)


def _basic(login: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _answers(url: str, headers: Mapping[str, str]) -> bool:
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310
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
