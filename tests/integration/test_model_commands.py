"""`pyfunq models` and `pyfunq image` against a registry and a ledger, without workers."""

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import typer
from mlflow import MlflowClient

from producer.cli import app
from producer.registry import is_trusted
from pyfunq import errors
from pyfunq.entries import ModelTags, ModelVersion
from pyfunq.ids import new_id
from pyfunq.ledger import Ledger
from pyfunq.queue import CONTROL_QUEUE, TASK_REGISTRY_WATCH
from pyfunq.settings import Settings
from tests.conftest import logging_to

_names = count(1)
HOST = "elsewhere"


@dataclass(frozen=True)
class Cli:
    """The CLI within this process: a program of its own would import MLflow for each command."""

    settings: Settings
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str | int, code: int = 0) -> tuple[str, str]:
        """What it prints on stdout and stderr."""
        self.capsys.readouterr()
        ended = typer.main.get_command(app).main([*map(str, arguments)], "pyfunq", standalone_mode=False)
        said = self.capsys.readouterr()
        assert (ended or 0) == code, said
        return said

    def json(self, *arguments: str | int) -> Any:
        return json.loads(self(*arguments, "--json")[0])

    def ledger(self, work: Callable[[Ledger], Awaitable[None]]) -> None:
        async def run() -> None:
            async with Ledger.open(self.settings.database, max_connections=1) as ledger:
                await work(ledger)

        asyncio.run(run())


@pytest.fixture
def cli(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("PYFUNQ_HOME", str(settings.home))
    monkeypatch.setenv("PYFUNQ_DATABASE_URL", settings.database)
    monkeypatch.setenv("PYFUNQ_REDIS_URL", settings.redis)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.mlflow)
    return Cli(settings, capsys)


@pytest.fixture
def client(settings: Settings) -> MlflowClient:
    return MlflowClient(tracking_uri=settings.mlflow, registry_uri=settings.mlflow)


@pytest.fixture
def name(client: MlflowClient) -> Iterator[str]:
    """A registered model of three versions that nobody needs the files of."""
    name = f"promoted{next(_names)}"
    client.create_registered_model(name)
    for version in (1, 2, 3):
        client.create_model_version(name, f"s3://nowhere/{version}")
    yield name
    client.delete_registered_model(name)


def alias_of(client: MlflowClient, name: str, alias: str) -> int:
    return int(client.get_model_version_by_alias(name, alias).version)


def stages(client: MlflowClient, name: str) -> dict[int, str]:
    return {int(v.version): v.current_stage for v in client.search_model_versions(f"name = '{name}'")}


def test_a_promotion_says_what_it_replaces_and_a_rollback_returns_to_it(
    cli: Cli, client: MlflowClient, name: str
) -> None:
    assert "no version had it" in cli("models", "promote", name, 1, "--alias", "a")[1]
    assert (
        f"models:/{name}@a is now at version 2; before, it was at 1"
        in cli("models", "promote", name, 2, "--alias", "a")[1]
    )
    assert "as it was before" in cli("models", "promote", name, 2, "--alias", "a")[1]
    assert cli.json("models", "rollback", name, "--alias", "a") == {
        "model_uri": f"models:/{name}@a",
        "version": 1,
        "before": 2,
        "now": 1,
    }
    assert alias_of(client, name, "a") == 1
    cli("models", "rollback", name, "--alias", "a")
    assert alias_of(client, name, "a") == 2


def test_a_stage_is_rolled_back_and_who_had_it_is_archived(cli: Cli, client: MlflowClient, name: str) -> None:
    cli("models", "promote", name, 3, "--stage", "Production")
    cli("models", "promote", name, 1, "--stage", "production")
    assert stages(client, name) == {1: "Production", 2: "None", 3: "Archived"}
    cli("models", "rollback", name, "--stage", "PRODUCTION")
    assert stages(client, name) == {1: "Archived", 2: "None", 3: "Production"}
    cli("models", "rollback", name, "--stage", "Production")
    assert stages(client, name) == {1: "Production", 2: "None", 3: "Archived"}
    assert "stays at version 3" in cli("models", "promote", name, 2, "--stage", "Archived")[1]


def test_alias_and_stage_go_back_together_or_not_at_all(cli: Cli, client: MlflowClient, name: str) -> None:
    for version in (1, 2):
        cli("models", "promote", name, version, "--alias", "a")
    cli("models", "promote", name, 2, "--stage", "Staging")
    with pytest.raises(errors.InvalidInput, match="before version 2 is not recorded"):
        cli("models", "rollback", name, "--alias", "a", "--stage", "Staging")
    assert alias_of(client, name, "a") == 2


