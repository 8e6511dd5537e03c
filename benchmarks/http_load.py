"""The HTTP API under load: 64 connections that each submit a row and wait for its prediction, in one request.

`python -m benchmarks.http_load [--seconds 20] [--rounds 3] [--every 0]` starts servers of its own (fsync on), a worker
of two processes and `pyfunq api`. Each prediction is compared with the model's own. `--every 60` tells of each minute,
with what the API's and the worker's processes hold: for long runs.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import numpy as np

from benchmarks.failure import BenchmarkFailed
from benchmarks.http_side import Connection
from benchmarks.models import FOREST, LOGISTIC, Model, quiet_mlflow, random_rows, register, split_inputs
from benchmarks.servers import READY_SECONDS, Program, Servers, Worker, embedded_servers, family, new_ledger
from producer.programs import api_command
from pyfunq.environment import child_environment
from pyfunq.local.server import free_port
from pyfunq.settings import Settings

ROWS = 4_000
WARM_SECONDS = 3.0
WAITS = "Prefer: wait=60\r\n"
MB = 1_000_000


@dataclass
class Window:
    """What was answered in some seconds; latencies in ms."""

    begun: float = field(default_factory=time.monotonic)
    latencies: list[float] = field(default_factory=list)

    def line(self, held: str) -> str:
        p50, p99 = np.percentile(self.latencies, [50, 99])
        per_second = len(self.latencies) / (time.monotonic() - self.begun)
        return f"{per_second:,.0f} jobs/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms{held}"


class Load:
    """Bodies of requests with what is right for each, and the connections that send them."""

    def __init__(self, model: Model, port: int, connections: int) -> None:
        rows = random_rows(ROWS, seed=3)
        self._bodies = [json.dumps({"model": model.uri, **one}).encode() for one in split_inputs(rows)]
        self._right = model.truth(rows).tolist()
        self._connections = [Connection(port) for _ in range(connections)]
        self.window = Window()

    async def run(self, seconds: float) -> Window:
        """All connections, for so long; `window` may be replaced meanwhile."""
        self.window, self._whole = Window(), Window()
        stop = self._whole.begun + seconds
        await asyncio.gather(*(self._caller(number, stop) for number in range(len(self._connections))))
        return self._whole

    async def _caller(self, number: int, stop: float) -> None:
        connection, step = self._connections[number], len(self._connections)
        while (begun := time.monotonic()) < stop:
            status, answer = await connection.ask("POST", "/v1/jobs", self._bodies[number], WAITS)
            milliseconds = (time.monotonic() - begun) * 1000
            self.window.latencies.append(milliseconds)
            self._whole.latencies.append(milliseconds)
            if status != 200 or json.loads(answer)["predictions"] != [self._right[number]]:
                raise BenchmarkFailed(f"row {number} was answered {status}: {answer[:300]!r}")
            number = (number + step) % ROWS

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


@asynccontextmanager
async def api_of(settings: Settings, processes: int) -> AsyncIterator[tuple[Program, int]]:
    """`pyfunq api`, ready, and its port."""
    port = free_port()
    command = api_command(host="127.0.0.1", port=port, processes=processes)
    api = Program(command, child_environment(settings), settings.home / "api.log")
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not await _is_ready(port):
            api.check()
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"the API did not start; its log is {api.log}")
            await asyncio.sleep(0.1)
        yield api, port
    finally:
        api.stop()


async def _is_ready(port: int) -> bool:
    connection = Connection(port)
    try:
        return (await connection.ask("GET", "/health/ready"))[0] == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def worker_of(servers: Servers, settings: Settings) -> Iterator[Worker]:
    worker = Worker("worker", settings)
    try:
        yield worker
    finally:
        worker.stop()


def held_mb(program: Program) -> float:
    """Proportional set of a program and what it started."""
    return sum(getattr(p.memory_full_info(), "pss", p.memory_info().rss) for p in family(program.pid)) / MB


async def measure(servers: Servers, models: Sequence[Model], arguments: argparse.Namespace) -> None:
    settings = servers.settings(await new_ledger(servers.database, "load"), 1)
    with worker_of(servers, settings) as worker:
        await worker.ready()
        async with api_of(settings, arguments.processes) as (api, port):
            loads = [Load(model, port, arguments.connections) for model in models]
            for load in loads:
                await load.run(WARM_SECONDS)
            for number in range(arguments.rounds):
                for model, load in zip(models, loads, strict=True):
                    telling = asyncio.create_task(_tell(load, model, api, worker, arguments.every))
                    window = await load.run(arguments.seconds)
                    telling.cancel()
                    print(f"round {number + 1}, {model.name}: {window.line(_held(api, worker))}", flush=True)
            for load in loads:
                load.close()


async def _tell(load: Load, model: Model, api: Program, worker: Worker, every: float) -> None:
    while every:
        await asyncio.sleep(every)
        ended, load.window = load.window, Window()
        print(f"  {time.strftime('%H:%M:%S')} {model.name}: {ended.line(_held(api, worker))}", flush=True)


def _held(api: Program, worker: Worker) -> str:
    files = sum(process.num_fds() for process in family(api.pid))
    return f"; API {held_mb(api):.0f} MB, {files} files; worker {held_mb(worker.programs[0]):.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2, help="of the API")
    parser.add_argument("--every", type=float, default=0.0)
    parser.add_argument("--models", default=f"{LOGISTIC},{FOREST}")
    arguments = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {arguments.connections} connections, "
        f"{arguments.processes} processes of the API"
    )
    with embedded_servers() as servers:
        with quiet_mlflow():
            models = [register(servers.mlflow, kind, servers.home / "models") for kind in arguments.models.split(",")]
        asyncio.run(measure(servers, models, arguments))


if __name__ == "__main__":
    main()
