"""The MLflow registry as the commands see it: what it holds, where a model's files are; errors name what exists."""

import difflib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pyfunq import errors
from pyfunq.model_uri import ModelURI
from pyfunq.settings import Settings

STAGES = ("Staging", "Production", "Archived", "None")
_PAGE = 1000
_SHOWN = 10
_OBJECT_STORES = frozenset({"s3", "r2", "b2", "gs", "wasbs", "abfss", "hdfs", "viewfs"})
_QUICK = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of a registered model."""

    version: int
    stage: str
    aliases: tuple[str, ...]
    status: str
    created: datetime
    run_id: str | None

    def __str__(self) -> str:
        marks = [*([] if self.stage == "None" else [self.stage]), *(f"@{alias}" for alias in self.aliases)]
        return f"{self.version} ({', '.join(marks)})" if marks else str(self.version)


@contextmanager
def registry(settings: Settings) -> Iterator[Any]:
    """An MlflowClient; what it raises becomes PyFunQ's errors. Raises NotConfigured where MLflow is not installed."""
    for name, value in _QUICK.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException, RestException
    except ImportError:
        raise errors.NotConfigured("this command needs MLflow; install pyfunq[worker]") from None
    try:
        yield MlflowClient(tracking_uri=settings.mlflow, registry_uri=settings.mlflow)
    except MlflowException as exc:
        if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise errors.ModelNotFound(_first_line(exc)) from exc
        if exc.error_code == "INVALID_PARAMETER_VALUE":
            raise errors.InvalidInput(_first_line(exc)) from exc
        if isinstance(exc, RestException):
            raise errors.RegistryUnavailable(f"the MLflow server answered {exc.error_code}") from exc
        raise errors.RegistryUnavailable from exc


def all_models(client: Any) -> list[Any]:
    return list(_pages(client.search_registered_models))


def model_named(client: Any, name: str) -> Any:
    """The registered model. Raises ModelNotFound with names that are like it."""
    found = _if_there(client.get_registered_model, name)
    if found is None:
        raise errors.ModelNotFound(f"no registered model named {name!r}; {_near(name, client)}")
    return found


def versions_of(client: Any, model: Any) -> list[Version]:
    """Newest first."""
    quote = "'" if "'" not in model.name else '"'
    found = _pages(lambda **page: client.search_model_versions(f"name = {quote}{model.name}{quote}", **page))
    return sorted((_version(v, model.aliases) for v in found), key=lambda v: -v.version)


def version_numbered(client: Any, model: Any, number: int) -> Version:
    """Raises ModelNotFound with the versions that exist."""
    found = _if_there(client.get_model_version, model.name, str(number))
    if found is None:
        raise errors.ModelNotFound(f"model {model.name!r} has no version {number}; {_what_exists(client, model)}")
    return _version(found, model.aliases)


def version_meant(client: Any, model: Any, uri: ModelURI) -> int:
    """The version that a URI of the model stands for. Raises ModelNotFound with what exists instead."""
    match uri.kind:
        case "version":
            return version_numbered(client, model, uri.version or 0).version
        case "alias":
            meant = holder(model, alias=uri.alias)
        case "stage":
            meant = holder(model, stage=uri.stage)
        case _:
            meant = max((int(v.version) for v in model.latest_versions or ()), default=None)
    if meant is None:
        raise errors.ModelNotFound(f"{uri} stands for nothing; model {model.name!r}: {_what_exists(client, model)}")
    return meant


def holder(model: Any, *, alias: str | None = None, stage: str | None = None) -> int | None:
    """The version that has an alias, or the highest one in a stage."""
    if alias is not None:
        return int(model.aliases[alias]) if alias in model.aliases else None
    return max((int(v.version) for v in model.latest_versions or () if v.current_stage == stage), default=None)


