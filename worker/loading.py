"""Loading: from a version's files to something that predicts, in this process or in one of its own."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import orjson
from mlflow.models import Model
from mlflow.types import Schema

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotLoadable, PyFunQError
from pyfunq.requirements import read_requirements, requirement_for, without_credentials
from worker.artifacts import ArtifactStore, ModelFiles, size_of
from worker.forests import in_turn
from worker.memory import Growth
from worker.model_envs import Environments
from worker.own_process import Interpreter, ModelCrashed, OwnProcess
from worker.quick import Predict, answers_by_name, prediction_of
from worker.trust import Trust

log = logging.getLogger(__name__)

_CODE_KEYS = ("code", "model_code_path")
_CAUSES = 10


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
    own: OwnProcess | None = None
    """The process of its own, if it has one."""
    closing: list[Callable[[], None]] = field(default_factory=list, compare=False)
    """What to do when it leaves memory."""

    def close(self) -> None:
        """Lets go of it for good: ends its process, and then does what is to be done."""
        if self.own is not None:
            self.own.close()
        while self.closing:
            self.closing.pop()()


class Loader:
    """Loads versions from the host's model files, and measures what memory they take."""

    def __init__(
        self, store: ArtifactStore, environments: Environments | None = None, trust: Trust | None = None
    ) -> None:
        """Without `trust` every model's code may run."""
        self._store = store
        self._trust = trust
        self._environments = environments
        self._growth = Growth()

    def open(self, version: ModelVersion) -> ModelFiles:
        """Raises ModelNotFound, ModelNotLoadable, and RegistryUnavailable where the files cannot be had now."""
        return self._store.open(version)

    def load(self, version: ModelVersion, files: ModelFiles) -> LoadedModel:
        """The files are to be kept open as long as the model is in use. Raises as `load` does, and ModelUntrusted."""
        if self._trust is not None:
            self._trust.check(version, files.path)
        with self._growth.during(files.size_bytes) as measured:
            model = load(version, files.path, self._environments)
        model.size_bytes = max(model.size_bytes, measured.bytes)
        return model


def load(version: ModelVersion, path: Path, environments: Environments | None = None) -> LoadedModel:
    """Loads a version from its files; runs the model's own code.

    A model that ships modules runs in a process of its own, and with `environments` so does one whose requirements
    are not met here. Raises ModelNotLoadable, and EnvironmentNotReady while its environment is being made.
    """
    try:
        metadata = Model.load(str(path / "MLmodel"))
        interpreter = environments.interpreter_for(version, path, _python_version(metadata)) if environments else None
        if interpreter is not None or ships_modules(metadata, path):
            return _in_own_process(version, path, metadata, interpreter)
        return _in_this_process(version, path)
    except PyFunQError:
        raise
    except Exception as exc:  # whatever the model's own code raises
        raise ModelNotLoadable(_why(version, path, exc, is_auto=environments is not None)) from exc


def ships_modules(metadata: Model, path: Path) -> bool:
    """Whether Python's imports could find something of the model's.

    MLflow puts `code` on the path and leaves it there, so the modules of a process are those of the model that came
    first. A model logged "from code" leaves a module behind each time it is loaded, and is handed over in a variable
    that all threads share. Other files (such as a transformer's own modeling_x.py) are imported by their flavour.
    """
    by_flavor = any(flavor.get(key) for flavor in metadata.flavors.values() for key in _CODE_KEYS)
    return by_flavor or next(path.rglob("*.py"), None) is not None


def _in_this_process(version: ModelVersion, path: Path) -> LoadedModel:
    model = mlflow.pyfunc.load_model(str(path), suppress_warnings=True)
    in_turn()
    schema = model.metadata.get_input_schema()
    return LoadedModel(
        version=version,
        path=path,
        metadata=model.metadata,
        predict=prediction_of(model),
        schema=schema,
        signature=_signature(schema),
        predict_proba=_predict_proba(model),
        size_bytes=size_of(path),
        answers_by_name=answers_by_name(model),
    )


def _in_own_process(version: ModelVersion, path: Path, metadata: Model, interpreter: Interpreter | None) -> LoadedModel:
    log.info("%s runs in a process of its own", version)
    own = OwnProcess(path, interpreter)
    try:
        has_scores = own.start()
    except BaseException as exc:
        own.close()
        if isinstance(exc, ModelCrashed) and not exc.killed:
            raise ModelNotLoadable(f"{version} cannot be loaded: {exc}") from exc
        raise
    schema = metadata.get_input_schema()
    return LoadedModel(
        version=version,
        path=path,
        metadata=metadata,
        predict=own.predict,
        schema=schema,
        signature=_signature(schema),
        predict_proba=own.predict_proba if has_scores else None,
        size_bytes=own.memory_bytes(),
        own=own,
    )


def _python_version(metadata: Model) -> str | None:
    found = metadata.flavors.get("python_function", {}).get("python_version")
    return str(found) if found else None


def _signature(schema: Schema | None) -> str | None:
    return orjson.dumps(schema.to_dict()).decode() if schema is not None else None


def _predict_proba(model: Any) -> Callable[[Any], Any] | None:
    try:
        raw = model.get_raw_model()
    except Exception:  # flavours without a raw model say so in different ways
        return None
    found = getattr(raw, "predict_proba", None)
    return found if callable(found) else None


def _why(version: ModelVersion, path: Path, exc: Exception, *, is_auto: bool) -> str:
    module = _missing_module(exc)
    if module is None:
        return f"{version} cannot be loaded: {type(exc).__name__}: {_first_line(exc)}"
    requirement = requirement_for(module, read_requirements(path))
    if requirement is None:
        return f"{version} needs the module {module!r}, which is not installed here"
    what_to_do = "" if is_auto else ": install it, or set PYFUNQ_MODEL_ENVS=auto"
    return f"{version} needs {without_credentials(requirement)}, not installed here{what_to_do}"


def _missing_module(exc: BaseException) -> str | None:
    """MLflow says of a model "from code" in other words what it could not import."""
    cause: BaseException | None = exc
    for _ in range(_CAUSES):
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return cause.name
        cause = cause.__cause__ if cause is not None else None
    return None


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [""])[0][:300]
