"""Limits, idempotency keys and dead jobs by the CLI."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel

from tests.acceptance.conftest import SETOSA, VIRGINICA, Cli, split
from tests.conftest import RegisterModel

IRIS = "models:/iris@champion"
SLOW = "models:/slow/1"


class Slow(PythonModel):
    """x after x seconds."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        import time

        time.sleep(float(model_input["x"].sum()))
        return model_input["x"]


@pytest.fixture(scope="module")
def slow_model(up: Path) -> None:

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers have no tests to import it from
    uri = json.loads((up / "endpoints.json").read_text())["endpoints"]["mlflow_tracking_uri"]
    RegisterModel(uri)("slow", Slow(), pd.DataFrame({"x": [1.0]}))


def seconds(x: float) -> str:
    return split([x], columns=["x"])


def test_a_job_beyond_its_time_limit_is_dead_and_can_be_replayed_or_purged(
    cli: Cli, slow_model: None, until: Callable[..., Any]
) -> None:
    job = cli("submit", SLOW, seconds(20.0), "--time-limit", "0.3").stdout.strip()
    assert "timed out after 0.3 s, 3 times" in cli("result", job, "--timeout", "60", code=1).stderr
    assert cli.json("status", job)["crashes"] == 3
    assert job in cli("dead", "list").stdout
    assert [json.loads(line)["id"] for line in cli("dead", "list", "--json").stdout.splitlines()] == [job]
    assert json.loads(cli("dead", "show", job).stdout)["error"]["code"] == "job_dead"
    assert "1 put back" in cli("dead", "requeue", job).stderr
    until("it has died again", lambda: cli.json("status", job)["status"] == "dead", 60)
    assert "1 put back" in cli("dead", "requeue", "--all").stderr
    until("and again", lambda: cli.json("status", job)["status"] == "dead", 60)
    assert "0 deleted" in cli("dead", "purge", "--older-than", "3600").stderr
    assert "1 deleted" in cli("dead", "purge").stderr
    assert "there is no job" in cli("status", job, code=4).stderr


def test_only_the_dead_are_shown_as_dead(cli: Cli) -> None:
    job = cli("submit", IRIS, split(SETOSA)).stdout.strip()
    cli("wait", job)
    assert "is not dead but succeeded" in cli("dead", "show", job, code=2).stderr
    assert "0 put back" in cli("dead", "requeue", job).stderr
    assert "name dead jobs, or give --all" in cli("dead", "requeue", code=2).stderr


def test_a_key_makes_a_submit_repeatable(cli: Cli) -> None:
    first = cli("submit", IRIS, split(SETOSA), "--idempotency-key", "cli-1").stdout
    assert cli("submit", IRIS, split(SETOSA), "--idempotency-key", "cli-1").stdout == first
    said = cli("submit", IRIS, split(VIRGINICA), "--idempotency-key", "cli-1", code=2).stderr
    assert "stands for another request" in said


def test_a_running_job_can_be_terminated(cli: Cli, slow_model: None, until: Callable[..., Any]) -> None:
    job = cli("submit", SLOW, seconds(60.0)).stdout.strip()
    until("it runs", lambda: cli.json("status", job)["status"] == "running")
    assert cli.json("cancel", job, "--terminate")["status"] == "cancelled"
    assert json.loads(cli("submit", SLOW, seconds(0.1), "--wait", "--timeout", "20").stdout) == [0.1]


def test_a_full_lane_refuses_with_a_hint(cli: Cli, slow_model: None) -> None:
    busy = [cli("submit", SLOW, seconds(5.0), "--lane", "bulk").stdout.strip() for _ in range(4)]
    done = cli("submit", SLOW, seconds(0.1), "--lane", "bulk", code=5, PYFUNQ_MAX_QUEUED_JOBS="1")
    assert "lane bulk holds as many queued jobs as it may, 1 (PYFUNQ_MAX_QUEUED_JOBS); try again in" in done.stderr
    for job in busy:
        cli("cancel", job, "--terminate")


@pytest.mark.parametrize(("option", "says"), [("--time-limit=0", "timeout"), ("--retries=21", "retries")])
def test_limits_that_cannot_be(cli: Cli, option: str, says: str) -> None:
    assert says in cli("submit", IRIS, split(SETOSA), option, code=2).stderr
