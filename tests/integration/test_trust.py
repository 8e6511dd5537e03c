"""Models that the operator does not trust: refused before anything of them is imported or unpickled."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.models import Model

from pyfunq.client import AsyncClient
from pyfunq.entries import ModelVersion
from pyfunq.environment import child_environment
from pyfunq.errors import JobFailed, ModelUntrusted, NotConfigured
from pyfunq.job import JobStatus
from pyfunq.ledger import Ledger
from pyfunq.model_digest import digest_of_files, read_trusted
from pyfunq.settings import Settings
from tests.conftest import RegisterModel, Servers
from tests.integration.conftest import SETOSA, Work, split
from worker.process import WorkerProcess
from worker.trust import Trust, what_it_runs

VERSION = ModelVersion(name="iris", version="1", created_ms=0, source="", run_id=None, experiment_id=None)
LINES = {"iris/1": "sha256:" + "0" * 64}


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the malicious model would write."""
    return tmp_path_factory.mktemp("trace") / "it-ran"


@pytest.fixture(scope="session")
def malicious_model(servers: Servers, trace: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`loader_module` names a module among its own files, which leaves a trace when it is imported."""
    place = tmp_path_factory.mktemp("malicious") / "model"
    (place / "code").mkdir(parents=True)
    loader = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\ndef _load_pyfunc(path): raise RuntimeError\n"
    (place / "code" / "burglar.py").write_text(loader)
    described = Model()
    described.add_flavor("python_function", loader_module="burglar", code="code", python_version="3.11")
    described.save(str(place / "MLmodel"))
    mlflow.set_tracking_uri(servers.mlflow)
    mlflow.set_experiment("tests burglar")
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(place), "model")
    client = MlflowClient(servers.mlflow, servers.mlflow)
    client.create_registered_model("burglar")
    client.create_model_version("burglar", f"{run.info.artifact_uri}/model", run.info.run_id)
    return "models:/burglar/1"


Working = Callable[..., Work]


@pytest.fixture
def working(settings: Settings, ledger: Ledger) -> Iterator[Working]:
    """A worker process with other settings."""
    made: list[WorkerProcess] = []

    def start(**changed: Any) -> Work:
        made.append(WorkerProcess(settings.model_copy(update=changed)))
        return Work(made[-1], ledger)

    yield start
    for process in made:
        process.close()


def ran(trace: Path) -> bool:
    return trace.exists()


def digest_command(settings: Settings, uri: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("pyfunq"), "models", "digest", uri],
        env=child_environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def ended(client: AsyncClient, work: Work, uri: str, inputs: dict[str, Any]) -> tuple[str, str]:
    job = await client.submit(uri, inputs)
    await work.all()
    job = await client.get(job)
    if job.status is JobStatus.SUCCEEDED:
        return "succeeded", ""
    with pytest.raises(JobFailed):
        await client.result(job)
    assert job.error is not None
    return str(job.status), job.error.code


async def test_7_a_loader_of_the_models_own_is_never_imported(
    client: AsyncClient, working: Working, malicious_model: str, trace: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "trusted.json"
    lines.write_text(json.dumps(LINES))
    x = split([1.0], columns=["x"])
    for changed in ({"trusted_models": lines}, {"allow_pickle": False}):
        assert await ended(client, working(**changed), malicious_model, x) == ("failed", "model_untrusted")
        assert not ran(trace)
    lines.write_text(json.dumps({"burglar/1": "sha256:" + "0" * 64}))
    assert await ended(client, working(trusted_models=lines), malicious_model, x) == ("failed", "model_untrusted")
    assert not ran(trace)
    assert await ended(client, working(), malicious_model, x) == ("failed", "model_not_loadable")
    assert ran(trace), "it would have run"


async def test_8_a_pickle_is_loaded_only_where_pickles_are(
    client: AsyncClient, working: Working, iris_model: str, moody_model: str
) -> None:
    work = working(allow_pickle=False)
    assert await ended(client, work, "models:/iris/1", split(SETOSA)) == ("failed", "model_untrusted")
    assert await ended(client, work, moody_model, split([1.0], columns=["x"])) == ("failed", "model_untrusted")


async def test_8_the_digest_that_the_command_prints_is_the_one_that_a_worker_finds(
    client: AsyncClient, working: Working, settings: Settings, iris_model: str, tmp_path: Path
) -> None:
    said = await asyncio.to_thread(digest_command, settings, "models:/iris/Production")
    lines = tmp_path / "trusted.json"
    lines.write_text(f"{{{said}}}")
    assert list(json.loads(lines.read_text())) == ["iris/1"]
    work = working(trusted_models=lines)
    assert await ended(client, work, "models:/iris/1", split(SETOSA)) == ("succeeded", "")
    assert await ended(client, work, "models:/iris/2", split(SETOSA)) == ("failed", "model_untrusted")


def test_any_change_of_the_files_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    found = {digest_of_files(tmp_path)}
    (tmp_path / "a").write_text("2")
    found.add(digest_of_files(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    found.add(digest_of_files(tmp_path))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "__init__.py").touch()
    found.add(digest_of_files(tmp_path))
    assert len(found) == 4


@pytest.mark.parametrize("text", ["", "[]", '{"iris/1": "sha256:0"}', '{"iris/1": 1}', "{"])
def test_a_file_of_trusted_models_that_cannot_be_used_stops_the_worker(tmp_path: Path, text: str) -> None:
    lines = tmp_path / "trusted.json"
    lines.write_text(text)
    with pytest.raises(NotConfigured, match="PYFUNQ_TRUSTED_MODELS"):
        read_trusted(lines)
    with pytest.raises(NotConfigured, match="PYFUNQ_TRUSTED_MODELS"):
        Trust(tmp_path / "nothing", allow_pickle=True)


@pytest.mark.parametrize(
    ("loader", "flavor", "is_data"),
    [
        ("mlflow.sklearn", {"serialization_format": "skops"}, True),
        ("mlflow.sklearn", {"serialization_format": "skops", "skops_trusted_types": ["os.system"]}, False),
        ("mlflow.sklearn", {"serialization_format": "cloudpickle"}, False),
        ("mlflow.sklearn", {}, False),
        ("mlflow.onnx", {}, True),
        ("mlflow.onnx", {"code": "code"}, False),
        ("mlflow.xgboost", {"model_class": "xgboost.sklearn.XGBClassifier"}, True),
        ("mlflow.xgboost", {"model_class": "os.system"}, False),
        ("mlflow.lightgbm", {"model_class": "lightgbm.basic.Booster"}, True),
        ("mlflow.lightgbm", {"model_class": "lightgbm.sklearn.LGBMClassifier"}, False),
        ("mlflow.pyfunc.model", {}, False),
        ("mlflow.pytorch", {}, False),
        ("burglar", {}, False),
    ],
)
def test_what_is_read_as_data(tmp_path: Path, loader: str, flavor: dict[str, Any], is_data: bool) -> None:
    flavors = {"python_function": {"loader_module": loader}, loader.removeprefix("mlflow."): flavor}
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors}))
    assert (what_it_runs(tmp_path) is None) == is_data
    if not is_data:
        with pytest.raises(ModelUntrusted, match="PYFUNQ_ALLOW_PICKLE"):
            Trust(None, allow_pickle=False).check(VERSION, tmp_path)
    (tmp_path / "MLmodel").write_text("flavors: 1")
    assert what_it_runs(tmp_path) is not None


async def test_a_model_that_is_data_is_loaded_and_predicts(
    client: AsyncClient, working: Working, register: RegisterModel, servers: Servers
) -> None:
    import pandas as pd
    from sklearn.linear_model import LinearRegression

    mlflow.set_tracking_uri(servers.mlflow)
    mlflow.set_experiment("tests plain")
    x = pd.DataFrame({"x": [1.0, 2.0, 3.0]})
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            sk_model=LinearRegression().fit(x, x["x"] * 2),
            name="model",
            registered_model_name="plain",
            serialization_format="skops",
            pip_requirements=[],
        )
    work = working(allow_pickle=False)
    assert await ended(client, work, "models:/plain/1", split([1.0], columns=["x"])) == ("succeeded", "")
