"""The MLflow registry: resolve a model URI to one exact version, and watch for URIs that came to mean another."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as RegistryVersion
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException, RestException

from pyfunq.entries import ModelTags, ModelVersion, Resolution
from pyfunq.errors import ModelNotFound, RegistryUnavailable
from pyfunq.model_uri import ModelURI, parse_model_uri

log = logging.getLogger(__name__)

CONFIDENCE_TAG, TIMEOUT_TAG = "pyfunq.confidence", "pyfunq.timeout"
MAX_ROWS_TAG, BATCHING_TAG = "pyfunq.max_rows", "pyfunq.batching"
_ON, _OFF = {"1", "on", "true", "yes"}, {"0", "off", "false", "no"}
_NAMES_PER_CALL = 100
_PAGE = 1000
_LONGEST_TIMEOUT_SECONDS = 7 * 86_400.0
_MOST_ROWS = 2**31

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A version, and what its registered model's tags say."""

    version: ModelVersion
    tags: Mapping[str, str] = field(default_factory=dict)

    def means(self, *, confidence: bool) -> ModelTags:
        """The tags, with what they do not say."""
        scores = self.tags.get(CONFIDENCE_TAG)
        alone = str(self.tags.get(BATCHING_TAG)).lower() in _OFF
        timeout = self._number(TIMEOUT_TAG, float, _LONGEST_TIMEOUT_SECONDS)
        max_rows = self._number(MAX_ROWS_TAG, int, _MOST_ROWS)
        return ModelTags(
            confidence=confidence if scores is None else str(scores).lower() in _ON,
            timeout_seconds=timeout,
            max_rows=1 if alone else max_rows,
        )

    def _number(self, tag: str, kind: Callable[[str], N], most: float) -> N | None:
        text = self.tags.get(tag)
        if text is None:
            return None
        with suppress(ValueError):
            if 0 < (number := kind(text)) < most:
                return number
        log.warning("model %r: its tag %s is not a positive number; it does not count", self.version.name, tag)
        return None


