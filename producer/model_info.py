"""`pyfunq models info`: all that the registry and the ledger know of a model, gathered and shown."""

import asyncio
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import orjson

from producer.columns import column_facts
from producer.examples import MAX_BYTES, example_from
from producer.following import process_of
from producer.output import show_table, show_text
from producer.registry import ModelFiles, files_of, model_named, registry, version_numbered, versions_of
from pyfunq.entries import LoadFailure, Resolution, Serving
from pyfunq.errors import InvalidInput, ModelNotFound, PyFunQError
from pyfunq.inputs import parse_json_input
from pyfunq.ledger import Ledger
from pyfunq.model_uri import ModelURI
from pyfunq.settings import Settings
from pyfunq.signature import Signature

_MB = 1e6
_NO_REASON = "it is being tried, or its process ended meanwhile"


def gather(settings: Settings, name: str, version: int | None) -> dict[str, Any]:
    """The facts as JSON has them. `version`: the one whose signature is wanted; None: the newest."""
    with registry(settings) as client:
        model = model_named(client, name)
        versions = versions_of(client, model)
        if version is not None:
            version_numbered(client, model, version)
        about = version or max((v.version for v in versions), default=None)
        at, resolutions, serving, failures = asyncio.run(_ask_ledger(settings))
        known = [r.version for r in resolutions if (r.version.name, r.version.version) == (name, str(about))]
        taken = None if about is None else _inputs(client, settings, name, about, [v.signature for v in known])
    return {
        **summary(model),
        "versions": [asdict(v) for v in versions],
        "signature": taken,
        "in_use": [_use(r, at) for r in resolutions if r.version.name == name],
        "serving": [serving_facts(s) for s in serving if s.name == name],
        "failures": [failure_facts(f) for f in failures if f.name == name],
    }


def summary(model: Any) -> dict[str, Any]:
    """A registered model in short."""
    latest = list(model.latest_versions or [])
    return {
        "name": model.name,
        "latest": max((int(v.version) for v in latest), default=None),
        "stages": {v.current_stage: int(v.version) for v in latest if v.current_stage != "None"},
        "aliases": {alias: int(v) for alias, v in sorted(model.aliases.items())},
        "tags": dict(model.tags),
    }


def show(info: dict[str, Any]) -> None:
    """The facts for people."""
    show_table(
        ("version", "stage", "aliases", "status", "created", "run"),
        (
            (
                v["version"],
                v["stage"],
                " ".join(f"@{alias}" for alias in v["aliases"]) or None,
                v["status"],
                v["created"],
                v["run_id"],
            )
            for v in info["versions"]
        ),
    )
    tags = {tag: value for tag, value in info["tags"].items() if tag.startswith("pyfunq.")}
    if tags:
        show_text("\ntags: " + ", ".join(f"{tag}={value}" for tag, value in sorted(tags.items())))
    if info["signature"] is not None:
        _show_inputs(info["name"], info["signature"])
    _show_use(info)


def _show_inputs(name: str, taken: dict[str, Any]) -> None:
    title = f"\nversion {taken['version']}"
    if taken["unknown"]:
        show_text(f"{title}: what it takes is not known: {taken['unknown']}")
        return
    if taken["inputs"] is None:
        show_text(f"{title} has no signature: it is given what the job has")
    else:
        show_text(f"{title} takes")
        show_table(
            ("column", "type", "required"), ((c["name"], c["type"], _yes(c["required"])) for c in taken["inputs"])
        )
    if taken["params"]:
        show_text("and the params")
        show_table(
            ("param", "type", "default"), ((p["name"], p["type"], json.dumps(p["default"])) for p in taken["params"])
        )
    if taken["example"] is not None:
        whose = "the model's own example" if taken["example_is_own"] else "an example made from these types"
        words = ("pyfunq", "submit", f"models:/{name}/{taken['version']}", orjson.dumps(taken["example"]).decode())
        show_text(f"for instance, with {whose}:\n{shlex.join(words)} --wait")


def _show_use(info: dict[str, Any]) -> None:
    if info["in_use"]:
        show_text("\nURIs in use")
        show_table(
            ("URI", "version", "since", "confirmed"),
            ((u["model_uri"], u["version"], u["since"], f"{u['age_seconds']:.0f} s ago") for u in info["in_use"]),
        )
    if info["serving"]:
        show_text("\nserved by")
        show_table(*serving_table(info["serving"]))
    if info["failures"]:
        show_text("\ncould not be loaded")
        show_table(*failure_table(info["failures"]))