class ModelFiles:
    """The files of a version, each fetched when it is asked for, in a directory that is removed afterwards."""

    def __init__(self, title: str, repository: Any, directory: Path) -> None:
        self._title = title
        self._repository = repository
        self.directory = directory

    def size(self, name: str) -> int | None:
        """In bytes; None where there is no such file at the top."""
        listed = self._ask(self._repository.list_artifacts, "")
        sizes = {PurePosixPath(f.path).name: f.file_size for f in listed if not f.is_dir}
        return None if name not in sizes else int(sizes[name] or 0)

    def fetch(self, *names: str) -> list[Path]:
        """Those of the named files that exist."""
        there = {PurePosixPath(f.path).name for f in self._ask(self._repository.list_artifacts, "") if not f.is_dir}
        return [self._fetch(name) for name in names if name in there]

    def fetch_all(self) -> Path:
        """The directory with every file."""
        into = self.directory / "all"
        into.mkdir()
        return Path(self._ask(self._repository.download_artifacts, "", dst_path=str(into)))

    def _fetch(self, name: str) -> Path:
        came = Path(self._ask(self._repository.download_artifacts, name, dst_path=str(self.directory)))
        return came.rename(self.directory / name)  # of a run, it comes in a directory of its own

    def _ask(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as exc:  # each artifact store has errors of its own
            raise errors.RegistryUnavailable(
                f"the files of {self._title} cannot be read ({type(exc).__name__})"
            ) from exc


@contextmanager
def files_of(client: Any, settings: Settings, uri: ModelURI) -> Iterator[ModelFiles]:
    """The files of what a URI stands for. Raises ModelNotFound, RegistryUnavailable, ModelNotLoadable."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = _location(client, uri)
    if place.startswith("models:/"):  # a repository for it would ask the server of the environment, not this one
        place = client.get_logged_model(place.removeprefix("models:/")).artifact_location
    run = place.removeprefix("runs:/").partition("/")[0] if place.startswith("runs:/") else None
    if not is_trusted(client.get_run(run).info.artifact_uri if run else place, settings.mlflow):
        # Not the place: it can hold a password.
        raise errors.ModelNotLoadable(f"the files of {uri} lie neither with the MLflow server nor in an object store")
    repository = get_artifact_repository(place, tracking_uri=settings.mlflow, registry_uri=settings.mlflow)
    with tempfile.TemporaryDirectory(prefix="pyfunq-") as directory:
        yield ModelFiles(str(uri), repository, Path(directory))


def is_trusted(place: str, server: str) -> bool:
    """Whether files are fetched from there: MLflow sends its credentials to whatever host such an address names."""
    parts = urlsplit(place)
    if parts.scheme == "mlflow-artifacts":
        return parts.netloc in ("", urlsplit(server).netloc)
    if parts.scheme in ("http", "https"):
        return place.startswith(f"{server.rstrip('/')}/api/2.0/mlflow-artifacts/artifacts/")
    return parts.scheme in _OBJECT_STORES


def _location(client: Any, uri: ModelURI) -> str:
    if uri.kind in ("model_id", "run"):
        return str(uri)
    model = model_named(client, str(uri.name))
    return str(client.get_model_version_download_uri(model.name, str(version_meant(client, model, uri))))


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _if_there(method: Callable[..., Any], *args: Any) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return method(*args)
    except MlflowException as exc:
        if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _version(found: Any, aliases: dict[str, Any]) -> Version:
    return Version(
        version=int(found.version),
        stage=found.current_stage or "None",
        aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(found.version))),
        status=found.status,
        created=datetime.fromtimestamp(int(found.creation_timestamp) / 1000, UTC),
        run_id=found.run_id or None,
    )


def _near(name: str, client: Any) -> str:
    names = sorted(m.name for m in all_models(client))
    lower = {n.lower(): n for n in names}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"the registry has {_listed(names)}" if names else "the registry has none"


def _what_exists(client: Any, model: Any) -> str:
    found = versions_of(client, model)
    return f"its versions: {_listed([str(v) for v in found])}" if found else "it has no version yet"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [""])[0][:300]
