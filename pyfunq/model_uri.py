"""Model URIs: what a user wrote, brought to one canonical form and held against the operator's allow-list."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from pyfunq.errors import InvalidModelURI, ModelNotAllowed

DEFAULT_PATTERNS = ("models:/*",)
MAX_LENGTH = 500

Kind = Literal["version", "stage", "alias", "latest", "model_id", "run"]

# The widths of MLflow's database columns (registered_models.name, model_versions.version).
_MAX_NAME = 256
_MAX_VERSION = 2**31 - 1

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_STAGES = {stage.lower(): stage for stage in ("None", "Staging", "Production", "Archived")}
# As in mlflow.utils.validation, where \w and \d are those of Unicode.
_ALIAS = re.compile(r"[\w-]{1,255}")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,255}")
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_NOT_IN_NAMES = frozenset("/\\:@?#")
# `%` too: parts of MLflow decode it, so that %2e%2e would become `..`.
_NOT_IN_PATHS = frozenset("\\:?#%")
# Control characters, lone surrogates (they cannot be stored), line and paragraph separators.
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})

_FORMS = "models:/<name>/<version or stage>, models:/<name>@<alias> or models:/<name>/latest"


@dataclass(frozen=True, slots=True)
class ModelURI:
    """What a model URI names; `str()` gives its canonical form. Build it with `parse_model_uri`.

    Only the fields of its `kind` are set: `name` with `version`, `stage`, `alias` or nothing (`latest`);
    `model_id`; or `run_id` with `path`, the place below the run's artifacts.
    """

    kind: Kind
    name: str | None = None
    version: int | None = None
    stage: str | None = None
    alias: str | None = None
    model_id: str | None = None
    run_id: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        match self.kind:
            case "run":
                return f"runs:/{self.run_id}/{self.path}"
            case "model_id":
                return f"models:/{self.model_id}"
            case "alias":
                return f"models:/{self.name}@{self.alias}"
            case "latest":
                return f"models:/{self.name}/latest"
            case "stage":
                return f"models:/{self.name}/{self.stage}"
            case "version":
                return f"models:/{self.name}/{self.version}"

    @property
    def is_mutable(self) -> bool:
        """Whether it can name another model version tomorrow."""
        return self.kind in ("stage", "alias", "latest")


def parse_model_uri(text: str) -> ModelURI:
    """Read a model URI as MLflow does, but refuse what could not name a registered model or a run's model.

    Raises InvalidModelURI where the text is malformed, ModelNotAllowed where it names a file, a bucket or a
    host: these are never loaded, whatever the operator allows.
    """
    if not text:
        raise InvalidModelURI(f"the model URI is empty; use {_FORMS}")
    if len(text) > MAX_LENGTH:
        raise InvalidModelURI(f"the model URI is longer than {MAX_LENGTH} characters")
    if any(unicodedata.category(c) in _CONTROL for c in text):
        raise InvalidModelURI("the model URI holds a control character")
    if text != text.strip():
        raise InvalidModelURI("the model URI begins or ends with a space")
    found = _SCHEME.match(text)
    if found is None:
        raise ModelNotAllowed(f"this is not a models:/ URI, and paths are never loaded; use {_FORMS}")
    scheme = found[1].lower()
    if scheme not in ("models", "runs"):
        # Not the rest of it: a URL can hold a password.
        raise ModelNotAllowed(f"{scheme}: URIs are never loaded; use {_FORMS}")
    rest = text[found.end() :]
    if not rest.startswith("/") or rest.startswith("//"):
        raise InvalidModelURI(f"after {scheme}: comes one slash, and no host; use {_FORMS}")
    return _parse_models(rest[1:]) if scheme == "models" else _parse_runs(rest[1:])


def check_allowed(uri: ModelURI, patterns: Sequence[str] = DEFAULT_PATTERNS) -> None:
    """Raise ModelNotAllowed unless one of the patterns matches the whole canonical form.

    In a pattern `*` stands for any text, slashes included, `?` for one character, all else for itself; case
    counts. So `models:/iris*` takes `models:/iris2/1` along, `models:/iris/*` and `models:/iris@*` do not.
    """
    text = str(uri)
    if not any(fnmatchcase(text, pattern.replace("[", "[[]")) for pattern in patterns):
        raise ModelNotAllowed(f"{text} is not among the models that PYFUNQ_ALLOWED_MODELS allows")


def _parse_models(rest: str) -> ModelURI:
    parts = rest.split("/")
    if len(parts) > 2 or not all(part.strip() for part in parts):
        raise InvalidModelURI(f"models:/{rest} has an empty part or too many; use {_FORMS}")
    if len(parts) == 2:
        return _parse_suffix(_name(parts[0]), parts[1])
    name, at, alias = rest.rpartition("@")
    if at:
        return ModelURI("alias", name=_name(name), alias=_alias(alias))
    if _MODEL_ID.fullmatch(rest):
        return ModelURI("model_id", model_id=rest)
    raise InvalidModelURI(f"models:/{rest} does not say which version; use {_FORMS}")


def _parse_suffix(name: str, suffix: str) -> ModelURI:
    if suffix.isascii() and suffix.isdigit():
        version = int(suffix)
        if not 1 <= version <= _MAX_VERSION:
            raise InvalidModelURI(f"models:/{name}/{suffix}: versions go from 1 to {_MAX_VERSION}")
        return ModelURI("version", name=name, version=version)
    word = suffix.lower()
    if word == "latest":
        return ModelURI("latest", name=name)
    if word in _STAGES:
        return ModelURI("stage", name=name, stage=_STAGES[word])
    raise InvalidModelURI(
        f"models:/{name}/{suffix}: after the name comes a version, latest, or one of the stages "
        f"{', '.join(_STAGES.values())}; an alias is written models:/{name}@<alias>"
    )


def _parse_runs(rest: str) -> ModelURI:
    run_id, _, path = rest.partition("/")
    if not _RUN_ID.fullmatch(run_id):
        raise InvalidModelURI("expected runs:/<run id>/<path>, the run id of letters, digits, - and _")
    if any(part.strip() in ("", ".", "..") for part in path.split("/")):
        raise InvalidModelURI("expected runs:/<run id>/<path>, the path without empty parts, . and ..")
    if not _NOT_IN_PATHS.isdisjoint(path):
        raise InvalidModelURI(f"the path of a runs:/ URI holds none of {' '.join(sorted(_NOT_IN_PATHS))}")
    return ModelURI("run", run_id=run_id, path=path)


def _name(name: str) -> str:
    if not name.strip() or len(name) > _MAX_NAME:
        raise InvalidModelURI(f"models:/{name[:40]}: a model's name has 1 to {_MAX_NAME} characters")
    if not _NOT_IN_NAMES.isdisjoint(name):
        raise InvalidModelURI(f"models:/{name}: a model's name holds none of {' '.join(sorted(_NOT_IN_NAMES))}")
    if name == "." or name.startswith(".."):
        raise InvalidModelURI(f"models:/{name}: MLflow registers no model whose name is . or begins with ..")
    return name


def _alias(alias: str) -> str:
    if not _ALIAS.fullmatch(alias):
        raise InvalidModelURI("after @ comes an alias of at most 255 letters, digits, - and _")
    if _RESERVED_ALIAS.fullmatch(alias):
        raise InvalidModelURI(
            f"MLflow reserves the alias {alias}; use models:/<name>/<version> or models:/<name>/latest"
        )
    return alias
