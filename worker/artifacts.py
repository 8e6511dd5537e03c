"""The model files on this host: each version is downloaded once and shared by all processes, with MLflow up or down."""

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotLoadable, RegistryUnavailable


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A version's files, there until they are closed."""

    path: Path
    size_bytes: int

    def __enter__(self) -> "ModelFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None: ...


class ArtifactStore:
    """A directory with one sub-directory a version, complete or absent."""

    def __init__(self, root: Path, tracking_uri: str) -> None:
        self._root = root
        self._tracking_uri = tracking_uri
        root.mkdir(parents=True, exist_ok=True)

    def open(self, version: ModelVersion) -> ModelFiles:
        place = self.ensure(version)
        return ModelFiles(place, size_of(place))

    def ensure(self, version: ModelVersion) -> Path:
        """The version's directory, downloaded now if this host does not have it yet.

        Raises RegistryUnavailable when the files cannot be fetched, ModelNotLoadable when what came is no model.
        """
        place = self._root / _directory_name(version)
        if place.is_dir():
            return place
        with FileLock(f"{place}.lock"):
            if not place.is_dir():
                self._download(version, place)
        return place

    def _download(self, version: ModelVersion, place: Path) -> None:
        unfinished = Path(tempfile.mkdtemp(prefix=".download-", dir=self._root))
        try:
            try:
                got = download_artifacts(
                    artifact_uri=_download_uri(version),
                    dst_path=str(unfinished),
                    tracking_uri=self._tracking_uri,
                )
            except (MlflowException, OSError) as exc:
                raise RegistryUnavailable(
                    f"the files of {version} cannot be downloaded ({type(exc).__name__})"
                ) from exc
            if not (Path(got) / "MLmodel").is_file():
                raise ModelNotLoadable(f"the files of {version} hold no MLmodel")
            os.rename(got, place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def size_of(directory: Path) -> int:
    """Bytes of all the files below a directory."""
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


def _download_uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}" if version.version.isdigit() else version.source


def _directory_name(version: ModelVersion) -> str:
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{version.name}-{version.version}")[:80].lstrip(".")
    return f"{readable}-{hashlib.sha256(repr(version.identity).encode()).hexdigest()[:12]}"
