"""The registry watch: which model URIs came to mean another version, or nothing, since the ledger was last told."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from mlflow.entities.model_registry import ModelVersion as RegistryVersion
from mlflow.entities.model_registry import RegisteredModel

from pyfunq.entries import ModelTags, ModelVersion, Resolution
from pyfunq.errors import ModelNotFound
from pyfunq.model_uri import ModelURI, parse_model_uri
from worker.registry import Registry, RegistryRefused, Resolved, listed_version

log = logging.getLogger(__name__)

_LOOK_AGAIN = timedelta(seconds=60)
_LOOKED_AT_ONCE = 3


class ResolutionTable(Protocol):
    """What the watch needs of the ledger."""

    async def resolutions(self) -> list[Resolution]: ...
    async def point(
        self,
        model_uri: str,
        version: ModelVersion,
        tags: ModelTags,
        updated_ms: int | None = None,
        asked_at: datetime | None = None,
    ) -> ModelVersion: ...
    async def confirm(self, same: Mapping[str, int | None], asked_at: datetime | None = None) -> None: ...
    async def forget(self, model_uri: str, asked_at: datetime | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class Change:
    """A model URI that came to mean another version, or none (`new` is None), or whose model has other tags."""

    model_uri: str
    old: ModelVersion
    new: ModelVersion | None
    tags: ModelTags
    updated_ms: int | None = None


@dataclass(slots=True)
class Findings:
    """What a look at the registry found of the model URIs in use."""

    changed: list[Change] = field(default_factory=list)
    same: dict[str, int | None] = field(default_factory=dict)
    """Those that mean what they meant, and the `updated_ms` of each."""
    unanswered: list[str] = field(default_factory=list)
    """Those about which the registry did not say; they stay as they are."""

    def __str__(self) -> str:
        silent = f", {len(self.unanswered)} without an answer" if self.unanswered else ""
        return f"{len(self.same)} same, {len(self.changed)} changed{silent}"


def look(registry: Registry, known: Iterable[Resolution], confidence_default: bool) -> Findings:
    """Asks the registry for all the models in use at once; raises RegistryUnavailable where it gives no answer.

    Contents are compared: moving an alias changes no timestamp that the registry shows. While nothing changes, there is
    one call, and one for each of at most three logged models and runs, which have no registered model to look at.
    """
    findings = Findings()
    named = [(r, uri) for r in known if (uri := parse_model_uri(r.model_uri)).name is not None]
    models = registry.models(str(uri.name) for _, uri in named)
    for resolution, uri in named:
        name = str(uri.name)
        if name not in models:
            findings.unanswered.append(resolution.model_uri)
            continue
        try:
            now = _resolved(registry, models[name], uri, resolution)
        except RegistryRefused:
            findings.unanswered.append(resolution.model_uri)
        else:
            _note(findings, resolution, now, confidence_default)
    for resolution in _due([r for r in known if parse_model_uri(r.model_uri).name is None]):
        _look_for_files(findings, registry, resolution)
    return findings


def _resolved(registry: Registry, model: RegisteredModel | None, uri: ModelURI, known: Resolution) -> Resolved | None:
    number = None if model is None else registry.number(model, uri)
    if model is None or number is None:
        return None
    updated_ms = model.last_updated_timestamp
    found = listed_version(model, number)
    if found is None and number == known.version.version and None is not updated_ms == known.updated_ms:
        return Resolved(known.version, model.tags, updated_ms)
    found = found or registry.version(model, number)
    if found is None:
        return None
    is_known = _identity(found) == known.version.identity
    return Resolved(known.version if is_known else registry.describe(found), model.tags, updated_ms)


def _identity(found: RegistryVersion) -> tuple[str, str, int, str]:
    return (found.name, str(found.version), int(found.creation_timestamp), found.source)


def _note(findings: Findings, known: Resolution, now: Resolved | None, confidence_default: bool) -> None:
    if now is None:
        findings.changed.append(Change(known.model_uri, known.version, None, known.tags))
        return
    tags = now.means(confidence=confidence_default)
    if (now.version.identity, tags) == (known.version.identity, known.tags):
        findings.same[known.model_uri] = now.updated_ms
    else:
        findings.changed.append(Change(known.model_uri, known.version, now.version, tags, now.updated_ms))


def _due(known: list[Resolution]) -> list[Resolution]:
    """Of what can only vanish, those that were not looked at for the longest time."""
    never = datetime.min.replace(tzinfo=UTC)
    before = datetime.now(UTC) - _LOOK_AGAIN
    due = [r for r in known if (r.checked_at or never) < before]
    return sorted(due, key=lambda r: r.checked_at or never)[:_LOOKED_AT_ONCE]


def _look_for_files(findings: Findings, registry: Registry, known: Resolution) -> None:
    try:
        registry.resolve(parse_model_uri(known.model_uri))
    except ModelNotFound:
        findings.changed.append(Change(known.model_uri, known.version, None, known.tags))
    except RegistryRefused:
        findings.unanswered.append(known.model_uri)
    else:
        findings.same[known.model_uri] = None


async def write(table: ResolutionTable, findings: Findings, asked_at: datetime | None = None) -> None:
    """`asked_at`: Postgres' time before the look; what another look found that began later stays."""
    for change in findings.changed:
        if change.new is None:
            await table.forget(change.model_uri, asked_at)
        else:
            await table.point(change.model_uri, change.new, change.tags, change.updated_ms, asked_at)
        log.info("%s: %s -> %s", change.model_uri, change.old, change.new or "nothing")
    if findings.same:
        await table.confirm(findings.same, asked_at)