def serving_table(rows: Iterable[dict[str, Any]]) -> tuple[Sequence[str], list[Sequence[Any]]]:
    return ("process", "URI", "version", "since", "loaded in s", "memory MB"), [
        (
            s["process"],
            s["model_uri"],
            s["version"],
            s["since"],
            f"{s['load_seconds']:.2f}",
            f"{s['size_bytes'] / _MB:,.1f}",
        )
        for s in rows
    ]


def failure_table(rows: Iterable[dict[str, Any]]) -> tuple[Sequence[str], list[Sequence[Any]]]:
    return ("process", "URI", "version", "failed", "tries", "next try", "reason"), [
        (f["process"], f["model_uri"], f["version"], f["failed"], f["tries"], f["next_try"], f["reason"] or _NO_REASON)
        for f in rows
    ]


async def _ask_ledger(settings: Settings) -> tuple[datetime, list[Resolution], list[Serving], list[LoadFailure]]:
    async with Ledger.open(settings.database, max_connections=1) as ledger:
        return (
            await ledger.clock(),
            await ledger.resolutions(),
            await ledger.serving(stale_seconds=settings.stale_seconds),
            await ledger.load_failures(),
        )


def _inputs(
    client: Any, settings: Settings, name: str, version: int, in_ledger: Sequence[str | None]
) -> dict[str, Any]:
    """What a version takes. The ledger has the columns alone, and is asked where the files cannot be read."""
    unknown = own = None
    specs: dict[str, Any] = {}
    try:
        with files_of(client, settings, ModelURI("version", name=name, version=version)) as files:
            described = _described(files)
            own = _own_example(files, described)
        found = described.get("signature") or {}
        specs = {part: json.loads(found[part]) for part in ("inputs", "params") if found.get(part)}
        signature = Signature.from_json(found["inputs"]) if specs.get("inputs") else None
    except (PyFunQError, ValueError, KeyError, TypeError) as exc:
        kept = next(filter(None, in_ledger), None)
        specs = {"inputs": json.loads(kept)} if kept else {}
        signature = Signature.from_json(kept) if kept else None
        unknown = None if kept else (exc.message if isinstance(exc, PyFunQError) else "its MLmodel cannot be read")
    inputs, params = specs.get("inputs"), specs.get("params")
    example, is_own = example_from(own, inputs, params, signature)
    return {
        "version": version,
        "inputs": None if inputs is None else [column_facts(spec) for spec in inputs],
        "params": [{key: p.get(key) for key in ("name", "type", "default")} for p in params or ()],
        "example": example,
        "example_is_own": is_own,
        "unknown": unknown,
    }


def _described(files: ModelFiles) -> dict[str, Any]:
    import yaml

    for path in files.fetch("MLmodel"):
        described = yaml.safe_load(path.read_text())
        if isinstance(described, dict):
            return described
    raise ModelNotFound("its files hold no MLmodel")


def _own_example(files: ModelFiles, described: dict[str, Any]) -> dict[str, Any] | None:
    about = described.get("saved_input_example_info")
    name = about.get("serving_input_path") if isinstance(about, dict) else None
    # It is named by the model's author; only a file beside MLmodel is fetched, and no large one.
    if not isinstance(name, str) or (files.size(name) or 10 * MAX_BYTES + 1) > 10 * MAX_BYTES:
        return None
    for path in files.fetch(name):
        try:
            return parse_json_input(path.read_bytes(), max_bytes=10 * MAX_BYTES)
        except InvalidInput:
            return None
    return None


def _use(resolution: Resolution, at: datetime) -> dict[str, Any]:
    confirmed = resolution.checked_at or resolution.resolved_at or at
    return {
        "model_uri": resolution.model_uri,
        "version": resolution.version.version,
        "since": resolution.resolved_at,
        "confirmed": resolution.checked_at,
        "age_seconds": round(max(0.0, (at - confirmed).total_seconds()), 3),
    }


def serving_facts(row: Serving) -> dict[str, Any]:
    return {
        "process": process_of(row),
        "model_uri": row.model_uri,
        "version": row.version,
        "since": row.since,
        "load_seconds": round(row.load_seconds, 3),
        "size_bytes": row.size_bytes,
    }


def failure_facts(row: LoadFailure) -> dict[str, Any]:
    return {
        "process": process_of(row),
        "model_uri": row.model_uri,
        "version": row.version,
        "reason": row.reason,
        "tries": row.tries,
        "failed": row.failed_at,
        "next_try": row.next_try_at,
    }


def _yes(value: bool) -> str:
    return "yes" if value else "no"
