"""Loading: from a version's files to something that predicts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import orjson
from mlflow.models import Model
from mlflow.types import Schema

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotLoadable
from worker.artifacts import ArtifactStore, ModelFiles, size_of
from worker.memory import Growth
from worker.quick import Predict, answers_by_name, prediction_of


@dataclass(slots=True)
class LoadedModel:
    """A version in memory. `schema` is MLflow's input schema, None where the model was logged without a signature."""

    version: ModelVersion
    path: Path
    """Of its files."""
    metadata: Model
    predict: Predict
    schema: Schema | None
    signature: str | None
    predict_proba: Callable[[Any], Any] | None
    size_bytes: int
    """Of memory, as far as that could be measured; at least what its files have."""
    answers_by_name: bool = False
    """Whether each of its named outputs has an entry a row."""
    load_seconds: float = 0.0
    users: int = field(default=0, compare=False)
    closing: list[Callable[[], None]] = field(default_factory=list, compare=False)
    """What to do when it leaves memory."""

    def close(self) -> None:
        while self.closing:
            self.closing.pop()()


def load(version: ModelVersion, path: Path) -> LoadedModel:
    """Loads a version from its files; runs the model's own code. Raises ModelNotLoadable."""
    try:
        model = mlflow.pyfunc.load_model(str(path), suppress_warnings=True)
    except ModuleNotFoundError as exc:
        raise ModelNotLoadable(f"{version} needs the module {exc.name!r}, which is not installed here") from exc
    except Exception as exc:  # whatever the model's own code raises
        raise ModelNotLoadable(f"{version} cannot be loaded: {type(exc).__name__}: {_first_line(exc)}") from exc
    schema = model.metadata.get_input_schema()
    return LoadedModel(
        version=version,
        path=path,
        metadata=model.metadata,
        predict=prediction_of(model),
        schema=schema,
        signature=orjson.dumps(schema.to_dict()).decode() if schema is not None else None,
        predict_proba=_predict_proba(model),
        size_bytes=size_of(path),
        answers_by_name=answers_by_name(model),
    )


class Loader:
    """Loads versions from the host's model files, and measures what memory they take."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._growth = Growth()

    def open(self, version: ModelVersion) -> ModelFiles:
        """Raises ModelNotFound, ModelNotLoadable, and RegistryUnavailable where the files cannot be had now."""
        return self._store.open(version)

    def load(self, version: ModelVersion, files: ModelFiles) -> LoadedModel:
        """The files are to be kept open as long as the model is in use. Raises ModelNotLoadable."""
        with self._growth.during(files.size_bytes) as measured:
            model = load(version, files.path)
        model.size_bytes = max(model.size_bytes, measured.bytes)
        return model


def _predict_proba(model: Any) -> Callable[[Any], Any] | None:
    try:
        raw = model.get_raw_model()
    except Exception:  # flavours without a raw model say so in different ways
        return None
    found = getattr(raw, "predict_proba", None)
    return found if callable(found) else None


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [""])[0][:300]
