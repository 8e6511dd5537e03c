"""From the MLflow server to files: where a version's files are, how large each is, and fetching them whole."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotFound, ModelNotLoadable, RegistryUnavailable

_MODEL_FILE = "MLmodel"
_OBJECT_STORES = frozenset({"s3", "r2", "b2", "gs", "wasbs", "abfss", "hdfs", "viewfs"})
"""Where an MLflow server without an artifact proxy may keep files; its operator gives the worker credentials for it."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Listing:
    """A version's files as the registry lists them: bytes by path, None where the store does not say."""

    repository: Any
    path: str
    """The place of the version's directory below the repository's root."""
    sizes: Mapping[str, int | None]

    @property
    def size_bytes(self) -> int:
        return sum(size or 0 for size in self.sizes.values())


class Downloads:
    """Asks the one MLflow server where a version's files are; a version's `source` is never followed itself.

    Raises RegistryUnavailable where another try may help, ModelNotFound where the registry has no such version any
    more, ModelNotLoadable where what it has is no model or lies where workers do not go.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._tracking_uri = tracking_uri
        self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

    def find(self, version: ModelVersion) -> Listing:
        """One or two calls for the place, and one for each directory."""
        with _asking(version):
            repository, path = self._place(version)
        try:
            sizes = _sizes(repository, path)
        except Exception as exc:  # each kind of store has errors of its own
            raise RegistryUnavailable(f"the files of {version} cannot be listed ({type(exc).__name__})") from exc
        if not sizes:
            raise RegistryUnavailable(f"the registry lists no files for {version}")
        if _MODEL_FILE not in sizes:
            raise ModelNotLoadable(f"the files of {version} hold no {_MODEL_FILE}")
        return Listing(repository, path, sizes)

    def fetch(self, version: ModelVersion, listing: Listing, into: Path) -> tuple[Path, dict[str, int]]:
        """The version's directory, somewhere below `into`, and bytes by path; all that was listed, and as listed."""
        try:
            root = Path(listing.repository.download_artifacts(listing.path, dst_path=str(into)))
        except Exception as exc:  # as above
            why = "this host's disk is full" if is_full(exc) else type(exc).__name__
            raise RegistryUnavailable(f"the files of {version} cannot be downloaded ({why})") from exc
        got = {f.relative_to(root).as_posix(): f.stat().st_size for f in root.rglob("*") if f.is_file()}
        _compare(version, listing.sizes, got)
        _check_model_file(version, root / _MODEL_FILE)
        return root, got

    def _place(self, version: ModelVersion) -> tuple[Any, str]:
        if version.name.startswith("runs:/"):
            return self._place_in_run(version, version.name.removeprefix("runs:/"), version.version)
        if not version.version.isdigit():
            return self._logged_model(version, version.version, version.created_ms), ""
        # In this order: a version that still is what it was had this place.
        uri = self._client.get_model_version_download_uri(version.name, version.version)
        found = self._client.get_model_version(version.name, version.version)
        if (int(found.creation_timestamp), found.source) != (version.created_ms, version.source):
            raise RegistryUnavailable(f"{version} was registered anew, and is another model now")
        parts = urlsplit(uri)
        if parts.scheme == "runs":
            run_id, _, path = parts.path.lstrip("/").partition("/")
            return self._place_in_run(version, run_id, path)
        if parts.scheme == "models" and "/" not in (model_id := parts.path.strip("/")):
            return self._logged_model(version, model_id), ""
        return self._repository(version, uri), ""

    def _logged_model(self, version: ModelVersion, model_id: str, created_ms: int | None = None) -> Any:
        model = self._client.get_logged_model(model_id)
        if created_ms not in (None, int(model.creation_timestamp)):
            raise RegistryUnavailable(f"{version} is another model now")
        return self._repository(version, model.artifact_location)

    def _place_in_run(self, version: ModelVersion, run_id: str, path: str) -> tuple[Any, str]:
        """A model that the run logged under this name, else what lies there among the run's artifacts."""
        run = self._client.get_run(run_id)
        name, _, below = path.partition("/")
        token: str | None = ""
        while token is not None and "'" not in name:
            page = self._client.search_logged_models(
                [run.info.experiment_id], filter_string=f"name = '{name}'", page_token=token or None
            )
            if logged := next((model for model in page if model.source_run_id == run_id), None):
                return self._repository(version, logged.artifact_location), below
            token = page.token or None
        return self._repository(version, run.info.artifact_uri), path

    def _repository(self, version: ModelVersion, uri: str) -> Any:
        if not self._is_trusted(uri):
            # Not the URI: it can hold a password.
            raise ModelNotLoadable(
                f"the registry has the files of {version} neither itself nor in an object store; "
                "workers fetch them from nowhere else"
            )
        return get_artifact_repository(uri, tracking_uri=self._tracking_uri, registry_uri=self._tracking_uri)

    def _is_trusted(self, uri: str) -> bool:
        """MLflow would send the worker's credentials to whatever host a mlflow-artifacts: or http: URI names."""
        parts = urlsplit(uri)
        if parts.scheme == "mlflow-artifacts":
            return parts.netloc in ("", urlsplit(self._tracking_uri).netloc)
        if parts.scheme in ("http", "https"):
            return uri.startswith(f"{self._tracking_uri.rstrip('/')}/api/2.0/mlflow-artifacts/artifacts/")
        return parts.scheme in _OBJECT_STORES


def is_full(exc: BaseException) -> bool:
    """Whether it failed for want of space on this host; MLflow passes on what its threads met as text."""
    return getattr(exc, "errno", None) in _FULL or any(f"[Errno {number}]" in str(exc) for number in _FULL)


@contextmanager
def _asking(version: ModelVersion) -> Iterator[None]:
    try:
        yield
    except RestException as exc:
        if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ModelNotFound(f"the registry has no {version} any more") from exc
        raise RegistryUnavailable(f"the MLflow server answered {exc.error_code}") from exc
    except MlflowException as exc:
        raise RegistryUnavailable from exc
    except OSError as exc:
        raise RegistryUnavailable(f"the MLflow server cannot be reached ({type(exc).__name__})") from exc


def _sizes(repository: Any, path: str) -> dict[str, int | None]:
    sizes: dict[str, int | None] = {}
    directories = [path]
    while directories:
        directory = directories.pop()
        for entry in repository.list_artifacts(directory or None):
            if entry.is_dir and entry.path not in (".", directory):  # some stores list a directory within itself
                directories.append(entry.path)
            elif not entry.is_dir:
                sizes[entry.path.removeprefix(f"{path}/") if path else entry.path] = entry.file_size
    return sizes


def _compare(version: ModelVersion, listed: Mapping[str, int | None], got: Mapping[str, int]) -> None:
    for name, size in listed.items():
        if name not in got:
            raise RegistryUnavailable(f"the file {name!r} of {version} is listed and was not sent")
        # MLflow's server gives no size for an empty file.
        if size is not None and got[name] != size:
            raise RegistryUnavailable(
                f"the file {name!r} of {version} came with {got[name]} bytes and is listed with {size}; "
                "a proxy before the MLflow server may have cut it short"
            )
    if new := sorted(got.keys() - listed.keys()):
        raise RegistryUnavailable(f"the file {new[0]!r} of {version} was not listed: its files are being changed")


def _check_model_file(version: ModelVersion, path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("flavors"), dict):
        raise RegistryUnavailable(f"the {_MODEL_FILE} of {version}, {path.stat().st_size} bytes, cannot be read")
