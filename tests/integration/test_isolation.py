"""Models in processes of their own: each runs the modules that it ships, and its process ends when it should."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow.models import infer_signature
from mlflow.pyfunc import PythonModel
from sklearn.linear_model import LogisticRegression

from pyfunq.client import AsyncClient, Client
from pyfunq.entries import ModelVersion
from pyfunq.errors import JobDead, ModelNotLoadable, TimedOut
from pyfunq.model_uri import parse_model_uri
from pyfunq.settings import Settings
from tests.conftest import Servers, logging_to
from tests.integration.conftest import Work, split
from tests.programs import start_worker, until
from worker.loading import LoadedModel, load
from worker.own_process import ModelCrashed, memory_of_models
from worker.process import WorkerProcess

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a model's process has no tests to import it from

X = pd.DataFrame({"x": [1.0, 2.0]})


class Shipped(PythonModel):
    """Answers by modules that it ships: one it imports at first, one only while it predicts."""

    def load_context(self, context: Any) -> None:
        import pricing

        self.pricing = pricing

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        from rates import late

        return self.pricing.times(model_input["x"].to_numpy()) + late.more()


class Moods(PythonModel):
    """Does what `what` says."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        import os
        import signal
        import subprocess
        import sys
        import time

        what = model_input["what"].iloc[0]
        if what == "kill":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "exit":
            sys.exit(3)
        if what == "close":
            os.closerange(3, 65536)
            time.sleep(600)
        if what == "hang":
            print("hanging", flush=True)
            time.sleep(600)
        if what == "away":
            raise ConnectionError("features.internal")
        if what == "busy":
            raise type("Busy", (Exception,), {"__module__": "store", "status_code": 503})("later")
        if what == "fail":
            raise KeyError(f"no {what} among {model_input['what'].tolist()}")
        if what == "own":
            return [object()] * len(model_input)
        if what == "child":
            return [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid] * len(model_input)
        return [os.getpid()] * len(model_input)


class Filters(PythonModel):
    """How many warning filters its process has."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        import warnings

        return [len(warnings.filters)] * len(model_input)


@pytest.fixture(scope="session")
def ships(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Registers a model that ships files: `ships(name, model, {path: text})`; returns the version's URI."""

    def register(name: str, model: Any, files: dict[str, str], **options: Any) -> str:
        place = tmp_path_factory.mktemp("code")
        for file, text in files.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text(text)
        with logging_to(servers.mlflow), mlflow.start_run():
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=model if model is not None else str(place / "model.py"),
                code_paths=[str(p) for p in sorted(place.iterdir())] if model is not None else None,
                registered_model_name=name,
                pip_requirements=[],
                **options,
            )
        return f"models:/{name}/{logged.registered_model_version}"

    return register


@pytest.fixture(scope="session")
def priced(ships: Callable[..., str]) -> list[str]:
    """Two versions with modules of the same names."""
    return [
        ships(
            "priced",
            Shipped(),
            {
                "pricing.py": f"def times(x): return x * {factor}\n",
                "rates/__init__.py": "",
                "rates/late.py": f"def more(): return {more}\n",
            },
        )
        for factor, more in ((2, 100), (3, 500))
    ]


@pytest.fixture(scope="session")
def moods(ships: Callable[..., str]) -> str:
    return ships("moods", Moods(), {"unused.py": ""})


@pytest.fixture(scope="session")
def files(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[ModelVersion, Path]]:
    """A registered version and its files."""

    def fetch(uri: str) -> tuple[ModelVersion, Path]:
        with logging_to(servers.mlflow):
            path = mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path_factory.mktemp("files")))
        _, name, number = uri.split("/")
        version = ModelVersion(name=name, version=number, created_ms=1, source=uri, run_id=None, experiment_id=None)
        return version, Path(path)

    return fetch


@pytest.fixture
def loaded(files: Callable[[str], tuple[ModelVersion, Path]], moods: str) -> Iterator[LoadedModel]:
    model = load(*files(moods))
    yield model
    model.close()
    assert not children()


def children(pid: int | None = None) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children() if is_a_models(child)]


def is_a_models(process: psutil.Process) -> bool:
    try:
        return any("model_program.py" in word for word in process.cmdline())
    except psutil.Error:
        return False


def asked(what: str, rows: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"what": [what] * rows})


