"""A worker process, a client and models, for tests in one process on real servers."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
from kombu.asynchronous import Hub, set_event_loop
from mlflow import MlflowClient
from mlflow.pyfunc import PythonModel

from pyfunq.client import AsyncClient
from pyfunq.entries import ModelVersion
from pyfunq.ids import new_id
from pyfunq.job import JobStatus, Lane
from pyfunq.lanes import queues_of
from pyfunq.ledger import Ledger
from pyfunq.model_uri import parse_model_uri
from pyfunq.settings import Settings
from tests.conftest import RegisterModel, Servers
from tests.integration.mlflow_proxy import Proxy
from worker.page_run import run_page
from worker.process import WorkerProcess
from worker.registry import Registry

IRIS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
SETOSA, VIRGINICA = [5.1, 3.5, 1.4, 0.2], [6.3, 2.9, 5.6, 1.8]


def hear_ctrl_c() -> None:
    """For a child process: what a shell starts in the background, these tests perhaps, is deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def split(*rows: list[Any], columns: list[str] = IRIS) -> dict[str, Any]:
    return {"dataframe_split": {"columns": columns, "data": list(rows)}}


@pytest.fixture
def hub() -> Iterator[Hub]:
    """kombu's event loop, as a worker has one."""
    hub = Hub()
    set_event_loop(hub)
    yield hub
    set_event_loop(None)
    hub.close()


@pytest.fixture
def process(settings: Settings) -> Iterator[WorkerProcess]:
    process = WorkerProcess(settings)
    yield process
    process.close()


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(settings) as opened:
        yield opened


@dataclass
class Work:
    """Plays the Celery worker: takes what is queued, page by page."""

    process: WorkerProcess
    ledger: Ledger

    async def all(self) -> None:
        for job in await self.ledger.list_jobs(status=JobStatus.QUEUED, limit=1000):
            # A page of one job has the job's id; others are found as a restarted queue would find them.
            await asyncio.to_thread(run_page, self.process, job.id)
        now = {queue: new_id() for lane in Lane for queue in queues_of(lane)}
        for page in await self.ledger.pages_without_message(now):
            await asyncio.to_thread(run_page, self.process, page)


@pytest.fixture
def work(process: WorkerProcess, ledger: Ledger) -> Work:
    return Work(process, ledger)


class Moody(PythonModel):
    """Fails on x == 13, answers too few rows on x == 14, finds its features away on x == 15: 2x otherwise."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        if (model_input["x"] == 13).any():
            raise ValueError(f"unlucky row {model_input['x'].tolist()}")
        if (model_input["x"] == 15).any():
            raise ConnectionError("features.internal")
        if (model_input["x"] == 14).any():
            return (model_input["x"] * 2).to_numpy()[:-1]
        return (model_input["x"] * 2).to_numpy()


@pytest.fixture(scope="session")
def moody_model(register: RegisterModel) -> str:
    register("moody", Moody(), None)
    return "models:/moody/1"


@pytest.fixture
def proxy(servers: Servers) -> Iterator[Proxy]:
    """Before the session's MLflow server."""
    proxy = Proxy(servers.mlflow)
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def resolve(servers: Servers) -> Callable[[str], ModelVersion]:
    registry = Registry(servers.mlflow)
    return lambda uri: registry.resolve(parse_model_uri(uri)).version


@pytest.fixture(scope="session")
def create_version(servers: Servers) -> Callable[[str, str], None]:
    """Makes another version, with the files of a logged model: `create_version(name, "models:/m-...")`."""
    client = MlflowClient(servers.mlflow, servers.mlflow)
    return lambda name, source: client.create_model_version(name, source, model_id=source.removeprefix("models:/"))


@pytest.fixture(scope="session")
def versions(
    servers: Servers,
    moody_model: str,
    resolve: Callable[[str], ModelVersion],
    create_version: Callable[[str, str], None],
) -> list[ModelVersion]:
    """Twelve versions of the model `shelf`, a real one, which all have the same files."""
    source = resolve(moody_model).source
    MlflowClient(servers.mlflow, servers.mlflow).create_registered_model("shelf")
    for _ in range(12):
        create_version("shelf", source)
    return [resolve(f"models:/shelf/{n}") for n in range(1, 13)]