def test_a_rollback_goes_nowhere_that_it_does_not_know(cli: Cli, client: MlflowClient, name: str) -> None:
    with pytest.raises(errors.InvalidInput, match=r"no version of .* has the alias a; use .*: 3, 2, 1"):
        cli("models", "rollback", name, "--alias", "a")
    client.set_registered_model_alias(name, "a", "1")
    with pytest.raises(errors.InvalidInput, match=r"before version 1 is not recorded; .*: 3, 2, 1 \(@a\)"):
        cli("models", "rollback", name, "--alias", "a")
    cli("models", "promote", name, 2, "--alias", "a")
    client.set_registered_model_alias(name, "a", "3")
    with pytest.raises(errors.InvalidInput, match="moved to version 3 by other means"):
        cli("models", "rollback", name, "--alias", "a")
    client.delete_registered_model_alias(name, "a")
    cli("models", "promote", name, 2, "--alias", "a")
    with pytest.raises(errors.InvalidInput, match="not recorded"):
        cli("models", "rollback", name, "--alias", "a")
    cli("models", "promote", name, 3, "--alias", "a")
    client.delete_model_version(name, "2")
    with pytest.raises(errors.ModelNotFound, match=r"no version 2; its versions: 3 \(@a\), 1"):
        cli("models", "rollback", name, "--alias", "a")
    assert alias_of(client, name, "a") == 3
    with pytest.raises(errors.InvalidInput, match="one of Staging, Production"):
        cli("models", "rollback", name, "--stage", "Archived")


def test_what_does_not_exist_is_answered_with_what_does(cli: Cli, client: MlflowClient, name: str) -> None:
    client.set_registered_model_alias(name, "first", "1")
    cli("models", "promote", name, 2, "--stage", "Staging")
    what = r"its versions: 3, 2 \(Staging\), 1 \(@first\)"
    with pytest.raises(errors.ModelNotFound, match=f"has no version 9; {what}"):
        cli("models", "promote", name, 9, "--alias", "a")
    with pytest.raises(errors.ModelNotFound, match=what):
        cli("models", "requirements", f"models:/{name}/Production")
    with pytest.raises(errors.ModelNotFound, match=what):
        cli("models", "warm", f"models:/{name}@nobody")
    with pytest.raises(errors.ModelNotFound, match="m-0000"):
        cli("models", "warm", "models:/m-" + "0" * 32)
    with pytest.raises(errors.ModelNotFound, match=f"did you mean .*{name}"):
        cli("models", "info", f"{name}x".upper())
    with pytest.raises(errors.ModelNotFound, match="the registry has "):
        cli("image", "models:/9_%_9/1")
    with pytest.raises(errors.ModelNotFound, match="has no version 9"):
        cli("models", "info", name, "--version", 9)
    with pytest.raises(errors.RegistryUnavailable, match="cannot be read"):
        cli("models", "requirements", f"models:/{name}/1")


@pytest.mark.parametrize("uri", ["file:///etc/1", "runs:/0123456789abcdef/model", "/tmp/model"])
def test_only_what_the_operator_allows_is_read_or_warmed(cli: Cli, uri: str) -> None:
    for command in (("models", "warm"), ("models", "requirements"), ("image",)):
        with pytest.raises(errors.ModelNotAllowed):
            cli(*command, uri)


@pytest.mark.parametrize(
    ("place", "trusted"),
    [
        ("mlflow-artifacts:/1/models/m-1/artifacts", True),
        ("mlflow-artifacts://mlflow:5000/1/x", True),
        ("mlflow-artifacts://elsewhere/1/x", False),
        ("http://mlflow:5000/api/2.0/mlflow-artifacts/artifacts/1", True),
        ("http://mlflow:5000.elsewhere/api/2.0/mlflow-artifacts/artifacts/1", False),
        ("http://elsewhere/api/2.0/mlflow-artifacts/artifacts/1", False),
        ("s3://bucket/1", True),
        ("file:///etc", False),
        ("/etc", False),
    ],
)
def test_where_files_are_fetched_from(place: str, trusted: bool) -> None:
    assert is_trusted(place, "http://mlflow:5000/") is trusted


def test_files_are_fetched_from_nowhere_else(cli: Cli, client: MlflowClient, name: str) -> None:
    client.create_model_version(name, "dbfs:/nowhere/4")
    with pytest.raises(errors.ModelNotLoadable, match=f"^the files of models:/{name}/4 lie neither"):
        cli("models", "requirements", f"models:/{name}/4")
    assert "lie neither" in cli.json("models", "info", name)["signature"]["unknown"]


