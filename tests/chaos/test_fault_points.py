"""A real `kill -9` of a real process at each point where a crash matters, and jobs that are the death of theirs."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel

from pyfunq.client import Client
from pyfunq.environment import child_environment
from pyfunq.errors import JobDead
from pyfunq.fault_points import FaultPoint
from pyfunq.job import Job, JobStatus
from pyfunq.settings import Settings
from tests.conftest import RegisterModel, Servers
from tests.programs import ROOT, Program, ask, own_place, start_worker, until

APP = "tests.chaos.doomed"
MODEL = "models:/deadly/1"
QUICK = {
    "PYFUNQ_HEARTBEAT_SECONDS": "1",
    "PYFUNQ_STALE_SECONDS": "3",
    "PYFUNQ_RESCUE_SECONDS": "1",
    "PYFUNQ_PUBLISH_GRACE_SECONDS": "2",
}


class Deadly(PythonModel):
    """2x; some negative x end or hold up the process, each in its way."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        import os
        import signal
        import time

        for x in model_input["x"]:
            if x == -1:
                os._exit(1)
            if x == -2:
                os.kill(os.getpid(), signal.SIGSEGV)
            if x == -3:
                os.kill(os.getpid(), signal.SIGKILL)
            if x == -4:
                time.sleep(600)
            if x == -5:
                held = b"x" * 1_000_000_000
                time.sleep(600)
                del held
            if x < -9:
                time.sleep(-x / 10)
        return model_input["x"] * 2


@dataclass
class Ground:
    """A database, a Redis database, and the workers on them; `doom` says who is to die where."""

    settings: Settings
    client: Client
    doom: Path
    programs: list[Program] = field(default_factory=list)

    def start_worker(self, *, processes: int = 2, **environment: str) -> Program:
        environment["PYFUNQ_TEST_DOOM"] = str(self.doom)
        log = self.doom / f"worker{len(self.programs)}.log"
        self.programs.append(start_worker(self.settings, log, app=APP, processes=processes, **environment))
        return self.programs[-1]

    def processes(self) -> list[int]:
        """The first worker's, once those that died are replaced and all of them beat."""
        query = "SELECT count(*) AS n FROM worker WHERE pid = ANY ($1::int[]) AND stopped_at IS NULL"

        def beating() -> list[int]:
            pids = self.programs[0].children()
            return pids if len(pids) == ask(self.settings.database, query, pids)[0]["n"] == 2 else []

        pids: list[int] = until("both processes beat", beating)
        return pids

    def order(self, point: FaultPoint, who: str) -> None:
        (self.doom / f"{point.name}.died").unlink(missing_ok=True)
        (self.doom / point.name).write_text(who)

    def died_at(self, point: FaultPoint) -> float:
        path = self.doom / f"{point.name}.died"
        return float(until(f"death {point}", lambda: path.exists() and path.read_text()))

    def submit(self, *xs: float, **options: Any) -> list[Job]:
        inputs = [{"dataframe_split": {"columns": ["x"], "data": [[x]]}} for x in xs]
        return self.client.submit_many(MODEL, inputs, **options)

    def ends(self, jobs: list[Job], seconds: float = 120.0) -> list[Job]:
        return [self.client.wait(job, seconds) for job in jobs]

    def all_succeeded_once(self, jobs: list[Job]) -> list[Job]:
        """Jobs whose x are 0, 1, 2, ..."""
        done = self.ends(jobs)
        assert Counter(job.status for job in done) == {JobStatus.SUCCEEDED: len(jobs)}
        assert [self.client.result(job) for job in done] == [[2.0 * x] for x in range(len(jobs))]
        assert ask(self.settings.database, "SELECT * FROM chaos_rewritten") == [], "a final job was written again"
        return done

    def claimed_at(self, jobs: list[Job], attempt: int) -> float:
        """When the last of the jobs was claimed for this attempt (seconds since the epoch)."""
        query = """SELECT extract(epoch FROM max(at))::float AS at FROM chaos_history
                   WHERE job_id = ANY ($1::uuid[]) AND status = 'running' AND attempt = $2"""
        return float(ask(self.settings.database, query, [job.id for job in jobs], attempt)[0]["at"])


