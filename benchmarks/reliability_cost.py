"""What reliability costs: end-to-end throughput with heartbeats, fencing, limits and rescue against the same without.

`python -m benchmarks.reliability_cost [--rounds 7] [--jobs 40000]` starts servers of its own (fsync on) and, for each
of the two, a worker of two processes with a database of its own; then it takes them in turn. Who does not have its turn
is stopped (SIGSTOP), so that its heartbeats cost the other nothing.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import numpy as np
import psutil

from producer.programs import beat_command, thread_environment, worker_command
from pyfunq.client import AsyncClient
from pyfunq.environment import child_environment
from pyfunq.local import EmbeddedMLflow, EmbeddedPostgres, EmbeddedRedis, StateDirectory
from pyfunq.migrate import migrate
from pyfunq.settings import Settings

FEATURES = 20
PROCESSES = 2
MODEL = "models:/logistic/1"
NEVER = "1000000"
OFF = dict.fromkeys(("PYFUNQ_HEARTBEAT_SECONDS", "PYFUNQ_RESCUE_SECONDS", "PYFUNQ_STALE_SECONDS"), NEVER)
READY_SECONDS = 60.0
_OPEN = "SELECT EXISTS (SELECT FROM job WHERE status = 'queued') OR EXISTS (SELECT FROM job WHERE status = 'running')"


def register(tracking_uri: str) -> None:
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression

    mlflow.set_tracking_uri(tracking_uri)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, FEATURES))
    import pandas as pd

    frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(FEATURES)])
    model = LogisticRegression().fit(frame, x.sum(axis=1) > 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name="logistic",
            signature=infer_signature(frame, model.predict(frame)),
            pip_requirements=[],
            serialization_format="cloudpickle",
        )


class Side:
    """One of the two that are compared: a database, a Redis database, a worker and, where it is reliable, a beat."""

    def __init__(self, name: str, settings: Settings, app: str, environment: dict[str, str], home: Path) -> None:
        self.name, self.settings = name, settings
        command = worker_command(concurrency=PROCESSES, extra=["--hostname", f"{name}@%h"])
        command[command.index("worker.app")] = app
        variables = {**child_environment(settings), **thread_environment(PROCESSES), **environment}
        self.programs = [self._start(command, variables, home / f"{name}.log")]
        if app == "worker.app":
            (home / name).mkdir()
            self.programs.append(self._start(beat_command(home / name), variables, home / f"{name}-beat.log"))

    @staticmethod
    def _start(command: Sequence[str], environment: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("ab") as output:
            return subprocess.Popen(
                command, cwd=Path(__file__).parents[1], env=environment, stdout=output, stderr=output
            )

    async def ready(self) -> None:
        connection = await asyncpg.connect(self.settings.database)
        deadline = time.monotonic() + READY_SECONDS
        while await connection.fetchval("SELECT count(*) FROM worker") < PROCESSES:
            if time.monotonic() > deadline:
                raise SystemExit(f"the worker {self.name!r} did not start")
            await asyncio.sleep(0.1)
        await connection.close()

    async def jobs_a_second(self, inputs: Sequence[Any]) -> float:
        """From the first submit to the last result's commit."""
        connection = await asyncpg.connect(self.settings.database, server_settings={"enable_seqscan": "off"})
        async with AsyncClient(self.settings) as client:
            begun = time.monotonic()
            for at in range(0, len(inputs), 1000):
                await client.submit_many(MODEL, inputs[at : at + 1000])
            while await connection.fetchval(_OPEN):  # noqa: ASYNC110  nothing tells of the last of many jobs
                await asyncio.sleep(0.02)
            seconds = time.monotonic() - begun
        succeeded = await connection.fetchval("SELECT count(*) FROM job WHERE status = 'succeeded'")
        if succeeded != len(inputs):
            raise SystemExit(f"{self.name}: {succeeded} of {len(inputs)} jobs succeeded")
        await connection.execute("TRUNCATE job")
        await connection.close()
        return len(inputs) / seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        processes = [p for program in self.programs for p in _family(program.pid)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def stop(self) -> None:
        for program in self.programs:
            program.terminate()
        for program in self.programs:
            program.wait(60)


def _family(pid: int) -> list[psutil.Process]:
    return [(parent := psutil.Process(pid)), *parent.children(recursive=True)]


@contextmanager
def sides() -> Iterator[list[Side]]:
    home = Path(tempfile.mkdtemp(prefix="pyfunq-benchmark-"))
    home.chmod(0o755)
    state = StateDirectory(home)
    servers = (EmbeddedPostgres(state), EmbeddedRedis(state), EmbeddedMLflow(state))
    with state.lock():
        with ThreadPoolExecutor(3) as threads:
            database, redis, mlflow = threads.map(lambda server: server.start(), servers)  # type: ignore[attr-defined]
        made: list[Side] = []
        try:
            register(mlflow)
            for number, (name, app, more) in enumerate(
                (("reliable", "worker.app", {}), ("unguarded", "benchmarks.unguarded", OFF))
            ):
                url = asyncio.run(_database(database, name))
                settings = Settings(
                    home=home,
                    database_url=url,
                    redis_url=urlunsplit(urlsplit(redis)._replace(path=f"/{number}")),
                    mlflow_tracking_uri=mlflow,
                )
                made.append(Side(name, settings, app, more, home))
            yield made
        finally:
            for side in made:
                side.stop()
            with ThreadPoolExecutor(3) as threads:
                list(threads.map(lambda server: server.stop(), servers))
    shutil.rmtree(home, ignore_errors=True)


async def _database(url: str, name: str) -> str:
    connection = await asyncpg.connect(url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    own = urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    await migrate(own)
    return own


async def measure(both: list[Side], rounds: int, jobs: int) -> dict[str, list[float]]:
    rows = np.random.default_rng(1).normal(size=(jobs, FEATURES)).round(6).tolist()
    columns = [f"f{i}" for i in range(FEATURES)]
    inputs = [{"dataframe_split": {"columns": columns, "data": [row]}} for row in rows]
    figures: dict[str, list[float]] = {side.name: [] for side in both}
    for side in both:
        await side.ready()
        await side.jobs_a_second(inputs[: jobs // 2])
    for number in range(rounds):
        for side, other in (both, both[::-1]) if number % 2 == 0 else (both[::-1], both):
            with other.paused():
                figures[side.name].append(await side.jobs_a_second(inputs))
        print(f"round {number + 1}: " + ", ".join(f"{n} {f[-1]:,.0f} jobs/s" for n, f in figures.items()), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=40_000)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {arguments.jobs:,} single-row jobs a round, {FEATURES} features, pages of 1,000")
    with sides() as both:
        figures = asyncio.run(measure(both, arguments.rounds, arguments.jobs))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratios = [a / b for a, b in zip(figures["reliable"], figures["unguarded"], strict=True)]
    for name, median in medians.items():
        print(f"median {name}: {median:,.0f} jobs/s")
    print(f"ratio of the medians: {medians['reliable'] / medians['unguarded']:.3f}")
    print(f"ratio of each round: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
