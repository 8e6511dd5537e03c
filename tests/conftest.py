"""Real servers: one PostgreSQL, Redis and MLflow a session, a fresh database and an empty Redis database a test."""

import asyncio
import compileall
import gc
import os
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from redis import Redis
from xdist.scheduler import LoadScopeScheduling

os.environ.update(
    {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "GIT_PYTHON_REFRESH": "quiet",
        # The session's MLflow server may tell servers of this machine of its changes, as soon as it is asked to.
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
)
for name in (
    "PYFUNQ_DATABASE_URL",
    "PYFUNQ_REDIS_URL",
    "MLFLOW_TRACKING_URI",
    "PYFUNQ_HOME",
    "PYFUNQ_ALLOWED_MODELS",
    "PYFUNQ_API_URL",
    "PYFUNQ_API_KEY",
):
    os.environ.pop(name, None)

from pyfunq.ledger import Ledger
from pyfunq.local import EmbeddedMLflow, EmbeddedPostgres, EmbeddedRedis, StateDirectory
from pyfunq.migrate import migrate
from pyfunq.settings import Settings

_ROOT = Path(__file__).parents[1]


class _FilesApart(LoadScopeScheduling):
    """With `-n`, a file's tests stay together, and so do all those that share one `pyfunq up`."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/acceptance" if file.startswith("tests/acceptance/") else file


def pytest_sessionstart(session: pytest.Session) -> None:
    """Hundreds of processes are started: where none may write bytecode, each would compile PyFunQ anew."""
    if not hasattr(session.config, "workerinput"):
        for package in ("pyfunq", "worker", "producer"):
            compileall.compile_dir(_ROOT / package, quiet=2)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _FilesApart(config, log)


@pytest.fixture(autouse=True, scope="module")
def _spared_by_the_collector() -> None:
    """A model's load collects garbage twice: all that tests before have imported would be read each time, 0.15 s."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Servers:
    """Addresses of the session's servers; `database` is a template with the ledger's tables."""

    home: Path
    database: str
    redis: str
    mlflow: str


def database_named(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    # Not pytest's tmp_path: PostgreSQL's own user could not reach it when the tests run as root.
    home = Path(tempfile.mkdtemp(prefix="pyfunq-tests-"))
    home.chmod(0o755)
    state = StateDirectory(home)
    with state.lock():
        embedded = (
            EmbeddedPostgres(state, {"fsync": "off", "max_connections": "300"}),
            EmbeddedRedis(state),
            EmbeddedMLflow(state),
        )
        with ThreadPoolExecutor(len(embedded)) as threads:
            database, redis, mlflow = threads.map(lambda server: server.start(), embedded)
        try:
            asyncio.run(migrate(database))
            yield Servers(home, database, redis, mlflow)
        finally:
            with ThreadPoolExecutor(len(embedded)) as threads:
                list(threads.map(lambda server: server.stop(), embedded))
    shutil.rmtree(home, ignore_errors=True)


_numbers = count(1)


@pytest.fixture
async def database_url(servers: Servers) -> AsyncIterator[str]:
    """A database of the test's own, copied from the template."""
    name = f"test_{next(_numbers)}"
    admin = database_named(servers.database, "postgres")
    template = urlsplit(servers.database).path.lstrip("/")
    connection = await asyncpg.connect(admin)
    await connection.execute(f'CREATE DATABASE {name} TEMPLATE "{template}"')
    await connection.close()
    yield database_named(servers.database, name)
    connection = await asyncpg.connect(admin)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """A Redis database that nobody else uses during the test."""
    url = urlunsplit(urlsplit(servers.redis)._replace(path="/5"))
    with Redis.from_url(url) as redis:
        redis.flushdb()
    return url


@pytest.fixture
def settings(servers: Servers, database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=database_url, redis_url=redis_url, mlflow_tracking_uri=servers.mlflow)


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    async with Ledger.open(database_url) as opened:
        yield opened


@contextmanager
def logging_to(tracking_uri: str, experiment: str = "tests") -> Iterator[None]:
    """MLflow's server and experiment meanwhile, without its warnings.

    MLflow keeps both for the process and for those that it starts: left behind, they reach other tests' servers.
    """
    import mlflow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(tracking_uri)
        try:
            mlflow.set_experiment(experiment)
            yield
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
            os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


@dataclass(frozen=True)
class RegisterModel:
    """Logs a model to the session's MLflow server and registers it; returns the version's number."""

    tracking_uri: str

    def __call__(self, name: str, model: Any, x: Any, *, alias: str | None = None, stage: str | None = None) -> int:
        import mlflow
        from mlflow.models import infer_signature

        client = mlflow.MlflowClient(self.tracking_uri)
        with logging_to(self.tracking_uri, f"tests {name}"):
            signature = None if x is None else infer_signature(x, model.predict(x) if hasattr(model, "fit") else None)
            log = mlflow.sklearn.log_model if hasattr(model, "fit") else mlflow.pyfunc.log_model
            kind = "sk_model" if hasattr(model, "fit") else "python_model"
            with mlflow.start_run():
                logged = log(
                    **{kind: model},
                    name="model",
                    signature=signature,
                    registered_model_name=name,
                    pip_requirements=[],
                    **({"serialization_format": "cloudpickle"} if hasattr(model, "fit") else {}),
                )
            version = int(logged.registered_model_version)
            if alias is not None:
                client.set_registered_model_alias(name, alias, str(version))
            if stage is not None:
                client.transition_model_version_stage(name, str(version), stage, archive_existing_versions=True)
        return version


@pytest.fixture(scope="session")
def register(servers: Servers) -> RegisterModel:
    return RegisterModel(servers.mlflow)


@pytest.fixture(scope="session")
def iris_model(register: RegisterModel) -> str:
    """`iris`: version 1 is Production and @first, version 2 is @champion."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    data = load_iris(as_frame=True)
    x = data.data.rename(columns=lambda c: c.removesuffix(" (cm)").replace(" ", "_"))
    register("iris", LogisticRegression(max_iter=500).fit(x, data.target), x, alias="first", stage="Production")
    register("iris", KNeighborsClassifier().fit(x, data.target), x, alias="champion")
    return "iris"


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Waits until a condition holds: `await eventually(what, condition, seconds)`; the condition may be async."""

    async def wait(what: str, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            held = condition()
            held = await held if asyncio.iscoroutine(held) else held
            if held:
                return held
            if loop.time() > deadline:
                pytest.fail(f"not within {seconds:g} s: {what}")
            await asyncio.sleep(0.02)

    return wait
