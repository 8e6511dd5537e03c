"""Where a version's files come from, and that they came whole: a real MLflow server behind a proxy that misbehaves."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import mlflow
import orjson
import pytest
from mlflow import MlflowClient

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotFound, ModelNotLoadable, RegistryUnavailable
from tests.conftest import Servers, logging_to
from tests.integration.conftest import Moody
from tests.integration.mlflow_proxy import Proxy
from worker.artifacts import ArtifactStore
from worker.loading import load

MANY = 1 << 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def _cut(wanted: str, size: int | None) -> Callable[[str, bytes], bytes]:
    return lambda name, body: body[:size] if name == wanted else body


def _hang_up(files: list[Any]) -> list[Any]:
    raise ConnectionError


@pytest.mark.parametrize(
    ("change_body", "change_listing", "says"),
    [
        (_cut("python_model.pkl", 100), None, r"'python_model.pkl' of shelf/1 came with 100 bytes .* listed with \d+"),
        (_cut("MLmodel", 0), None, r"'MLmodel' of shelf/1 came with 0 bytes and is listed with \d+"),
        (lambda name, body: b"\x00" * len(body), None, r"the MLmodel of shelf/1, \d+ bytes, cannot be read"),
        (lambda name, body: b"<" * len(body), None, r"the MLmodel of shelf/1, \d+ bytes, cannot be read"),
        (None, lambda files: [], "the registry lists no files for shelf/1"),
        (None, "sizes other", r"'MLmodel' of shelf/1 came with \d+ bytes and is listed with 7"),
        (None, "once one less", "the file 'python_env.yaml' of shelf/1 was not listed"),
        (None, "once one more", "the file 'gone.bin' of shelf/1 is listed and was not sent"),
        (None, _hang_up, "the files of shelf/1 cannot be listed"),
    ],
)
def test_files_that_are_not_as_listed_are_refused_and_nothing_is_left(
    root: Path,
    proxy: Proxy,
    versions: list[ModelVersion],
    change_body: Any,
    change_listing: Any,
    says: str,
) -> None:
    listings = count(1)
    changes: dict[Any, Callable[[list[Any]], list[Any]]] = {
        "sizes other": lambda files: [f | {"file_size": 7} if f["path"] == "MLmodel" else f for f in files],
        "once one less": lambda files: (
            [f for f in files if f["path"] != "python_env.yaml"] if next(listings) == 1 else files
        ),
        "once one more": lambda files: (
            [*files, {"path": "gone.bin", "is_dir": False, "file_size": 3}] if next(listings) == 1 else files
        ),
    }
    proxy.change_body = change_body or proxy.change_body
    proxy.change_listing = changes.get(change_listing, change_listing) or proxy.change_listing
    store = ArtifactStore(root, proxy.uri, max_bytes=MANY)
    with pytest.raises(RegistryUnavailable, match=says) as raised:
        store.open(versions[0])
    assert raised.value.retryable
    assert not list(root.iterdir())
    proxy.change_body, proxy.change_listing = lambda name, body: body, lambda files: files
    with store.open(versions[0]) as files:
        assert load(versions[0], files.path).metadata


def test_a_directory_without_a_model_fails_for_good(root: Path, proxy: Proxy, versions: list[ModelVersion]) -> None:
    proxy.change_listing = lambda files: [f for f in files if f["path"] != "MLmodel"]
    with pytest.raises(ModelNotLoadable, match="the files of shelf/1 hold no MLmodel"):
        ArtifactStore(root, proxy.uri, max_bytes=MANY).open(versions[0])
    assert not list(root.iterdir())


def test_a_model_that_was_deleted_and_made_again_is_not_kept_under_the_old_name(
    root: Path,
    servers: Servers,
    create_version: Callable[[str, str], None],
    versions: list[ModelVersion],
    iris_model: str,
    resolve: Callable[[str], ModelVersion],
) -> None:
    client = MlflowClient(servers.mlflow, servers.mlflow)
    client.create_registered_model("remade")
    create_version("remade", versions[0].source)
    old = resolve("models:/remade/1")
    client.delete_registered_model("remade")
    store = ArtifactStore(root, servers.mlflow, max_bytes=MANY)
    with pytest.raises(ModelNotFound, match="the registry has no remade/1 any more"):
        store.open(old)
    client.create_registered_model("remade")
    create_version("remade", resolve("models:/iris/1").source)
    with pytest.raises(RegistryUnavailable, match="remade/1 was registered anew, and is another model now"):
        store.open(old)
    assert not list(root.iterdir())
    new = resolve("models:/remade/1")
    assert new.identity != old.identity
    with store.open(new) as files:
        assert "sklearn" in (files.path / "MLmodel").read_text()


def test_models_of_runs_and_logged_models_are_fetched_with_their_directories(
    root: Path, proxy: Proxy, servers: Servers, tmp_path: Path, resolve: Callable[[str], ModelVersion]
) -> None:
    code = tmp_path / "code" / "shipped_with_it"
    code.mkdir(parents=True)
    (code / "__init__.py").touch()
    with logging_to(servers.mlflow), mlflow.start_run() as run:
        logged = mlflow.pyfunc.log_model(
            name="model", python_model=Moody(), code_paths=[str(code)], pip_requirements=[]
        )
        local = tmp_path / "saved"
        mlflow.pyfunc.save_model(str(local), python_model=Moody(), pip_requirements=[])
        mlflow.log_artifacts(str(local), "7")
        mlflow.log_artifacts(str(local), "below/it")
    uris = (f"models:/{logged.model_id}", *(f"runs:/{run.info.run_id}/{path}" for path in ("model", "7", "below/it")))
    store = ArtifactStore(root, proxy.uri, max_bytes=MANY)
    for uri in uris:
        proxy.forget()
        with store.open(resolve(uri)) as files:
            found = {f.relative_to(files.path).as_posix() for f in files.path.rglob("*") if f.is_file()}
            assert ("code/shipped_with_it/__init__.py" in found) == uri.endswith(("model", logged.model_id)), uri
            assert set(proxy.downloads.values()) == {1}
            assert load(resolve(uri), files.path).metadata
        assert proxy.calls <= 3
    assert len(list(root.iterdir())) == 4


@pytest.fixture
def elsewhere(servers: Servers) -> Iterator[Proxy]:
    """Another server that has the files too."""
    proxy = Proxy(servers.mlflow)
    yield proxy
    proxy.close()


@pytest.mark.parametrize(
    "place",
    [
        "http://{elsewhere}/api/2.0/mlflow-artifacts/artifacts/{path}",
        "mlflow-artifacts://{elsewhere}/{path}",
        "ftp://{elsewhere}/{path}",
        "file:///{path}",
        "/{path}",
    ],
)
def test_no_other_host_and_no_local_file_is_asked(
    root: Path, proxy: Proxy, elsewhere: Proxy, versions: list[ModelVersion], place: str
) -> None:
    host = f"user:secret@{elsewhere.uri.removeprefix('http://')}"

    def change(path: str, body: bytes) -> bytes:
        if "/get-download-uri" not in path:
            return body
        path = orjson.loads(body)["artifact_uri"].removeprefix("mlflow-artifacts:/")
        return orjson.dumps({"artifact_uri": place.format(elsewhere=host, path=path)})

    proxy.change_answer = change
    with pytest.raises(ModelNotLoadable, match="neither itself nor in an object store") as raised:
        ArtifactStore(root, proxy.uri, max_bytes=MANY).open(versions[0])
    assert "secret" not in str(raised.value)
    assert proxy.listings == elsewhere.listings == elsewhere.calls == 0
    assert not list(root.iterdir())
