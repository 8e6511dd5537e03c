"""Redis, Postgres or MLflow away for a while, or a worker process: nothing is lost, and nothing need be restarted."""

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel

from pyfunq.client import Client
from pyfunq.errors import LedgerUnavailable
from pyfunq.job import Job, JobStatus
from pyfunq.local import EmbeddedMLflow, EmbeddedPostgres, EmbeddedRedis, StateDirectory
from pyfunq.migrate import migrate
from pyfunq.settings import Settings
from tests.chaos import verdict
from tests.conftest import RegisterModel
from tests.programs import Program, ask, start_worker, until

pytestmark = pytest.mark.slow

AWAY_SECONDS = 5.0
MODEL = "models:/waits/1"
QUICK = {"PYFUNQ_HEARTBEAT_SECONDS": "1", "PYFUNQ_RESCUE_SECONDS": "1", "PYFUNQ_PUBLISH_GRACE_SECONDS": "2"}


class Waits(PythonModel):
    """2x, after x/10 seconds where x is 10 or more."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        import time

        time.sleep(sum(x / 10 for x in model_input["x"] if x >= 10))
        return model_input["x"] * 2


@dataclass
class Own:
    """Servers of these tests' own, a worker of two processes without a beat, and a client."""

    settings: Settings
    postgres: EmbeddedPostgres
    redis: EmbeddedRedis
    mlflow: EmbeddedMLflow
    worker: Program
    client: Client

    def submit(self, x: float, model: str = MODEL) -> Job:
        return self.client.submit(model, {"dataframe_split": {"columns": ["x"], "data": [[x]]}})

    def ended(self, jobs: list[Job], seconds: float = 90.0) -> list[Job]:
        deadline = time.monotonic() + seconds
        return [self.client.wait(job, max(0.1, deadline - time.monotonic())) for job in jobs]

    def processes(self) -> list[int]:
        return [self.worker.pid, *self.worker.children()]


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def kill(server: EmbeddedPostgres | EmbeddedRedis, number: signal.Signals) -> None:
    process = server.process
    assert process is not None
    os.kill(process.pid, number)
    process.wait(30.0)


@pytest.fixture(scope="module")
def own() -> Iterator[Own]:
    home = Path(tempfile.mkdtemp(prefix="pyfunq-tests-"))
    home.chmod(0o755)
    state = StateDirectory(home)
    servers = (EmbeddedPostgres(state), EmbeddedRedis(state), EmbeddedMLflow(state))
    with state.lock():
        with ThreadPoolExecutor(3) as threads:
            database, redis, mlflow_uri = threads.map(lambda server: server.start(), servers)
        try:
            yield from _opened(home, servers, database, redis, mlflow_uri)
        finally:
            with ThreadPoolExecutor(3) as threads:
                list(threads.map(lambda server: server.stop(), servers))
    shutil.rmtree(home, ignore_errors=True)


def _opened(home: Path, servers: Any, database: str, redis: str, mlflow_uri: str) -> Iterator[Own]:
    import asyncio

    asyncio.run(migrate(database))
    asyncio.run(verdict.install(database))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker has no tests to import it from
    RegisterModel(mlflow_uri)("waits", Waits(), pd.DataFrame({"x": [1.0]}))
    settings = Settings(home=home, database_url=database, redis_url=redis, mlflow_tracking_uri=mlflow_uri)
    worker = start_worker(settings, home / "worker.log", **QUICK)
    with Client(settings) as client:
        one = Own(settings, *servers, worker, client)
        try:
            assert one.ended([one.submit(1.0)])[0].status is JobStatus.SUCCEEDED
            yield one
        finally:
            assert one.worker.stop() == 0


def test_while_redis_is_away_submits_are_accepted_and_run_when_it_is_back(own: Own) -> None:
    processes = own.processes()
    running = own.submit(20)
    until("it runs", lambda: own.client.get(running).status is JobStatus.RUNNING)
    kill(own.redis, signal.SIGKILL)
    jobs, slowest = [running], 0.0
    away_until = time.monotonic() + AWAY_SECONDS
    while time.monotonic() < away_until:
        begun = time.monotonic()
        jobs.append(own.submit(1.0))
        slowest = max(slowest, time.monotonic() - begun)
        pause(0.2)
    assert slowest < 2.0
    own.redis.start()
    assert {(job.status, job.crashes) for job in own.ended(jobs)} == {(JobStatus.SUCCEEDED, 0)}
    assert own.processes() == processes


