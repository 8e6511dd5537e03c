"""The registry commands, as an operator has them, on a system that runs."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import FLOWER_PASSWORD, SETOSA, Cli, split
from tests.acceptance.test_models_and_operators import flower

FLOWERS = "flowers"


@pytest.fixture(scope="module")
def flowers(up: Path) -> str:
    """Two versions of one registered model, both of iris' files."""
    from mlflow import MlflowClient

    address = json.loads((up / "endpoints.json").read_text())["endpoints"]["mlflow_tracking_uri"]
    client = MlflowClient(tracking_uri=address, registry_uri=address)
    iris = client.get_model_version("iris", "1")
    client.create_registered_model(FLOWERS)
    for _ in range(2):
        # The registry itself does not say the id.
        client.create_model_version(FLOWERS, iris.source, iris.run_id, model_id=iris.source.removeprefix("models:/"))
    return FLOWERS


def test_the_example_that_info_prints_can_be_pasted(cli: Cli, flowers: str) -> None:
    lines = cli("models", "info", flowers).stdout.splitlines()
    (command,) = [line for line in lines if line.startswith("pyfunq submit")]
    assert cli(*shlex.split(command)[1:]).stdout.strip() == '["setosa"]'


def test_promotion_and_rollback_reach_the_workers(cli: Cli, flowers: str, until: Callable[..., Any]) -> None:
    uri = f"models:/{flowers}@champion"

    def version() -> str:
        return str(cli.json("submit", uri, split(SETOSA), "--wait")["model_version"])

    cli("models", "promote", flowers, "1", "--alias", "champion")
    assert version() == "1"
    said = cli("models", "promote", flowers, "2", "--alias", "champion", "--wait", "--timeout", "60").stderr
    assert f"{uri} is now at version 2; before, it was at 1" in said
    until("jobs have version 2", lambda: version() == "2")
    cli("models", "rollback", flowers, "--alias", "champion")
    until("jobs have version 1 again", lambda: version() == "1")
    in_use = {use["model_uri"]: use["version"] for use in cli.json("models", "info", flowers)["in_use"]}
    assert in_use[uri] == "1"


def test_refresh_is_heard(cli: Cli, up: Path, until: Callable[..., Any]) -> None:
    def asked_for() -> set[str]:
        """The watches that somebody asked for, and that are done."""
        tasks = flower(up, "/api/tasks?taskname=pyfunq.registry_watch", f"pyfunq:{FLOWER_PASSWORD}")
        return {i for i, task in tasks.items() if "at_once" in task["kwargs"] and task["state"] == "SUCCESS"}

    before = asked_for()
    assert "asked" in cli("models", "refresh").stderr
    until("a worker has done it", lambda: asked_for() - before)


def test_what_a_model_needs(cli: Cli, flowers: str, tmp_path: Path) -> None:
    uri = f"models:/{flowers}/1"
    assert "scikit-learn" in cli("models", "requirements", uri).stdout.split()
    assert "has what" in cli("models", "requirements", uri, "--check").stderr
    done = cli("image", uri, "-o", tmp_path / "Dockerfile")
    assert "worker --queues model.flowers" in done.stderr
    assert 'CMD ["worker", "--queues", "model.flowers"]' in (tmp_path / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("info", "flower"), 4, "did you mean flowers"),
        (("rollback", "iris", "--alias", "nobody"), 2, "versions"),
    ],
)
def test_what_cannot_be_done_is_said(cli: Cli, flowers: str, arguments: tuple[str, ...], code: int, says: str) -> None:
    error = cli("models", *arguments, code=code).stderr
    assert says in error
    assert error.startswith("error: ")


def test_the_command_line_stays_light() -> None:
    code = "import sys, producer.cli; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not {"mlflow", "pandas", "numpy", "pyarrow", "celery", "yaml"} & loaded
