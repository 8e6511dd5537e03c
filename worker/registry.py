"""The MLflow registry: what it has of models, and which exact version a model URI means."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as RegistryVersion
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException, RestException

from pyfunq.entries import ModelTags, ModelVersion
from pyfunq.errors import ModelNotFound, RegistryUnavailable
from pyfunq.lanes import is_own_queue
from pyfunq.model_uri import ModelURI

log = logging.getLogger(__name__)

CONFIDENCE_TAG, TIMEOUT_TAG = "pyfunq.confidence", "pyfunq.timeout"
MAX_ROWS_TAG, BATCHING_TAG = "pyfunq.max_rows", "pyfunq.batching"
QUEUE_TAG = "pyfunq.queue"
_ON, _OFF = {"1", "on", "true", "yes"}, {"0", "off", "false", "no"}
_PAGE = 1000
"""Names a call, for MLflow answers with no more models at once; it parses a filter of some 3,000."""
_LONGEST_FILTER, _SHORTEST_LIMIT = 64_000, 2_000
"""Bytes of a filter within a URL. MLflow's own server takes more than 100 kB, but a proxy may take 4 or 8."""
_TOO_LONG = {400, 413, 414, 431}
_STATUS = re.compile(r"failed with error code (\d{3})\b")
_SHOWN = 20
_LONGEST_TIMEOUT_SECONDS = 7 * 86_400.0
_MOST_ROWS = 2**31

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A version, and what its registered model's tags say."""

    version: ModelVersion
    tags: Mapping[str, str] = field(default_factory=dict)
    updated_ms: int | None = None
    """When the registered model was last changed: any change but that of an alias or a tag."""

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
            queue=self._queue(),
        )

    def _queue(self) -> str | None:
        name = self.tags.get(QUEUE_TAG)
        if name is None or is_own_queue(name):
            return name
        _warn_of(self.version.name, QUEUE_TAG, "no queue's name (model. and letters, digits, . - or _)")
        return None

    def _number(self, tag: str, kind: Callable[[str], N], most: float) -> N | None:
        text = self.tags.get(tag)
        if text is None:
            return None
        with suppress(ValueError):
            if 0 < (number := kind(text)) < most:
                return number
        _warn_of(self.version.name, tag, "not a positive number")
        return None


@lru_cache(1000)
def _warn_of(name: str, tag: str, what: str) -> None:
    """Once a process: the watch asks every few seconds."""
    log.warning("model %r: its tag %s is %s; it does not count", name, tag, what)


class RegistryRefused(RegistryUnavailable):
    """The MLflow server answered, but not with what it was asked for."""

    code = "registry_refused"


