"""The HTTP peers as sides of the comparison: `mlflow models serve`, MLServer, and a client with kept connections."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks.celery_side import peer_environment
from benchmarks.failure import BenchmarkFailed
from benchmarks.models import COLUMNS, Model, check, random_rows
from benchmarks.peers import mlflow_serve, mlserver_batching
from benchmarks.servers import PROCESSES, Program, Servers
from benchmarks.sessions import Answers, Rows, by_callers
from pyfunq.local.server import free_port

WARM_ROWS = 300
READY_SECONDS = 120.0
CALL_SECONDS = 60.0


class HttpProgram(Protocol):
    """A module of benchmarks/peers that knows one server."""

    READY: str
    PREDICT: str

    def command(self, venv: Path, files: Path, home: Path, ports: Sequence[int], processes: int) -> list[str]:
        """`ports` are three that are free; predictions are asked for at the first."""

    def request(self, columns: list[str], row: list[float]) -> dict[str, Any]: ...

    def prediction(self, answer: Any) -> int: ...


class Connection:
    """One kept HTTP/1.1 connection to 127.0.0.1, for servers whose answers have a Content-Length."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[int, bytes]:
        """The status and the body of the answer; `headers` are lines that end. Raises OSError where there is none."""
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        try:
            answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        except asyncio.IncompleteReadError:
            self.close()
            raise ConnectionResetError("the server closed the connection") from None
        lengths = [int(line[15:]) for line in answer.split("\r\n") if line.startswith("content-length:")]
        if not lengths:
            raise BenchmarkFailed(f"an answer without Content-Length: {answer[:300]}")
        return int(answer.split(" ", 2)[1]), await self._reader.readexactly(lengths[0])

    def close(self) -> None:
        if self._reader is not None:
            self._reader = None
            self._writer.close()


class HttpPeer:
    """A server that is started for each turn, from a virtual environment of its own."""

    has_queue, takes_beforehand = False, False

    def __init__(self, name: str, program: HttpProgram, servers: Servers, venv: Path) -> None:
        self.name, self.program, self.servers, self.venv = name, program, servers, venv

    @asynccontextmanager
    async def serving(self, model: Model) -> AsyncIterator["HttpSession"]:
        ports = [free_port() for _ in range(3)]
        home = self.servers.home / self.name.replace(" ", "-")
        home.mkdir(exist_ok=True)
        command = self.program.command(self.venv, model.files, home, ports, PROCESSES)
        environment = peer_environment()
        environment["PATH"] = f"{self.venv / 'bin'}:{environment['PATH']}"
        server = Program(command, environment, home / "server.log", home)
        session = HttpSession(self.program, ports[0])
        try:
            await self._ready(server, ports[0])
            rows = random_rows(WARM_ROWS, seed=2)
            check(f"{self.name}, warming up", (await session.callers(rows, 8)).predictions, model.truth(rows))
            yield session
        finally:
            session.close()
            server.stop(10)

    async def _ready(self, server: Program, port: int) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            server.check()
            connection = Connection(port)
            try:
                status, _ = await asyncio.wait_for(connection.ask("GET", self.program.READY), 5)
            except (OSError, TimeoutError):
                status = 0
            finally:
                connection.close()
            if status == 200:
                return
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{self.name} did not start; its log is {server.log}")
            await asyncio.sleep(0.2)


class HttpSession:
    def __init__(self, program: HttpProgram, port: int) -> None:
        self._program, self._port = program, port
        self._idle: list[Connection] = []

    async def at_once(self, rows: Rows, *, beforehand: bool = False) -> Answers:
        raise NotImplementedError("a server without a queue")

    async def callers(self, rows: Rows, callers: int) -> Answers:
        bodies = [json.dumps(self._program.request(COLUMNS, row)).encode() for row in rows.tolist()]
        self.close()  # one that was kept meanwhile may have been closed by the server
        self._idle = [Connection(self._port) for _ in range(callers)]
        return await by_callers(lambda number: self._call(bodies[number]), len(bodies), callers)

    async def _call(self, body: bytes) -> int:
        connection = self._idle.pop()
        try:
            status, answer = await asyncio.wait_for(connection.ask("POST", self._program.PREDICT, body), CALL_SECONDS)
        finally:
            self._idle.append(connection)
        if status != 200:
            raise BenchmarkFailed(f"a server answered {status}: {answer[:300]!r}")
        return self._program.prediction(json.loads(answer))

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


def http_peers(servers: Servers, venvs: dict[str, Path]) -> list[HttpPeer]:
    return [
        HttpPeer("mlflow serve", mlflow_serve, servers, venvs["mlflow-serve"]),
        HttpPeer("MLServer", mlserver_batching, servers, venvs["mlserver"]),
    ]
