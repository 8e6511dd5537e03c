"""The worker's pools: how that of processes stops, and that of threads shares what it has."""

import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import pandas as pd
import psutil
import pytest
from billiard.popen_fork import Popen
from celery import Celery
from kombu.asynchronous import Hub
from mlflow.pyfunc import PythonModel

from pyfunq.client import Client
from pyfunq.job import JobStatus
from pyfunq.settings import Settings
from tests.conftest import RegisterModel
from tests.integration.conftest import SETOSA, VIRGINICA, split
from tests.programs import start_worker, until
from worker.pool import ReplacingPool


def one_process() -> ReplacingPool:
    app = Celery("pool", set_as_current=False)
    pool = ReplacingPool(limit=1, app=app, threads=False, initargs=(app, "pool@here"))
    pool.start()
    return pool


def test_a_stop_does_not_wait_for_answers_that_nobody_reads(hub: Hub, tmp_path: Path) -> None:
    pool = one_process()
    try:
        pool.register_with_event_loop(hub)
        loop = hub.create_loop()
        job = pool.apply_async(Path.touch, (tmp_path / "ran",))
        while job._write_to is None:
            next(loop)
        assert not job._accepted, "its word has not been read"
        pool.flush()  # as Celery does when its consumer stops
    finally:
        begun = time.monotonic()
        pool.stop()
    assert time.monotonic() - begun < 10
    assert (tmp_path / "ran").exists()


def test_a_child_is_replaced_that_could_not_be_reaped_yet(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process closes its pipes a moment before waitpid sees its end: within it the parent is woken, for once."""
    pool = one_process()
    try:
        pool.register_with_event_loop(hub)
        loop = hub.create_loop()
        (child,) = pool._pool._pool
        until("the child is up", lambda: next(loop) or not pool._pool._waiting_to_start)
        killed, reap, too_early = time.monotonic(), Popen.poll, []

        def poll(popen: Popen, *flags: int) -> int | None:
            if time.monotonic() - killed < 0.3:
                too_early.append(popen.pid)
                return None
            return reap(popen, *flags)

        monkeypatch.setattr(Popen, "poll", poll)
        os.kill(child.pid, signal.SIGKILL)
        while child in pool._pool._pool:
            next(loop)
        assert time.monotonic() - killed < 4, "Celery looks every 5 s"
        assert too_early
        assert len(pool._pool._pool) == 1
    finally:
        pool.stop()


def test_the_threads_of_one_process_share_its_models(settings: Settings, tmp_path: Path, iris_model: str) -> None:
    worker = start_worker(settings, tmp_path / "worker.log", threads=4)
    with Client(settings) as client:

        def ask(n: int) -> Any:
            uri, row, answer = ("models:/iris/1", SETOSA, 0) if n % 2 else ("models:/iris/2", VIRGINICA, 2)
            job = client.submit(uri, split(row))
            return client.result(job, timeout=60) == [answer], client.get(job).worker

        with ThreadPoolExecutor(16) as callers:
            answers = list(callers.map(ask, range(200)))
        assert {right for right, _ in answers} == {True}
        assert {str(by).partition(":")[2] for _, by in answers} == {str(worker.pid)}
        many = client.submit_many("models:/iris/1", [split(SETOSA)] * 2_500)
        assert client.result(many[-1], timeout=60) == [0]
        loaded = re.findall(r"loaded (iris/\d)", worker.text())
        assert sorted(loaded) == ["iris/1", "iris/2"], "once for all threads"
        assert not psutil.Process(worker.pid).children(recursive=True)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(20) == 0, worker.text()
        assert all(client.get(job).status in (JobStatus.SUCCEEDED, JobStatus.QUEUED) for job in many[::100])


class Slow(PythonModel):
    """x after x seconds, whatever interrupts it."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        import time

        time.sleep(float(model_input["x"].sum()))
        return model_input["x"]


@pytest.mark.thorough
def test_a_thread_that_takes_too_long_ends_the_process_and_the_jobs_of_the_others_are_given_back(
    settings: Settings, tmp_path: Path, register: RegisterModel
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker has no tests to import it from
    register("slow", Slow(), pd.DataFrame({"x": [1.0]}))
    worker = start_worker(settings, tmp_path / "worker.log", threads=2)
    with Client(settings) as client:
        innocent = client.submit("models:/slow/1", split([60.0], columns=["x"]), timeout=120)
        until("it runs", lambda: client.get(innocent).status is JobStatus.RUNNING)
        culprit = client.submit("models:/slow/1", split([60.0], columns=["x"]), timeout=0.3)
        assert worker.process.wait(20) == -signal.SIGKILL
        jobs = [client.get(job) for job in (innocent, culprit)]
        assert [(job.status, job.crashes) for job in jobs] == [(JobStatus.QUEUED, 0), (JobStatus.QUEUED, 1)]