async def test_two_versions_with_modules_of_one_name_each_give_their_own_answer(
    client: AsyncClient, work: Work, process: WorkerProcess, priced: list[str], iris_model: str
) -> None:
    modules, path = set(sys.modules), list(sys.path)
    for n in range(50):
        jobs = [await client.submit(uri, split([float(n)], columns=["x"])) for uri in priced]
        await work.all()
        assert [await client.result(job) for job in jobs] == [[2.0 * n + 100], [3.0 * n + 500]]
    assert sys.path == path
    assert not {"pricing", "rates", "rates.late"} & (set(sys.modules) - modules)
    assert len(children()) == 2
    process.models.close()
    assert not children()


def test_also_for_threads_that_call_at_once(process: WorkerProcess, priced: list[str]) -> None:
    versions = {uri: process.registry.resolve(parse_model_uri(uri)).version for uri in priced}

    def ask(n: int) -> Any:
        uri = priced[n % 2]
        with process.models.use(versions[uri]) as model:
            return model.predict(pd.DataFrame({"x": [float(n)]}), None).tolist()

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(200)))
    assert answers == [[3.0 * n + 500 if n % 2 else 2.0 * n + 100] for n in range(200)]
    assert len(children()) == 2, "one a version, for all threads"


@pytest.mark.thorough
def test_the_threads_pool_gives_each_version_its_answers_and_leaves_no_process_behind(
    settings: Settings, tmp_path: Path, priced: list[str]
) -> None:
    worker = start_worker(settings, tmp_path / "worker.log", threads=3)
    with Client(settings) as client:
        jobs = [(n, client.submit(priced[n % 2], split([float(n)], columns=["x"]))) for n in range(30)]
        for n, job in jobs:
            assert client.result(job, timeout=60) == [3.0 * n + 500 if n % 2 else 2.0 * n + 100]
    alive = children(worker.pid)
    assert len(alive) == 2
    os.kill(worker.pid, signal.SIGKILL)
    until("the models' processes end with the worker's", lambda: not any(map(psutil.pid_exists, alive)), 10)
    worker.process.wait(10)


def test_a_crash_costs_the_job_that_made_it_and_a_killed_worker_process_leaves_no_models_process_behind(
    settings: Settings, tmp_path: Path, moods: str
) -> None:
    worker = start_worker(settings, tmp_path / "worker.log", processes=1)
    with Client(settings) as client:
        (child,) = worker.children()
        bad, good = client.submit_many(moods, [split([what], columns=["what"]) for what in ("kill", "pid")])
        with pytest.raises(JobDead, match=r"the model's process ended \(signal 11\)"):
            client.result(bad, timeout=60)
        assert client.get(bad).crashes == 3
        assert client.result(good, timeout=60) != client.result(client.submit(moods, split(["pid"], columns=["what"])))
        assert client.get(good).crashes == 0
        assert worker.children() == [child], "it is the model's process that ended"
        client.submit(moods, split(["hang"], columns=["what"]))
        until("the model is called", lambda: "hanging" in worker.text())
        (model,) = children(child)
        os.kill(child, signal.SIGKILL)
        until("the model's process ends with the worker's", lambda: not psutil.pid_exists(model), 10)
        worker.kill()


def test_what_a_model_raises_is_told_from_what_is_away(loaded: LoadedModel) -> None:
    from worker.error_text import model_error_text
    from worker.transient import what_is_away

    def raised(what: str) -> Exception:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            loaded.predict(asked(what), None)
        return caught.value

    assert what_is_away(raised("away")) == "ConnectionError"
    assert what_is_away(raised("busy")) == "Busy, HTTP 503"
    failed = raised("fail")
    assert what_is_away(failed) is None
    assert model_error_text(failed, [("split", b'{"data":[["fail"]]}')]) == "KeyError: \"no … among ['…']\""
    assert loaded.own is not None
    assert loaded.predict(asked("pid"), None) == [loaded.own.pid], "it goes on after what it raised"


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("kill", r"ended \(signal 11\)"),
        ("exit", r"ended \(exit code 3\)"),
        ("close", "closed its connection and did not end"),
    ],
)
def test_a_process_that_ends_in_a_call_is_replaced_by_the_next(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, what: str, how: str
) -> None:
    if what == "close":
        monkeypatch.setattr("worker.own_process._EXIT_SECONDS", 0.5)
    (before,) = loaded.predict(asked("pid"), None)
    with pytest.raises(ModelCrashed, match=f"the model's process {how}") as crash:
        loaded.predict(asked(what), None)
    assert not crash.value.killed, "as one that uses too much memory"
    assert not children()
    (after,) = loaded.predict(asked("pid"), None)
    assert after != before