@contextmanager
def ground_of(servers: Servers, home: Path, name: str, redis_number: int) -> Iterator[Ground]:
    with own_place(servers, name, redis_number, home) as settings, Client(settings) as client:
        ground = Ground(settings, client, home)
        try:
            yield ground
        finally:
            for program in ground.programs:
                if program.process.poll() is None:
                    program.kill()


@pytest.fixture(scope="module")
def deadly(register: RegisterModel) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers have no tests to import it from
    register("deadly", Deadly(), pd.DataFrame({"x": [1.0]}))


@pytest.fixture(scope="module")
def shared(servers: Servers, deadly: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """With one worker of two processes and no beat, with the default settings."""
    with ground_of(servers, tmp_path_factory.mktemp("shared"), "fault_points", 6) as ground:
        worker = ground.start_worker()
        yield ground
        assert worker.stop() == 0


@pytest.fixture
def ground(servers: Servers, deadly: None, tmp_path: Path) -> Iterator[Ground]:
    with ground_of(servers, tmp_path, "fault_point", 7) as ground:
        yield ground


CLAIMS = {
    FaultPoint.BEFORE_CLAIM: 1,
    FaultPoint.AFTER_CLAIM: 2,
    FaultPoint.PREDICTING: 2,
    FaultPoint.BEFORE_ACK: 1,
}
"""How often the jobs are claimed when one process dies at a point."""


@pytest.mark.parametrize("point", CLAIMS)
def test_a_child_that_is_killed_costs_its_jobs_one_attempt_and_little_time(point: FaultPoint, shared: Ground) -> None:
    shared.order(point, "child")
    jobs = shared.submit(*range(10))
    died = shared.died_at(point)
    done = shared.all_succeeded_once(jobs)
    assert {job.attempt for job in done} == {CLAIMS[point]}
    assert {job.crashes for job in done} == {CLAIMS[point] - 1}
    if point is not FaultPoint.BEFORE_ACK:
        # Before the claim it is not a job that lost its process but a message that was lost.
        assert shared.claimed_at(jobs, CLAIMS[point]) - died <= (30.0 if point is FaultPoint.BEFORE_CLAIM else 3.0)


def test_the_only_child_of_a_worker_is_replaced_as_quickly(ground: Ground) -> None:
    ground.start_worker(processes=1)
    ground.order(FaultPoint.AFTER_CLAIM, "child")
    jobs = ground.submit(*range(3))
    died = ground.died_at(FaultPoint.AFTER_CLAIM)
    ground.all_succeeded_once(jobs)
    assert ground.claimed_at(jobs, 2) - died <= 3.0


def test_a_job_that_lost_its_process_goes_before_the_backlog(ground: Ground) -> None:
    """30 calls of a second wait for two processes."""
    ground.start_worker(PYFUNQ_BATCH_MAX_JOBS="1")
    ground.order(FaultPoint.AFTER_CLAIM, "child")
    jobs = [job for _ in range(30) for job in ground.submit(-10)]
    died = ground.died_at(FaultPoint.AFTER_CLAIM)
    crashed = until("it is put back", lambda: [j for j in map(ground.client.get, jobs) if j.crashes])
    until("it runs again", lambda: ground.client.get(crashed[0]).attempt == 2)
    assert ground.claimed_at(crashed, 2) - died <= 4.0
    for job in jobs:
        ground.client.cancel(job, terminate=True)


@pytest.mark.parametrize("point", CLAIMS)
def test_a_worker_that_is_killed_loses_nothing(point: FaultPoint, ground: Ground) -> None:
    ground.start_worker(**QUICK)
    ground.order(point, "worker")
    jobs = ground.submit(*range(10))
    died = ground.died_at(point)
    assert ground.programs[0].process.wait(10) == -signal.SIGKILL
    ground.start_worker(**QUICK)
    done = ground.all_succeeded_once(jobs)
    assert {job.attempt for job in done} == {CLAIMS[point]}
    if point is not FaultPoint.BEFORE_ACK:
        assert ground.claimed_at(jobs, CLAIMS[point]) - died <= 30.0


@pytest.mark.slow
def test_after_the_end_of_another_host_its_jobs_run_within_thirty_seconds(ground: Ground) -> None:
    """By the heartbeats alone, with the default settings: nobody there could look for the processes."""
    ground.start_worker()
    ask(ground.settings.database, "UPDATE worker SET hostname = 'elsewhere'")
    ground.order(FaultPoint.AFTER_CLAIM, "worker")
    jobs = ground.submit(*range(3))
    died = ground.died_at(FaultPoint.AFTER_CLAIM)
    ground.start_worker()
    ground.all_succeeded_once(jobs)
    assert 15.0 < ground.claimed_at(jobs, 2) - died <= 30.0


def producer(ground: Ground, jobs: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos.doomed", MODEL, str(jobs)],
        cwd=ROOT,
        env={**child_environment(ground.settings), "PYFUNQ_TEST_DOOM": str(ground.doom)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("jobs", [1, 50])
@pytest.mark.parametrize("point", [FaultPoint.BEFORE_COMMIT, FaultPoint.BEFORE_PUBLISH])
def test_what_a_killed_producer_submitted_is_there_whole_or_not_at_all(
    point: FaultPoint, jobs: int, ground: Ground
) -> None:
    ground.order(point, "child")
    done = producer(ground, jobs)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, ""), done.stderr
    there = ground.client.list(limit=100)
    assert len(there) == (0 if point is FaultPoint.BEFORE_COMMIT else jobs)
    if there and jobs > 1:
        ground.start_worker(**QUICK)
        ended = ground.ends(there, 30.0)
        assert {(job.status, job.attempt) for job in ended} == {(JobStatus.SUCCEEDED, 1)}


@pytest.mark.parametrize("x", [-1, -2, -3])
def test_a_job_that_kills_its_process_dies_alone_after_three_times(x: float, shared: Ground) -> None:
    jobs = shared.submit(*range(19), x)
    done = shared.ends(jobs)
    assert {(job.status, job.crashes) for job in done[:-1]} <= {(JobStatus.SUCCEEDED, 0), (JobStatus.SUCCEEDED, 1)}
    assert (done[-1].status, done[-1].crashes, done[-1].attempt) == (JobStatus.DEAD, 3, 3)
    with pytest.raises(JobDead, match="its worker process ended while predicting, 3 times"):
        shared.client.result(done[-1])
    query = """SELECT count(*) FILTER (WHERE h.attempt = c.attempt) AS n FROM chaos_history h
               JOIN (SELECT at, worker_id, attempt FROM chaos_history WHERE job_id = $1 AND status = 'running') c
               ON c.at = h.at AND c.worker_id = h.worker_id WHERE h.status = 'running' AND c.attempt > 1"""
    assert ask(shared.settings.database, query, jobs[-1].id)[0]["n"] == 2, "it had company after its first attempt"


def test_a_hung_job_times_out_alone_and_its_process_lives(shared: Ground) -> None:
    processes = shared.processes()
    jobs = shared.submit(0, 1, 2, -4, timeout=1.0)
    done = shared.ends(jobs)
    assert [(job.status, job.crashes) for job in done[:-1]] == [(JobStatus.SUCCEEDED, 0)] * 3
    assert (done[-1].status, done[-1].crashes) == (JobStatus.DEAD, 3)
    with pytest.raises(JobDead, match="timed out after 1 s, 3 times"):
        shared.client.result(done[-1])
    assert shared.programs[0].children() == processes


def test_processes_are_replaced_and_what_takes_too_much_memory_is_killed(ground: Ground) -> None:
    limits = {"PYFUNQ_RECYCLE_TASKS": "1", "PYFUNQ_MAX_MEMORY_BYTES": "800000000"}
    worker = ground.start_worker(processes=1, **limits)
    processes = set()
    for x in range(3):
        processes.update(worker.children())
        assert ground.client.result(ground.submit(x)[0], 30.0) == [2.0 * x]
    assert len(processes) > 1
    good, greedy = ground.ends(ground.submit(1, -5))
    assert (good.status, greedy.status, greedy.crashes) == (JobStatus.SUCCEEDED, JobStatus.DEAD, 3)
    with pytest.raises(JobDead, match="used more than 763 MiB of memory, 3 times"):
        ground.client.result(greedy)


def test_a_job_that_is_terminated_makes_room_at_once(shared: Ground) -> None:
    processes = shared.processes()
    jobs = [job for _ in processes for job in shared.submit(-4)]
    until("all processes are busy", lambda: all(shared.client.get(job).status == "running" for job in jobs))
    (waiting,) = shared.submit(7)
    for job in jobs:
        assert shared.client.cancel(job, terminate=True).status is JobStatus.CANCELLED
    assert shared.client.result(waiting, 10.0) == [14.0]
    assert {shared.client.get(job).status for job in jobs} == {JobStatus.CANCELLED}
    assert shared.programs[0].children() == processes


@pytest.mark.slow
def test_a_worker_that_stops_gives_back_at_once_what_it_does_not_finish(ground: Ground) -> None:
    """Six calls of 1.5 s, one after the other, and 2 s to finish: one or two do."""
    worker = ground.start_worker(processes=1, PYFUNQ_BATCH_MAX_JOBS="3", PYFUNQ_DRAIN_SECONDS="2")
    jobs = ground.submit(*[-15.0] * 6)
    until("the first are running", lambda: ground.client.get(jobs[0]).status == "running")
    begun = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - begun < 2 + 5
    now = [ground.client.get(job) for job in jobs]
    assert {job.status for job in now} <= {JobStatus.SUCCEEDED, JobStatus.QUEUED}
    left = [job for job in now if job.status is JobStatus.QUEUED]
    assert left, "it was to be stopped before the end"
    assert {job.crashes for job in now} == {0}
    begun = time.monotonic()
    ground.start_worker()
    done = ground.ends(jobs)
    assert {job.status for job in done} == {JobStatus.SUCCEEDED}
    assert ask(ground.settings.database, "SELECT * FROM chaos_rewritten") == []


def test_a_child_that_is_killed_while_it_drains_loses_nothing(ground: Ground) -> None:
    worker = ground.start_worker(processes=1, PYFUNQ_BATCH_MAX_JOBS="3", PYFUNQ_DRAIN_SECONDS="1", **QUICK)
    ground.order(FaultPoint.DRAINING, "child")
    jobs = ground.submit(*[-15.0] * 6)
    until("the first are running", lambda: ground.client.get(jobs[0]).status == "running")
    worker.process.send_signal(signal.SIGTERM)
    ground.died_at(FaultPoint.DRAINING)
    worker.process.wait(15)
    ground.start_worker(**QUICK)
    done = ground.ends(jobs)
    assert {job.status for job in done} == {JobStatus.SUCCEEDED}
    assert {job.crashes for job in done} <= {0, 1}
    assert ask(ground.settings.database, "SELECT * FROM chaos_rewritten") == []


@pytest.mark.slow
def test_a_rolling_restart_under_load_loses_and_doubles_nothing(ground: Ground) -> None:
    first, second = ground.start_worker(processes=1), ground.start_worker(processes=1)
    jobs = [job for n in range(40) for job in ground.submit(-10.0 - n / 100)]
    assert first.stop() == 0
    third = ground.start_worker(processes=1)
    assert second.stop() == 0
    done = ground.ends(jobs)
    assert {(job.status, job.crashes) for job in done} == {(JobStatus.SUCCEEDED, 0)}
    assert ask(ground.settings.database, "SELECT * FROM chaos_rewritten") == []
    assert third.process.poll() is None
