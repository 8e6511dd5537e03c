"""Environments of models' own, made by real installers, without a network: small wheels stand for the large ones."""

import asyncio
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import pytest
import yaml

from pyfunq.client import AsyncClient
from pyfunq.entries import ModelVersion
from pyfunq.errors import JobFailed, ModelNotLoadable
from pyfunq.job import JobStatus
from pyfunq.settings import Settings
from tests.conftest import Servers, logging_to
from tests.integration.conftest import split
from tests.programs import until
from worker.loading import load
from worker.model_envs import EnvironmentNotReady, Environments, missing_requirements
from worker.page_run import run_page
from worker.process import WorkerProcess

VERSION = ModelVersion(name="own", version="1", created_ms=1, source="", run_id=None, experiment_id=None)
X = pd.DataFrame({"x": [1.0, 2.0]})
LOADER = """
import tinydep
class Model:
    def predict(self, frame):
        import sys
        return [tinydep.VERSION, sys.prefix]
def _load_pyfunc(path):
    return Model()
"""


def wheel(place: Path, name: str, version: str, files: dict[str, str]) -> None:
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(place / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text)}\n"
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an index would have; MLflow, pandas and pyarrow are this environment's, by a line in a .pth file."""
    place = tmp_path_factory.mktemp("wheels")
    here = str(Path(mlflow.__file__).parents[1])
    for name in ("mlflow", "mlflow_skinny"):
        wheel(place, name, mlflow.__version__, {f"{name}_of_tests.pth": here + "\n"})
    for name in ("pandas", "pyarrow"):
        wheel(place, name, "1.0", {f"{name}_stands_here.txt": ""})
    for version in ("1.0", "2.0", "3.0"):
        wheel(place, "tinydep", version, {"tinydep.py": f"VERSION = {version!r}\n"})
    return place


@pytest.fixture(autouse=True)
def _index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(wheels))
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.delenv(f"{tool}_CONSTRAINT", raising=False)  # of this environment, not of a model's


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """A model's files, with these requirements."""

    def make(*requirements: str, python: str = "{}.{}.0".format(*sys.version_info[:2])) -> Path:
        place = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        (place / "code").mkdir(parents=True)
        (place / "code" / "own_loader.py").write_text(LOADER)
        flavor = {"loader_module": "own_loader", "code": "code", "python_version": python}
        (place / "MLmodel").write_text(yaml.safe_dump({"flavors": {"python_function": flavor}, "model_uuid": "u"}))
        (place / "requirements.txt").write_text("\n".join(requirements) + "\n")
        return place

    return make


def environments(tmp_path: Path, **options: Any) -> Environments:
    return Environments(tmp_path / "envs", **{"max_bytes": 2**40, "patience_seconds": 120.0, **options})


