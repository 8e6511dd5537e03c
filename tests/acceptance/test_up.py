"""`pyfunq up` and `pyfunq demo` as whole programs: they start, survive, go on, and leave nothing behind."""

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import pandas as pd
import psutil
import pytest
from mlflow.pyfunc import PythonModel

from pyfunq.client import Client
from pyfunq.job import JobStatus
from tests.acceptance.conftest import PYFUNQ, Cli, environment_for, settings_of, start
from tests.conftest import Servers, logging_to

JOBS = 60


class Slow(PythonModel):
    """0.1 s a row."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        import time

        time.sleep(0.1 * len(model_input))
        return model_input["x"] + 1


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes that know this state directory by their command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(home) in " ".join(process.cmdline()) or process.environ().get("PYFUNQ_HOME") == str(home):
                found.append(process)
        except psutil.Error:
            continue
    return found


def left_of(home: Path) -> list[int]:
    return [process.pid for process in processes_of(home)]


def one_row_each() -> Iterator[pd.DataFrame]:
    for x in range(JOBS):
        yield pd.DataFrame({"x": [float(x)]})


@pytest.mark.slow
def test_what_was_queued_goes_on_after_a_stop_and_after_a_kill(home: Path, until: Callable[..., Any]) -> None:
    options = {"PYFUNQ_BATCH_MAX_JOBS": "1", "PYFUNQ_STALE_SECONDS": "3", "PYFUNQ_HEARTBEAT_SECONDS": "1"}
    options |= {"PYFUNQ_RESCUE_SECONDS": "1", "PYFUNQ_PUBLISH_GRACE_SECONDS": "1"}
    program = start(home, "up", "--logs", **options)
    program.wait_for("ready; state in")
    endpoints = json.loads((home / "endpoints.json").read_text())["endpoints"]
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker has no tests to import it from
    with logging_to(endpoints["mlflow_tracking_uri"]):
        mlflow.pyfunc.log_model(python_model=Slow(), name="slow", registered_model_name="slow", pip_requirements=[])
    with Client(settings_of(home)) as client:
        batch = client.submit_batch("models:/slow/1", one_row_each(), chunk_rows=1)
        until("some are done", lambda: client.get_batch(batch).finished >= 5)
    begun = time.monotonic()
    assert program.stop() == 0
    assert time.monotonic() - begun < 30
    assert any("stopping: the worker finishes what it has" in line for line in program.said)
    assert any(line.startswith("worker | ") and "pyfunq.predict" in line for line in program.said), "by --logs"
    until("everything has ended", lambda: not left_of(home), 10)

    program = start(home, "up", **options)
    program.wait_for("ready; state in")
    with Client(settings_of(home)) as client:
        before = client.get_batch(batch)
        assert before.finished < JOBS, "there was something left to go on with"
        assert JobStatus.FAILED not in before.counts, client.list(batch=batch, status="failed")[0].error
        until("more are done", lambda: client.get_batch(batch).finished >= before.finished + 5)
    program.process.send_signal(signal.SIGKILL)
    program.process.wait(10)
    until("nothing outlives a killed `up`", lambda: not left_of(home), 30)

    program = start(home, "up", **options)
    program.wait_for("ready; state in")
    with Client(settings_of(home)) as client:
        done = client.wait_batch(batch, timeout=60)
        assert done.counts == {JobStatus.SUCCEEDED: JOBS}
        answers = [part.result for part in client.batch_results(batch)]
    assert [float(a.iloc[0]) for a in answers] == [x + 1.0 for x in range(JOBS)]
    assert program.stop(signal.SIGTERM) == 0


def test_a_second_up_in_the_same_place_is_refused(up: Path, cli: Cli) -> None:
    assert "uses the state directory" in cli("up", code=1).stderr


@pytest.mark.thorough
def test_components_that_die_are_started_again(home: Path, until: Callable[..., Any]) -> None:
    program = start(home, "up")
    program.wait_for("ready; state in")
    endpoints = (home / "endpoints.json").read_text()
    for name in ("beat", "worker", "redis"):
        (record,) = home.glob(f"run/{name}.*.json")
        psutil.Process(json.loads(record.read_text())["program"][0]).kill()
        line = program.wait_for(f"{name:<9} restarting", 10)
        assert "ended by itself (return code -9)" in line
        assert f"{name}.log" in line
        ready = f"{name:<9} ready"
        until(f"{name} is ready again", lambda ready=ready: sum(line.startswith(ready) for line in program.said) == 2)
    assert (home / "endpoints.json").read_text() == endpoints, "at the same addresses"
    findings = Cli(home)("doctor", "--json").stdout.splitlines()
    assert all(json.loads(finding)["ok"] for finding in findings)
    assert program.stop() == 0
    until("everything has ended", lambda: not left_of(home), 10)


@pytest.mark.thorough
def test_a_configured_server_is_used_and_a_second_ctrl_c_stops_at_once(
    home: Path, servers: Servers, until: Callable[..., Any]
) -> None:
    program = start(home, "up", PYFUNQ_REDIS_URL=servers.redis, MLFLOW_TRACKING_URI=servers.mlflow)
    program.wait_for("ready; state in")
    said = {line.split()[0]: line for line in program.said}
    assert ("configured" in said["redis"], "configured" in said["mlflow"], "ready" in said["postgres"]) == (True,) * 3
    assert not (home / "redis").exists()
    assert servers.redis.split("@")[0].split(":")[-1] not in "".join(program.said), "the password is not shown"
    findings = [json.loads(line) for line in Cli(home)("doctor", "--json").stdout.splitlines()]
    assert all(f["ok"] for f in findings)
    begun = time.monotonic()
    program.process.send_signal(signal.SIGINT)
    program.wait_for("stopping")
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(10) in (0, 130)
    assert time.monotonic() - begun < 10
    until("everything has ended", lambda: not left_of(home), 10)


def test_the_demo(home: Path) -> None:
    # It has servers of its own, whatever is configured.
    elsewhere = {"PYFUNQ_REDIS_URL": "redis://127.0.0.1:9/0", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [PYFUNQ, "demo"],
        env=environment_for(home, **elsewhere),
        capture_output=True,
        text=True,
        timeout=360,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert used < 120, "seconds of a core, by all that it started; how long it takes depends on who else is there"
    table = {line.split("  ")[0]: line for line in done.stdout.splitlines() if line}
    assert table["iris rows"].split()[2:4] == ["150", "150"]
    assert table["backlog"].split()[1:3] == ["200", "100,000"]
    assert "v1: 150" in table["iris rows"]
    assert "v1: " in table["backlog"]
    assert "v2: " in table["backlog"]
    assert "failures: 0" in done.stdout
    assert "sepal_length" in done.stdout
    assert "Flower     http://127.0.0.1:" in done.stdout
    assert "MLflow UI  http://127.0.0.1:" in done.stdout
    assert "100,000 of 100,000 rows" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert left_of(home) == []