def test_a_call_that_takes_too_long_is_interrupted_and_its_process_replaced(
    process: WorkerProcess, loaded: LoadedModel
) -> None:
    from pyfunq.entries import ClaimedJob
    from pyfunq.ids import new_id

    job = ClaimedJob(new_id(), 1, "models:/moods/1", "bulk", 1, "split", b"", None, None, False, timeout_seconds=0.5)
    (before,) = loaded.predict(asked("pid"), None)
    begun = time.monotonic()
    with pytest.raises(TimedOut, match=r"timed out after 0\.5 s"):
        process.call([job], lambda: loaded.predict(asked("hang"), None))
    assert time.monotonic() - begun < 15
    assert not psutil.pid_exists(before)
    assert loaded.predict(asked("pid"), None) != [before]


def test_what_the_model_started_ends_with_its_process(loaded: LoadedModel) -> None:
    (grandchild,) = loaded.predict(asked("child"), None)
    loaded.close()
    until("it is gone", lambda: not is_running(grandchild), 5)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_forgotten_model_takes_its_process_along(files: Callable[..., Any], moods: str) -> None:
    model = load(*files(moods))
    assert len(children()) == 1
    assert model.size_bytes > 50e6, "memory, not files"
    assert memory_of_models() > 50e6
    del model
    assert not children()
    assert memory_of_models() == 0


def test_a_model_from_code_runs_apart_as_well(ships: Callable[..., str], files: Callable[..., Any]) -> None:
    text = (
        "import mlflow, pandas\n"
        "class Doubling(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input: pandas.DataFrame, params=None):\n"
        "        return model_input['x'] * 2\n"
        "mlflow.models.set_model(Doubling())\n"
    )
    model = load(*files(ships("from_code", None, {"model.py": text})))
    assert model.predict(X, None).tolist() == [2.0, 4.0]
    assert len(children()) == 1
    model.close()


def test_probabilities_and_answers_are_those_of_this_process(files: Callable[..., Any], tmp_path: Path) -> None:
    x = pd.DataFrame(np.random.default_rng(1).normal(size=(50, 3)), columns=list("abc"))
    fitted = LogisticRegression().fit(x, x["a"] + x["b"] > 0)
    (tmp_path / "helper.py").write_text("")
    results = {}
    for place, code in (("here", None), ("apart", [str(tmp_path / "helper.py")])):
        path = tmp_path / place
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signature = infer_signature(x, fitted.predict(x))
            options: Any = {"code_paths": code, "serialization_format": "cloudpickle", "pip_requirements": []}
            mlflow.sklearn.save_model(fitted, path, signature=signature, **options)
        version = ModelVersion(name=place, version="1", created_ms=1, source="", run_id=None, experiment_id=None)
        model = load(version, path)
        assert model.predict_proba is not None
        results[place] = (model.signature, model.predict(x, None), model.predict_proba(x), model.own is None)
        model.close()
    assert results["here"][3]
    assert not results["apart"][3]
    assert results["here"][0] == results["apart"][0]
    for one, other in zip(results["here"][1:3], results["apart"][1:3], strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


def test_a_module_that_is_missing_is_named_by_the_requirement_that_brings_it(
    ships: Callable[..., str], files: Callable[..., Any]
) -> None:
    version, path = files(ships("lacking", Shipped(), {"pricing.py": "import xgboost_lib\n"}))
    for requirements, says in (
        ("", "lacking/1 needs the module 'xgboost_lib', which is not installed here"),
        ("xgboost-lib==3.1\n", "lacking/1 needs xgboost-lib==3.1, not installed here: install it, or set PYFUNQ_MODEL"),
    ):
        (path / "requirements.txt").write_text(requirements)
        with pytest.raises(ModelNotLoadable, match=says):
            load(version, path)
    assert not children()


def test_a_process_that_ends_while_it_loads_is_a_model_that_cannot_be_loaded(
    ships: Callable[..., str], files: Callable[..., Any]
) -> None:
    with pytest.raises(ModelNotLoadable, match=r"cannot be loaded: the model's process ended \(exit code 7\)"):
        load(*files(ships("ending", Shipped(), {"pricing.py": "import os\nos._exit(7)\n"})))
    assert not children()


@pytest.mark.thorough
def test_whoever_predicts_keeps_few_warning_filters(
    settings: Settings, tmp_path: Path, ships: Callable[..., str]
) -> None:
    """A forest sets them all again for each of its trees."""
    worker = start_worker(settings, tmp_path / "worker.log", processes=1)
    here, alone = ships("filters", Filters(), {"data/any.txt": ""}), ships("filters", Filters(), {"shipped.py": ""})
    with Client(settings) as client:
        found = [client.result(client.submit(uri, split([1.0], columns=["x"])), timeout=60) for uri in (here, alone)]
    worker.stop()
    assert found == [[1], [1]]