class Registry:
    """Raises ModelNotFound where the registry has no such thing and RegistryUnavailable where it gives no answer."""

    def __init__(self, tracking_uri: str) -> None:
        self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        self._experiments: dict[str, str | None] = {}

    def resolve(self, uri: ModelURI) -> Resolved:
        if uri.kind == "model_id":
            return Resolved(self._logged_model(uri))
        if uri.kind == "run":
            return Resolved(self._run_model(uri))
        assert uri.name is not None  # noqa: S101
        model = self._ask(f"no registered model named {uri.name!r}", self._client.get_registered_model, uri.name)
        return self.resolve_in(model, uri)

    def resolve_in(self, model: RegisteredModel, uri: ModelURI) -> Resolved:
        """Like `resolve`, with what the registry just said of the model."""
        found = self._pick(model, uri)
        return Resolved(self._describe(found), model.tags)

    def models(self, names: Iterable[str]) -> dict[str, RegisteredModel]:
        """Those of the named models that exist, in as few calls as possible."""
        wanted = sorted(set(names))
        plain = [n for n in wanted if "'" not in n and '"' not in n and "`" not in n]
        found: dict[str, RegisteredModel] = {}
        for i in range(0, len(plain), _NAMES_PER_CALL):
            listed = ",".join(f"'{n}'" for n in plain[i : i + _NAMES_PER_CALL])
            answer = self._ask("", self._client.search_registered_models, f"name IN ({listed})", max_results=_PAGE)
            found.update({m.name: m for m in answer})
        for name in set(wanted) - set(plain):
            try:
                found[name] = self._ask("no such model", self._client.get_registered_model, name)
            except ModelNotFound:
                continue
        return found

    def _pick(self, model: RegisteredModel, uri: ModelURI) -> RegistryVersion:
        name = model.name
        if uri.kind == "alias":
            number = model.aliases.get(uri.alias)
            if number is None:
                known = ", ".join(sorted(model.aliases)) or "none"
                raise ModelNotFound(f"model {name!r} has no alias {uri.alias!r}; its aliases: {known}")
            return self._version(name, number)
        if uri.kind == "version":
            return self._version(name, str(uri.version))
        latest = list(model.latest_versions or [])
        if uri.kind == "latest":
            if not latest:
                raise ModelNotFound(f"model {name!r} has no version yet")
            return max(latest, key=lambda v: int(v.version))
        staged = [v for v in latest if v.current_stage == uri.stage]
        if not staged:
            known = ", ".join(f"{v.version} ({v.current_stage})" for v in latest) or "none"
            raise ModelNotFound(f"model {name!r} has no version in stage {uri.stage}; its latest versions: {known}")
        return max(staged, key=lambda v: int(v.version))

    def _version(self, name: str, number: str) -> RegistryVersion:
        return self._ask(f"model {name!r} has no version {number}", self._client.get_model_version, name, number)

    def _describe(self, found: RegistryVersion) -> ModelVersion:
        return ModelVersion(
            name=found.name,
            version=str(found.version),
            created_ms=int(found.creation_timestamp),
            source=found.source,
            run_id=found.run_id or None,
            experiment_id=self._experiment(found.run_id),
        )

    def _logged_model(self, uri: ModelURI) -> ModelVersion:
        logged = self._ask(f"there is no logged model {uri.model_id}", self._client.get_logged_model, uri.model_id)
        return ModelVersion(
            name=logged.name or str(uri.model_id),
            version=str(uri.model_id),
            created_ms=int(logged.creation_timestamp),
            source=str(uri),
            run_id=logged.source_run_id or None,
            experiment_id=logged.experiment_id,
        )

    def _run_model(self, uri: ModelURI) -> ModelVersion:
        run = self._ask(f"there is no run {uri.run_id}", self._client.get_run, uri.run_id)
        return ModelVersion(
            name=f"runs:/{uri.run_id}",
            version=str(uri.path),
            created_ms=int(run.info.start_time),
            source=str(uri),
            run_id=uri.run_id,
            experiment_id=run.info.experiment_id,
        )

    def _experiment(self, run_id: str | None) -> str | None:
        if not run_id:
            return None
        if run_id not in self._experiments:
            try:
                self._experiments[run_id] = self._ask("", self._client.get_run, run_id).info.experiment_id
            except ModelNotFound:  # the run was deleted for good
                self._experiments[run_id] = None
        return self._experiments[run_id]

    @staticmethod
    def _ask(missing: str, method: Any, *args: Any, **kwargs: Any) -> Any:
        # MLflow says INTERNAL_ERROR both for "no version in this stage" and for a server that is down; a server that
        # answered at all raises RestException.
        try:
            return method(*args, **kwargs)
        except RestException as exc:
            if exc.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE") and missing:
                raise ModelNotFound(missing) from exc
            raise RegistryUnavailable(f"the MLflow server answered {exc.error_code}") from exc
        except MlflowException as exc:
            raise RegistryUnavailable from exc
        except OSError as exc:
            raise RegistryUnavailable(f"the MLflow server cannot be reached ({type(exc).__name__})") from exc


class ResolutionTable(Protocol):
    """What the watch needs of the ledger."""

    async def resolutions(self) -> list[Resolution]: ...
    async def point(self, model_uri: str, version: ModelVersion, tags: ModelTags) -> ModelVersion: ...
    async def confirm(self, model_uris: list[str]) -> None: ...
    async def forget(self, model_uri: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Change:
    """A model URI that came to mean another version, or none (`new` is None)."""

    model_uri: str
    old: ModelVersion
    new: ModelVersion | None
    tags: ModelTags


def changes(registry: Registry, known: list[Resolution], confidence_default: bool) -> tuple[list[Change], list[str]]:
    """Asks the registry for all the mutable URIs at once: what changed, and the URIs that mean what they meant.

    Contents are compared: moving an alias changes no timestamp that the registry shows.
    """
    mutable = [(r, uri) for r in known if (uri := parse_model_uri(r.model_uri)).is_mutable]
    models = registry.models(str(uri.name) for _, uri in mutable)
    changed: list[Change] = []
    same: list[str] = []
    for resolution, uri in mutable:
        try:
            model = models.get(str(uri.name))
            now = registry.resolve_in(model, uri) if model is not None else None
        except ModelNotFound:
            now = None
        if now is None:
            changed.append(Change(resolution.model_uri, resolution.version, None, resolution.tags))
            continue
        tags = now.means(confidence=confidence_default)
        if (now.version.identity, tags) == (resolution.version.identity, resolution.tags):
            same.append(resolution.model_uri)
        else:
            changed.append(Change(resolution.model_uri, resolution.version, now.version, tags))
    return changed, same


async def write_changes(table: ResolutionTable, changed: list[Change], same: list[str]) -> None:
    for change in changed:
        if change.new is None:
            await table.forget(change.model_uri)
        else:
            await table.point(change.model_uri, change.new, change.tags)
        log.info("%s: %s -> %s", change.model_uri, change.old, change.new or "nothing")
    if same:
        await table.confirm(same)