def test_a_worker_that_starts_without_redis_and_loses_a_process_meanwhile_comes_up(own: Own) -> None:
    kill(own.redis, signal.SIGKILL)
    worker = start_worker(own.settings, own.settings.home / "early.log", **QUICK)
    try:
        os.kill(worker.children()[0], signal.SIGKILL)
        pause(1.0)
        own.redis.start()
        assert {job.status for job in own.ended([own.submit(1.0) for _ in range(5)])} == {JobStatus.SUCCEEDED}
        until("it is connected", lambda: "ready." in worker.text())
        until("the process is replaced", lambda: len(worker.children()) == 2)
        assert worker.process.poll() is None
    finally:
        assert worker.stop() == 0


def test_a_redis_that_does_not_answer_for_a_while_stops_nobody_for_good(own: Own) -> None:
    processes = own.processes()
    assert own.redis.process is not None
    os.kill(own.redis.process.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        jobs = [own.submit(1.0)]
        assert time.monotonic() - begun < 2.0, "it is accepted at once"
        pause(8.0)
    finally:
        os.kill(own.redis.process.pid, signal.SIGCONT)
    jobs.append(own.submit(1.0))
    assert {job.status for job in own.ended(jobs)} == {JobStatus.SUCCEEDED}
    assert own.processes() == processes


def test_while_postgres_is_away_submits_are_refused_and_workers_keep_what_they_have(own: Own) -> None:
    processes = own.processes()
    running = own.submit(30)
    until("it runs", lambda: own.client.get(running).status is JobStatus.RUNNING)
    before = len(own.client.list(limit=1000))
    kill(own.postgres, signal.SIGQUIT)
    begun = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="Postgres"):
        own.submit(1.0)
    assert time.monotonic() - begun < 15.0
    pause(max(0.0, AWAY_SECONDS - (time.monotonic() - begun)))
    own.postgres.start()
    (done,) = own.ended([running])
    assert (done.status, done.attempt, done.crashes) == (JobStatus.SUCCEEDED, 1, 0)
    assert own.client.result(done) == [60.0]
    assert len(own.client.list(limit=1000)) == before, "what was refused is not there"
    assert own.ended([own.submit(1.0)])[0].status is JobStatus.SUCCEEDED
    assert own.processes() == processes


def test_while_mlflow_is_away_what_is_known_goes_on_and_what_is_not_waits(own: Own) -> None:
    registry = mlflow.MlflowClient(own.settings.mlflow)
    registry.set_registered_model_alias("waits", "new", "1")
    processes = own.processes()
    own.mlflow.stop()
    known, unknown = own.submit(1.0), own.submit(2.0, "models:/waits@new")
    assert own.ended([known], 5.0)[0].status is JobStatus.SUCCEEDED
    until("it waits", lambda: own.client.get(unknown).attempt > 0 and own.client.get(unknown).status == "queued")
    own.mlflow.start()
    (done,) = own.ended([unknown])
    assert (done.status, done.crashes) == (JobStatus.SUCCEEDED, 0)
    assert done.attempt > 1
    assert own.processes() == processes


def test_a_process_that_was_stopped_for_longer_than_its_lease_commits_nothing(own: Own) -> None:
    """Its job is done by the other process, and it says so in one line."""
    own.worker.stop()
    own.worker = start_worker(own.settings, own.settings.home / "worker2.log", PYFUNQ_STALE_SECONDS="3", **QUICK)
    job = own.submit(15)
    until("it runs", lambda: own.client.get(job).status is JobStatus.RUNNING)
    query = "SELECT w.pid FROM job j JOIN worker w ON w.id = j.worker_id WHERE j.id = $1"
    pid = ask(own.settings.database, query, job.id)[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        (done,) = own.ended([job])
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (done.status, done.attempt, done.crashes) == (JobStatus.SUCCEEDED, 2, 1)
    until("it says so", lambda: "results were not kept" in own.worker.text())
    assert own.ended([own.submit(1.0)])[0].status is JobStatus.SUCCEEDED
    assert len(re.findall("results were not kept", own.worker.text())) == 1
    assert ask(own.settings.database, "SELECT * FROM chaos_rewritten") == []
    assert own.client.get(job).finished_at == done.finished_at


def test_nothing_was_written_twice(own: Own) -> None:
    assert ask(own.settings.database, "SELECT * FROM chaos_rewritten") == []
