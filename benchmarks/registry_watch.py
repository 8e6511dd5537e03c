"""What the registry watch costs a cycle: a registry with 300 models and 900 versions, 300 model URIs in use.

`python -m benchmarks.registry_watch [--cycles 300]` starts servers of its own and calls the watch as a worker does.
Half of the URIs are aliases, half stages. First nothing changes; then, before each cycle, ten mean another version.
"""

import argparse
import asyncio
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests
from mlflow import MlflowClient

from benchmarks.failure import BenchmarkFailed
from benchmarks.figures import percentile
from benchmarks.servers import embedded_servers, new_ledger
from pyfunq.model_uri import parse_model_uri
from worker.process import WorkerProcess
from worker.upkeep import registry_watch

MODELS, VERSIONS, CHANGES = 300, 3, 10
STAGE, ALIAS = "Production", "champion"


@dataclass
class Cycles:
    milliseconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Milliseconds of this process alone: the load of the machine changes them less."""
    calls: Counter[str] = field(default_factory=Counter)

    def report(self, what: str) -> None:
        n = len(self.milliseconds)
        p50, p99 = percentile(self.milliseconds, 50), percentile(self.milliseconds, 99)
        print(f"{what}, {n} cycles: p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {max(self.milliseconds):.1f} ms")
        p50, p99 = percentile(self.cpu, 50), percentile(self.cpu, 99)
        print(f"  of the worker's own CPU time: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        calls = ", ".join(f"{count / n:.2f} {name}" for name, count in sorted(self.calls.items()))
        print(f"  calls to MLflow a cycle: {self.calls.total() / n:.2f} ({calls})", flush=True)


@contextmanager
def counted(calls: Counter[str]) -> Iterator[None]:
    real = requests.Session.request

    def request(session: requests.Session, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        calls[url.split("/mlflow/")[1]] += 1
        return real(session, method, url, *args, **kwargs)

    requests.Session.request = request  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        requests.Session.request = real  # type: ignore[method-assign]


class Models:
    """The registry's content; of each model one URI is in use, an alias or a stage."""

    def __init__(self, tracking_uri: str) -> None:
        self._client = MlflowClient(tracking_uri, tracking_uri)
        self.names = [f"model-number-{n:03d}" for n in range(MODELS)]
        experiment = self._client.create_experiment("benchmark")
        for name in self.names:
            self._client.create_registered_model(name)
            for _ in range(VERSIONS):
                run = self._client.create_run(experiment).info
                source = f"{run.artifact_uri}/model"
                self._client.create_model_version(name, source, run.run_id, await_creation_for=None)
        self._now = dict.fromkeys(self.names, 0)
        self._next = 0
        for name in self.names:
            self._move(name)

    def uri(self, name: str) -> str:
        return f"models:/{name}@{ALIAS}" if self._has_alias(name) else f"models:/{name}/{STAGE}"

    def _has_alias(self, name: str) -> bool:
        return self.names.index(name) % 2 == 0

    def _move(self, name: str) -> None:
        self._now[name] = version = self._now[name] % VERSIONS + 1
        if self._has_alias(name):
            self._client.set_registered_model_alias(name, ALIAS, str(version))
        else:
            self._client.transition_model_version_stage(name, str(version), STAGE, archive_existing_versions=True)

    def change_some(self) -> dict[str, str]:
        """Moves ten; which URI means which version now."""
        some = [self.names[(self._next + n) % MODELS] for n in range(CHANGES)]
        self._next += CHANGES
        for name in some:
            self._move(name)
        return {self.uri(name): str(self._now[name]) for name in some}


def measure(process: WorkerProcess, cycles: int, change: Callable[[], dict[str, str]]) -> Cycles:
    found = Cycles()
    for _ in range(cycles):
        expected = change()
        with counted(found.calls):
            begun, cpu = time.perf_counter(), time.process_time()
            said = registry_watch(process)
            found.milliseconds.append((time.perf_counter() - begun) * 1000)
            found.cpu.append((time.process_time() - cpu) * 1000)
        now = {r.model_uri: r.version.version for r in process.run(process.ledger.resolutions())}
        if said != f"{MODELS - len(expected)} same, {len(expected)} changed" or not expected.items() <= now.items():
            raise BenchmarkFailed(f"the watch found something else: {said}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=300)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # stages still work
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} cores, load {load:.1f}; {MODELS} models, {MODELS * VERSIONS} versions, {MODELS} URIs in use"
    )
    with embedded_servers() as servers:
        models = Models(servers.mlflow)
        process = WorkerProcess(servers.settings(asyncio.run(new_ledger(servers.database, "watched")), 1))
        try:
            for uri in map(models.uri, models.names):
                found = process.registry.resolve(parse_model_uri(uri))
                process.run(process.ledger.point(uri, found.version, found.means(confidence=False)))
            measure(process, 3, dict)
            measure(process, arguments.cycles, dict).report("nothing changes")
            measure(process, arguments.cycles, models.change_some).report(f"{CHANGES} changes a cycle")
        finally:
            process.close()


if __name__ == "__main__":
    main()
