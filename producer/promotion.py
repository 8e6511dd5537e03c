"""Promotion and rollback: an alias or a stage moves to another version, and what it replaced is kept as a tag."""

import re
import warnings
from dataclasses import dataclass
from typing import Any

from producer.registry import STAGES, holder, model_named, version_numbered, versions_of
from pyfunq.errors import InvalidInput
from pyfunq.model_uri import parse_model_uri

_EXCLUSIVE = ("Staging", "Production")
_MOVE = re.compile(r"(\d+) -> (\d+)")
_MAX_TAG = 250  # MLflow takes no longer ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What a model URI stood for, and stands for now."""

    model_uri: str
    version: int
    """What was moved; of several versions in a stage, its URI stands for the highest."""
    before: int | None
    now: int

    def __str__(self) -> str:
        if self.version != self.now:
            return f"version {self.version} is there; {self.model_uri} stays at version {self.now}, the highest one"
        if self.before is None:
            return f"{self.model_uri} is now at version {self.now}; before, no version had it"
        if self.before == self.now:
            return f"{self.model_uri} is now at version {self.now}, as it was before"
        return f"{self.model_uri} is now at version {self.now}; before, it was at {self.before}"


def promote(client: Any, name: str, version: int, *, alias: str | None = None, stage: str | None = None) -> list[Move]:
    """Moves an alias and a stage to a version; who had the stage Staging or Production is archived.

    Raises ModelNotFound with what exists, and InvalidInput where the alias or the stage cannot be.
    """
    alias, stage = checked(name, alias, stage)
    model = model_named(client, name)
    version_numbered(client, model, version)
    moves = []
    if alias is not None:
        moves.append(_move(client, model, version, "alias", alias))
    if stage is not None:
        moves.append(_move(client, model, version, "stage", stage))
    return moves


def rollback(client: Any, name: str, *, alias: str | None = None, stage: str | None = None) -> list[Move]:
    """Moves them back to what the last `promote` or `rollback` replaced: so a second one returns.

    Raises InvalidInput, before anything moves, where that is not known.
    """
    alias, stage = checked(name, alias, stage)
    if stage is not None and stage not in _EXCLUSIVE:
        raise InvalidInput(f"a stage that is rolled back is one of {', '.join(_EXCLUSIVE)}", field="stage")
    model = model_named(client, name)
    marks = [(kind, word) for kind, word in (("alias", alias), ("stage", stage)) if word is not None]
    goals = [_before(client, model, kind, word) for kind, word in marks]
    return [_move(client, model, goal, kind, word) for (kind, word), goal in zip(marks, goals, strict=True)]


def checked(name: str, alias: str | None, stage: str | None) -> tuple[str | None, str | None]:
    """The alias and the stage as they are written. Raises InvalidInput, InvalidModelURI."""
    if alias is None and stage is None:
        raise InvalidInput("give --alias or --stage", field="alias")
    if stage is not None and stage.title() not in STAGES:
        raise InvalidInput(f"stage is one of {', '.join(STAGES)}", field="stage")
    if alias is not None:
        parse_model_uri(f"models:/{name}@{alias}")
    return alias, stage and stage.title()


def _move(client: Any, model: Any, version: int, kind: str, word: str) -> Move:
    before = holder(model, **{kind: word})
    if kind == "alias":
        _record(client, model, _tag(kind, word), before, version)
        client.set_registered_model_alias(model.name, word, str(version))
        return Move(model_uri=f"models:/{model.name}@{word}", version=version, before=before, now=version)
    alone = word in _EXCLUSIVE
    if alone:
        _record(client, model, _tag(kind, word), before, version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # stages still work, and operators still have them
        client.transition_model_version_stage(model.name, str(version), word, archive_existing_versions=alone)
    now = version if alone else max(version, before or version)
    return Move(model_uri=f"models:/{model.name}/{word}", version=version, before=before, now=now)


def _record(client: Any, model: Any, tag: str, before: int | None, version: int) -> None:
    """Before the move: when this process ends between the two, the record does not fit, and misleads nobody."""
    if before == version or len(tag) > _MAX_TAG:
        return
    if before is not None:
        client.set_registered_model_tag(model.name, tag, f"{before} -> {version}")
    elif tag in model.tags:
        client.delete_registered_model_tag(model.name, tag)


def _before(client: Any, model: Any, kind: str, word: str) -> int:
    now = holder(model, **{kind: word})
    recorded = _MOVE.fullmatch(model.tags.get(_tag(kind, word), ""))
    known = ", ".join(str(v) for v in versions_of(client, model)[:10]) or "none"
    advice = f"use `pyfunq models promote`; the versions of {model.name!r}: {known}"
    if now is None:
        raise InvalidInput(f"no version of {model.name!r} has the {kind} {word}; {advice}", field=kind)
    if recorded is None:
        raise InvalidInput(f"what had the {kind} {word} before version {now} is not recorded; {advice}", field=kind)
    before, after = map(int, recorded.groups())
    if after != now:
        what = f"the {kind} {word} was moved to version {now} by other means than `pyfunq models`"
        raise InvalidInput(f"{what}, so what it had before is not recorded; {advice}", field=kind)
    return version_numbered(client, model, before).version


def _tag(kind: str, word: str) -> str:
    return f"pyfunq.moved.{kind}.{word}"