class Registry:
    """Raises ModelNotFound where the registry has no such thing and RegistryUnavailable where it gives no answer."""

    def __init__(self, tracking_uri: str, *, fallback_latest: bool = False) -> None:
        """`fallback_latest`: a stage or alias that no version has means the latest version."""
        self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        self._fallback_latest = fallback_latest
        self._experiments: dict[str, str | None] = {}
        self._longest_filter = _LONGEST_FILTER

    def resolve(self, uri: ModelURI) -> Resolved:
        if uri.kind == "model_id":
            return Resolved(self._logged_model(uri))
        if uri.kind == "run":
            return Resolved(self._run_model(uri))
        model = self.model(str(uri.name))
        number = self.number(model, uri)
        found = None if number is None else self.version(model, number)
        if found is None:
            raise ModelNotFound(self._what_is_missing(model, uri))
        return Resolved(self.describe(found), model.tags, model.last_updated_timestamp)

    def model(self, name: str) -> RegisteredModel:
        found = self._ask(f"no registered model named {name!r}", self._client.get_registered_model, name)
        if found.name != name:  # what MLflow's client makes of an empty answer
            raise RegistryRefused("the MLflow server gave an empty answer")
        return found

    def models(self, names: Iterable[str]) -> dict[str, RegisteredModel | None]:
        """Those of the named models that exist, and None for those that surely do not.

        In one call, unless names are many or long, and one for each that is missing: it may be hidden from us, or the
        answer empty, and then the name is left out.
        """
        wanted = sorted(set(names))
        listed = {name: text for name in wanted if (text := _quoted(name)) is not None}
        found: dict[str, RegisteredModel | None] = {}
        for model in self._search(listed):
            if model.name in listed:
                found[model.name] = model
        for name in wanted:
            if name not in found:
                with suppress(RegistryRefused):
                    found[name] = self._model_if_any(name)
        return found

    def _search(self, listed: Mapping[str, str]) -> Iterator[RegisteredModel]:
        waiting = list(listed.values())
        while waiting:
            some = self._first_few(waiting)
            try:
                yield from self._ask(
                    "", self._client.search_registered_models, f"name IN ({','.join(some)})", max_results=_PAGE
                )
            except RegistryUnavailable as exc:
                length = sum(map(_length, some))
                if _status(exc.__cause__) not in _TOO_LONG or length <= _SHORTEST_LIMIT or len(some) == 1:
                    raise
                self._longest_filter = max(_SHORTEST_LIMIT, length // 2)
                log.info("a filter of %d bytes is too long for what is before the MLflow server", length)
                continue
            waiting = waiting[len(some) :]

    def _first_few(self, listed: list[str]) -> list[str]:
        length = 0
        for n, text in enumerate(listed[:_PAGE]):
            length += _length(text)
            if n and length > self._longest_filter:
                return listed[:n]
        return listed[:_PAGE]

    def _model_if_any(self, name: str) -> RegisteredModel | None:
        try:
            return self.model(name)
        except ModelNotFound:
            return None

    def number(self, model: RegisteredModel, uri: ModelURI) -> str | None:
        """The number of the version that the URI names, which need not exist; None where no version has that name."""
        latest = list(model.latest_versions or [])
        match uri.kind:
            case "version":
                return str(uri.version)
            case "alias":
                found = model.aliases.get(uri.alias)
            case "stage":  # `latest_versions` has the highest number of each stage, whichever came there last
                found = _highest(v for v in latest if v.current_stage == uri.stage)
            case _:
                found = _highest(latest)
        return _highest(latest) if found is None and self._fallback_latest else found

    def version(self, model: RegisteredModel, number: str) -> RegistryVersion | None:
        """Asks only for what the model does not hold already."""
        listed = listed_version(model, number)
        if listed is not None:
            return listed
        try:
            return self._ask("no such version", self._client.get_model_version, model.name, number)
        except ModelNotFound:
            return None

    def _what_is_missing(self, model: RegisteredModel, uri: ModelURI) -> str:
        name = model.name
        versions = self._versions(name)
        match uri.kind:
            case "version":
                return f"model {name!r} has no version {uri.version}; its versions: {versions}"
            case "stage":
                return f"model {name!r} has no version in stage {uri.stage}; its versions: {versions}"
            case "alias":
                aliases = _listed([f"{alias} ({number})" for alias, number in sorted(model.aliases.items())])
                return f"model {name!r} has no alias {uri.alias!r}; its aliases: {aliases}; its versions: {versions}"
        return f"model {name!r} has no version yet"

    def _versions(self, name: str) -> str:
        text = _quoted(name)
        if text is None:
            return "not known"
        order = ["version_number DESC"]
        ask = self._client.search_model_versions
        found = self._ask("", ask, f"name={text}", max_results=_SHOWN + 1, order_by=order)
        return _listed([f"{v.version} ({v.current_stage})" for v in found])

    def describe(self, found: RegistryVersion) -> ModelVersion:
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
        missing = f"there is no run {uri.run_id}"
        run = self._ask(missing, self._client.get_run, uri.run_id)
        if run.info.lifecycle_stage == "deleted":
            raise ModelNotFound(missing)
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
            except RegistryRefused:  # the run was deleted for good, or is not ours to see
                return None
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
            raise RegistryRefused(f"the MLflow server answered {exc.error_code}") from exc
        except MlflowException as exc:
            status = _status(exc)
            said = f"the MLflow server answered HTTP {status}" if status else None
            raise RegistryUnavailable(said) from exc
        except OSError as exc:
            raise RegistryUnavailable(f"the MLflow server cannot be reached ({type(exc).__name__})") from exc


def listed_version(model: RegisteredModel, number: str) -> RegistryVersion | None:
    """The version as the model's own entry has it, which is that of the highest number in each stage."""
    return next((v for v in model.latest_versions or [] if str(v.version) == number), None)


def _status(exc: BaseException | None) -> int | None:
    """The HTTP status of an answer that is not MLflow's, but a proxy's or of its login."""
    found = _STATUS.search(str(exc))
    return int(found[1]) if found else None


def _highest(versions: Iterable[RegistryVersion]) -> str | None:
    highest = max((int(v.version) for v in versions), default=None)
    return None if highest is None else str(highest)


def _quoted(name: str) -> str | None:
    """The name in a filter; None where MLflow's filters cannot name it."""
    if "'" not in name:
        return f"'{name}'"
    return None if '"' in name else f'"{name}"'


def _length(text: str) -> int:
    """Bytes in a URL, with a comma."""
    return len(quote(text, safe="")) + len("%2C")


def _listed(texts: list[str]) -> str:
    return ", ".join([*texts[:_SHOWN], *(["..."] if len(texts) > _SHOWN else [])]) or "none"