def kept(tmp_path: Path) -> list[str]:
    return sorted(marker.parent.name for marker in (tmp_path / "envs").glob("*/pyfunq-environment.json"))


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_a_model_has_the_versions_that_it_asks_for(
    tmp_path: Path, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    if tool == "uv" and shutil.which("uv") is None:
        pytest.skip("uv is not on PATH")
    if tool == "pip":
        monkeypatch.setattr("worker.model_envs.shutil.which", lambda name: None)
    made = environments(tmp_path)
    path = model("tinydep==2.0", "tinydep>1", 'nothing==9; python_version < "3"')
    assert [one.requirement for one in missing_requirements(path)] == ["tinydep==2.0", "tinydep>1"]
    with ThreadPoolExecutor(3) as threads:  # as if several processes asked
        one, *others = threads.map(lambda e: load(VERSION, path, e), [made, made, environments(tmp_path)])
    (key,) = kept(tmp_path)
    assert one.predict(X, None) == ["2.0", str(tmp_path / "envs" / key)]
    for other in others:
        assert other.predict(X, None) == one.predict(X, None)
    assert "tinydep" not in sys.modules
    for each in (one, *others):
        each.close()


def test_a_model_whose_requirements_are_met_stays_in_the_workers_environment(
    tmp_path: Path, model: Callable[..., Path]
) -> None:
    major, minor, *_ = mlflow.__version__.split(".")
    path = model("packaging>=20", f"mlflow=={major}.{int(minor) - 1}.0")
    assert missing_requirements(path) == [], "of MLflow the major version counts"
    assert environments(tmp_path).interpreter_for(VERSION, path, None) is None
    assert [str(one) for one in missing_requirements(model("mlflow==1.0"))] == [
        f"mlflow==1.0 (installed: {mlflow.__version__})"
    ]


def test_what_cannot_be_installed_fails_with_the_installers_words_and_no_password(
    tmp_path: Path, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "0")
        monkeypatch.setenv(f"{tool}_INDEX_URL", "http://user:hunter2@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(ModelNotLoadable, match=r"the environment of own/1 cannot be made: .*tinydep") as caught:
        load(VERSION, model("tinydep==99"), environments(tmp_path))
    assert "hunter2" not in str(caught.value)
    assert kept(tmp_path) == []
    assert not [p for p in (tmp_path / "envs").iterdir() if p.is_dir()]


def test_who_asks_does_not_wait_for_long_and_a_making_has_its_limit(
    tmp_path: Path, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    real = subprocess.Popen

    def slow(*args: Any, **options: Any) -> Any:
        go_on.wait(60)
        return real(*args, **options)

    monkeypatch.setattr("worker.model_envs.subprocess.Popen", slow)
    path, made = model("tinydep==1.0"), environments(tmp_path, patience_seconds=0.05)
    with pytest.raises(EnvironmentNotReady) as caught:
        load(VERSION, path, made)
    assert caught.value.retryable
    go_on.set()
    until("it is made", lambda: kept(tmp_path), 60)
    loaded = load(VERSION, path, made)
    assert loaded.predict(X, None)[0] == "1.0"
    loaded.close()
    hasty = Environments(tmp_path / "others", max_bytes=2**40, making_seconds=0.0)
    with pytest.raises(ModelNotLoadable, match="it took too long"):
        load(VERSION, path, hasty)


def test_the_disk_is_bounded_but_what_is_used_stays(tmp_path: Path, model: Callable[..., Path]) -> None:
    made = environments(tmp_path, max_bytes=1)
    first = load(VERSION, model("tinydep==1.0"), made)
    (kept_first,) = kept(tmp_path)
    second = load(VERSION, model("tinydep==2.0"), made)
    assert len(kept(tmp_path)) == 2, "both are in use"
    second.close()
    third = load(VERSION, model("tinydep==3.0"), made)
    assert kept_first in kept(tmp_path)
    assert len(kept(tmp_path)) == 2, "the one that nobody uses is gone"
    assert first.own is not None
    assert first.own.pid is not None
    os.kill(first.own.pid, 9)
    psutil.wait_procs([psutil.Process(first.own.pid)], 5)
    with pytest.raises(Exception, match="the model's process ended"):
        first.predict(X, None)
    assert first.predict(X, None)[0] == "1.0"
    first.close()
    third.close()


def test_a_python_that_is_not_here_is_replaced_by_the_workers_with_a_warning(
    tmp_path: Path, model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = model("tinydep==1.0", python="3.5.1")
    loaded = load(VERSION, path, environments(tmp_path))
    assert loaded.predict(X, None)[0] == "1.0"
    assert "own/1 was made with Python 3.5, which uv does not find here" in caplog.text
    loaded.close()


async def test_a_worker_that_lacks_a_module_says_so_or_makes_an_environment(
    settings: Settings, client: AsyncClient, servers: Servers, model: Callable[..., Path]
) -> None:
    with logging_to(servers.mlflow), mlflow.start_run():
        code = model() / "code" / "own_loader.py"
        options: Any = {"code_paths": [str(code)], "pip_requirements": ["tinydep==2.0"]}
        mlflow.pyfunc.log_model(name="m", loader_module="own_loader", registered_model_name="needy", **options)
    for envs, status in (("off", JobStatus.FAILED), ("auto", JobStatus.SUCCEEDED)):
        job = await client.submit("models:/needy/1", split([1.0], columns=["x"]))
        process = WorkerProcess(settings.model_copy(update={"model_envs": envs}))
        try:
            await asyncio.to_thread(run_page, process, job.id)
        finally:
            process.close()
        done = await client.get(job)
        assert done.status is status
        if status is JobStatus.FAILED:
            with pytest.raises(JobFailed, match=r"needs tinydep==2\.0, not installed here: .* PYFUNQ_MODEL_ENVS=auto"):
                await client.result(job)
        else:
            version, prefix = await client.result(job)
            assert version == "2.0"
            assert prefix.startswith(str(settings.home / "envs"))
