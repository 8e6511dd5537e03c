"""For tests of the registry watch: a proxy before MLflow, models without files, and the watch as a worker runs it."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import pytest
from mlflow import MlflowClient

from pyfunq.entries import Resolution
from pyfunq.ledger import Ledger
from pyfunq.model_uri import parse_model_uri
from worker.registry import Registry
from worker.registry_watch import Findings, look, write

Answer = tuple[int, str, bytes]
UNAVAILABLE: Answer = (503, "text/html", b"<h1>no upstream</h1>")
LOGIN: Answer = (401, "text/plain", b"You are not authenticated.")
DENIED: Answer = (403, "application/json", b'{"error_code": "PERMISSION_DENIED", "message": "no"}')
EMPTY: Answer = (200, "application/json", b"")


class Front(ThreadingHTTPServer):
    """A proxy before MLflow. `fail` says what it answers itself; `longest_line` is that of a request."""

    def __init__(self, backend: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend = backend
        self.calls: list[str] = []
        self.fail: Callable[[str], Answer | None] = lambda path: None
        self.longest_line = 1_000_000

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self) -> list[str]:
        """What was asked since the last time, each as the end of its path."""
        seen, self.calls = self.calls, []
        return [path.partition("?")[0].split("/mlflow/")[1] for path in seen]


class _Handler(BaseHTTPRequestHandler):
    server: Front

    def do_GET(self) -> None:
        self.server.calls.append(self.path)
        too_long = len(self.path) > self.server.longest_line
        status, kind, body = (
            (414, "text/html", b"<h1>414</h1>") if too_long else self.server.fail(self.path) or self._pass_on()
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _pass_on(self) -> Answer:
        try:
            with urllib.request.urlopen(self.server.backend + self.path, timeout=10) as answer:
                return answer.status, "application/json", answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, "application/json", exc.read()

    def log_message(self, *_: Any) -> None:
        pass


class Shelf:
    """Registered models without files, quickly made: for what only resolves."""

    def __init__(self, tracking_uri: str) -> None:
        self.client = MlflowClient(tracking_uri, tracking_uri)
        self.run = self.client.create_run(self.client.create_experiment("shelf")).info
        self._numbers = count(1)

    def version(self, name: str, *, stage: str | None = None, alias: str | None = None) -> str:
        source = f"{self.run.artifact_uri}/{next(self._numbers)}"
        made = self.client.create_model_version(name, source, self.run.run_id, await_creation_for=None)
        number = str(made.version)
        if stage:
            self.stage(name, number, stage)
        if alias:
            self.client.set_registered_model_alias(name, alias, number)
        return number

    def stage(self, name: str, number: str, stage: str) -> None:
        with pytest.warns(FutureWarning):
            self.client.transition_model_version_stage(name, number, stage)

    def model(self, versions: int = 1) -> str:
        """A model of its own; its versions are in no stage."""
        name = f"shelf-{next(self._numbers)}"
        self.client.create_registered_model(name)
        for _ in range(versions):
            self.version(name)
        return name


class Watching:
    """The watch as a worker runs it, on a registry that the test chooses."""

    def __init__(self, ledger: Ledger, registry: Registry) -> None:
        self.ledger = ledger
        self.registry = registry

    async def use(self, *uris: str) -> None:
        for uri in uris:
            found = await asyncio.to_thread(self.registry.resolve, parse_model_uri(uri))
            await self.ledger.point(uri, found.version, found.means(confidence=False))

    async def look(self) -> Findings:
        known = await self.ledger.resolutions()
        findings = await asyncio.to_thread(look, self.registry, known, False)
        await write(self.ledger, findings)
        return findings

    async def changes(self) -> dict[str, str | None]:
        """What changed since the last look: the numbers of the versions, None for what is gone."""
        return {c.model_uri: c.new and c.new.version for c in (await self.look()).changed}

    async def resolution(self, uri: str) -> Resolution:
        found = await self.ledger.resolution(uri)
        assert found is not None
        return found