def test_a_runs_and_a_logged_models_requirements(
    cli: Cli, client: MlflowClient, iris_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = client.get_model_version(iris_model, "1")
    assert cli("models", "requirements", version.source)[0].startswith("mlflow==")
    monkeypatch.setenv("PYFUNQ_ALLOWED_MODELS", "runs:/*")
    assert cli("models", "requirements", f"runs:/{version.run_id}/model")[0].startswith("mlflow==")
    with pytest.raises(errors.ModelNotAllowed):
        cli("models", "requirements", version.source)


@dataclass(frozen=True)
class Process:
    """A worker process that the ledger believes in."""

    pid: int

    async def serve(self, ledger: Ledger, uri: str, name: str, version: int) -> None:
        identity = await self._begin(ledger)
        await ledger.serve(identity, uri, (await known(ledger, uri, name, version)).id, 3_000_000, 0.25)

    async def fail(self, ledger: Ledger, uri: str, name: str, version: int, reason: str | None) -> None:
        identity = await self._begin(ledger)
        found = await known(ledger, uri, name, version)
        await ledger.begin_load(identity, uri, found.id, pause_seconds=60)
        if reason is not None:
            await ledger.end_load(identity, found.id, reason=reason)

    async def _begin(self, ledger: Ledger) -> Any:
        identity = new_id()
        await ledger.beat(identity, HOST, self.pid)
        return identity


async def known(ledger: Ledger, uri: str, name: str, version: int) -> ModelVersion:
    found = ModelVersion(name=name, version=str(version), created_ms=1, source="s", run_id=None, experiment_id=None)
    return await ledger.point(uri, found, ModelTags())


def test_info_shows_who_serves_what_and_what_failed(cli: Cli, name: str) -> None:
    uri = f"models:/{name}@a"

    async def happen(ledger: Ledger) -> None:
        await Process(1).serve(ledger, uri, name, 1)
        await Process(2).fail(ledger, uri, name, 2, "needs the module 'x' [here]")
        await Process(3).serve(ledger, "models:/other/1", "other", 1)

    cli.ledger(happen)
    cli("models", "promote", name, 2, "--alias", "a")
    shown = cli.json("models", "info", name)
    assert [v["version"] for v in shown["versions"]] == [3, 2, 1]
    assert shown["versions"][1]["aliases"] == ["a"]
    (use,) = shown["in_use"]
    assert (use["model_uri"], use["version"]) == (uri, "2")
    assert 0 <= use["age_seconds"] < 30
    (serving,) = shown["serving"]
    assert (serving["process"], serving["version"], serving["load_seconds"]) == (f"{HOST}:1", "1", 0.25)
    (failure,) = shown["failures"]
    assert (failure["process"], failure["version"], failure["tries"]) == (f"{HOST}:2", "2", 1)
    assert failure["next_try"] > failure["failed"]
    assert "cannot be read" in shown["signature"]["unknown"]
    text = cli("models", "info", name)[0]
    for part in (uri, f"{HOST}:1", "0.25", "3.0", "needs the module 'x' [here]", "s ago"):
        assert part in text


def test_waiting_for_a_promotion(cli: Cli, name: str) -> None:
    uri = f"models:/{name}@a"
    assert "no worker process serves" in cli("models", "promote", name, 1, "--alias", "a", "--wait")[1]

    async def serve(ledger: Ledger) -> None:
        await Process(1).serve(ledger, uri, name, 2)
        await Process(2).serve(ledger, uri, name, 2)

    cli.ledger(serve)
    assert (
        f"{uri}: version 2 is served by 2 worker processes"
        in cli("models", "promote", name, 2, "--alias", "a", "--wait")[1]
    )
    with pytest.raises(errors.WaitTimeout, match=rf"{HOST}:1, {HOST}:2"):
        cli("models", "promote", name, 3, "--alias", "a", "--wait", "--timeout", 0.3)

    async def fail(ledger: Ledger) -> None:
        for pid in (1, 2):
            await Process(pid).fail(ledger, uri, name, 3, "it is broken")

    cli.ledger(fail)
    with pytest.raises(errors.ModelNotLoadable, match=r"version 3 could not be loaded by 2 of 2 .*: it is broken"):
        cli("models", "promote", name, 3, "--alias", "a", "--wait")
    assert cli.json("models", "rollback", name, "--alias", "a", "--wait")["now"] == 2


def test_warming_waits_for_all_processes(cli: Cli, name: str) -> None:
    uri = f"models:/{name}/3"
    with pytest.raises(errors.LedgerUnavailable, match="no worker process runs"):
        cli("models", "warm", uri)

    async def one_serves(ledger: Ledger) -> None:
        await Process(1).serve(ledger, uri, name, 3)
        await Process(2).serve(ledger, "models:/other/1", "other", 1)

    cli.ledger(one_serves)
    assert "asked for" in cli("models", "warm", uri, "--no-wait")[1]
    with pytest.raises(errors.WaitTimeout, match=f"still without it: {HOST}:2$"):
        cli("models", "warm", uri, "--timeout", 0.3)

    async def asked(ledger: Ledger) -> None:
        assert [r["model_uri"] for r in await ledger._pool.fetch("SELECT model_uri FROM warm_request")] == [uri]
        await Process(2).fail(ledger, uri, name, 3, "too large")

    cli.ledger(asked)
    with pytest.raises(errors.ModelNotLoadable, match="1 of 2 worker processes: too large"):
        cli("models", "warm", uri)

    async def both_serve(ledger: Ledger) -> None:
        await Process(2).serve(ledger, uri, name, 3)

    cli.ledger(both_serve)
    out, said = cli("models", "warm", uri)
    assert "in the memory of 2 worker processes" in said
    assert [line.split()[0] for line in out.splitlines()] == ["process", f"{HOST}:1", f"{HOST}:2"]


def test_refresh_asks_a_worker(cli: Cli) -> None:
    from redis import Redis

    cli("models", "refresh")
    with Redis.from_url(cli.settings.redis) as redis:
        message = json.loads(redis.lindex(CONTROL_QUEUE, 0))
    assert message["headers"]["task"] == TASK_REGISTRY_WATCH


def test_the_server_that_is_asked_is_the_settings(cli: Cli, iris_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a `models:/` address MLflow's own download asks the server that its environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("PYFUNQ_MLFLOW_TRACKING_URI", cli.settings.mlflow)
    assert cli.json("models", "requirements", "models:/iris@champion")["requirements"][0].startswith("mlflow")


def test_info_makes_an_example_that_submit_takes(cli: Cli, iris_model: str) -> None:
    taken = cli.json("models", "info", "iris")["signature"]
    assert next((c["name"], c["type"], c["required"]) for c in taken["inputs"]) == ("sepal_length", "double", True)
    assert taken["example_is_own"] is False
    text = cli("models", "info", "iris", "--version", 1)[0]
    (command,) = [line for line in text.splitlines() if line.startswith("pyfunq submit")]
    words = shlex.split(command)
    assert words[2] == "models:/iris/1"
    assert cli(*[w for w in words[1:] if w != "--wait"])[0].strip()


@pytest.fixture(scope="module")
def pinned(register: Any) -> str:
    """A model with an example, params, and requirements of which this environment lacks one."""
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature

    example = pd.DataFrame({"x [mm]": [1.5, 2.5], "n": [1, 2]})
    with logging_to(register.tracking_uri):

        class Doubles(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
            def predict(self, context, model_input: pd.DataFrame, params=None):
                return model_input["x [mm]"] * 2

        with mlflow.start_run():
            mlflow.pyfunc.log_model(
                name="model",
                python_model=Doubles(),
                signature=infer_signature(example, [1.0], params={"scale": 2.0}),
                input_example=example,
                pip_requirements=["mlflow==2.9.2", "xgboost==0.0.1", "numpy"],
                registered_model_name="pinned",
            )
    return "pinned"


def test_info_shows_the_models_own_example_and_params(cli: Cli, pinned: str) -> None:
    taken = cli.json("models", "info", pinned)["signature"]
    assert taken["example_is_own"] is True
    assert taken["example"]["dataframe_split"] == {"columns": ["x [mm]", "n"], "data": [[1.5, 1]]}
    assert taken["params"] == [{"name": "scale", "type": "double", "default": 2.0}]
    text = cli("models", "info", pinned)[0]
    assert "x [mm]" in text
    assert "scale" in text


def test_what_a_model_needs_and_what_of_it_is_missing(cli: Cli, pinned: str) -> None:
    uri = f"models:/{pinned}/latest"
    assert cli("models", "requirements", uri)[0].split() == ["mlflow==2.9.2", "xgboost==0.0.1", "numpy"]
    out, _ = cli("models", "requirements", uri, "--check", code=1)
    assert [line.split()[0] for line in out.splitlines()] == ["needs", "mlflow==2.9.2", "xgboost==0.0.1"]


def test_the_image_of_a_model(cli: Cli, pinned: str, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile.pinned"
    _, said = cli("image", f"models:/{pinned}/1", "-o", str(file))
    text = file.read_text()
    assert "    xgboost==0.0.1 \\\n    numpy\n" in text
    assert "left out: mlflow==2.9.2: PyFunQ itself needs mlflow" in said
    assert "pyfunq.queue=model.pinned" in said
    assert f"docker build -f {file} -t pyfunq-pinned ." in said
    written, _ = cli("image", f"models:/{pinned}/1", "-o", "-")
    assert "    xgboost==0.0.1 \\\n    numpy\n" in written
    with pytest.raises(errors.FileUnreadable):
        cli("image", f"models:/{pinned}/1", "-o", str(tmp_path / "nowhere" / "Dockerfile"))
