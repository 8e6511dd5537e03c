"""What the ledger knows of models, looked at once in a while for all who ask; and what of it a caller is shown."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from producer.api.callers import Caller
from producer.api.model_names import is_among
from producer.columns import column_facts
from producer.examples import example_from
from producer.following import process_of
from pyfunq.api_keys import Scope
from pyfunq.entries import LoadFailure, ModelVersion, Resolution, Serving
from pyfunq.errors import InvalidInput
from pyfunq.signature import Signature

_FRESH_SECONDS = 2.0
_MOST_VERSIONS = 200


class ModelTable(Protocol):
    """What is needed of the ledger."""

    async def resolutions(self) -> list[Resolution]: ...
    async def serving(self, *, stale_seconds: float) -> list[Serving]: ...
    async def load_failures(self) -> list[LoadFailure]: ...
    async def versions_named(self, name: str, at_most: int) -> list[ModelVersion]: ...


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a caller may know."""

    resolutions: Sequence[Resolution]
    serving: Sequence[Serving]
    failures: Sequence[LoadFailure]

    @property
    def names(self) -> list[str]:
        return sorted({r.version.name for r in self.resolutions} | {s.name for s in self.serving})

    def of(self, name: str) -> "Seen":
        return Seen(
            [r for r in self.resolutions if r.version.name == name],
            [s for s in self.serving if s.name == name],
            [f for f in self.failures if f.name == name],
        )


class Known:
    """Belongs to the event loop that first asks."""

    def __init__(
        self, ledger: ModelTable, stale_seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._seen: tuple[float, Seen] | None = None

    async def for_caller(self, caller: Caller) -> Seen:
        """Without the models that the caller's key does not name. Raises LedgerUnavailable."""
        seen = await self._now()
        patterns = caller.key.models if caller.key else ()
        if not patterns:
            return seen
        return Seen(
            [r for r in seen.resolutions if is_among(r.model_uri, patterns)],
            [s for s in seen.serving if is_among(s.model_uri, patterns)],
            [f for f in seen.failures if is_among(f.model_uri, patterns)],
        )

    async def versions(self, name: str) -> list[ModelVersion]:
        """Newest first."""
        return await self._ledger.versions_named(name, _MOST_VERSIONS)

    async def _now(self) -> Seen:
        async with self._lock:
            if self._seen is None or self._seen[0] < self._clock():
                resolutions = await self._ledger.resolutions()
                serving = await self._ledger.serving(stale_seconds=self._stale_seconds)
                seen = Seen(resolutions, serving, await self._ledger.load_failures())
                self._seen = (self._clock() + _FRESH_SECONDS, seen)
            return self._seen[1]


@lru_cache(1024)
def input_specs(signature: str | None) -> tuple[dict[str, Any], ...] | None:
    """The inputs of MLflow's signature; None where it is not known, or none that this version understands."""
    if signature is None:
        return None
    try:
        Signature.from_json(signature)
        return tuple(json.loads(signature))
    except InvalidInput:
        return None


@lru_cache(1024)
def example_input(signature: str | None) -> dict[str, Any] | None:
    """An input of one row made from the signature, which `submit` takes."""
    specs = input_specs(signature)
    if specs is None or signature is None:
        return None
    return example_from(None, specs, None, Signature.from_json(signature))[0]


def summary(seen: Seen, name: str) -> dict[str, Any]:
    """One model of `GET /v1/models`."""
    own = seen.of(name)
    return {
        "name": name,
        "uris": [_uri(r) for r in own.resolutions],
        "serving_processes": len({(s.hostname, s.pid) for s in own.serving}),
        "failing": bool(own.failures),
    }


def details(seen: Seen, name: str, versions: Sequence[ModelVersion], caller: Caller) -> dict[str, Any]:
    """`GET /v1/models/{name}`. Processes and reasons are for operators: they name hosts."""
    own = seen.of(name)
    is_operator = caller.key is None or Scope.ADMIN in caller.key.scopes
    described = next((v for v in versions if input_specs(v.signature) is not None), None)
    example = example_input(described.signature) if described else None
    return {
        **summary(seen, name),
        "versions": [_version(v) for v in versions],
        "signature": None if described is None else _signature(described),
        "example": example and {"model": f"models:/{name}/{described.version}", **example} if described else None,
        "serving": [_serving(s, is_operator) for s in own.serving],
        "failures": [_failure(f, is_operator) for f in own.failures],
    }


def _uri(resolution: Resolution) -> dict[str, Any]:
    return {
        "uri": resolution.model_uri,
        "version": resolution.version.version,
        "since": resolution.resolved_at,
        "confirmed": resolution.checked_at,
    }


def _version(version: ModelVersion) -> dict[str, Any]:
    specs = input_specs(version.signature)
    return {
        "version": version.version,
        "created_ms": version.created_ms,
        "run_id": version.run_id,
        "inputs": None if specs is None else [column_facts(spec) for spec in specs],
    }


def _signature(version: ModelVersion) -> dict[str, Any]:
    return {"version": version.version, "inputs": [column_facts(spec) for spec in input_specs(version.signature) or ()]}


def _serving(row: Serving, is_operator: bool) -> dict[str, Any]:
    process = {"process": process_of(row), "size_bytes": row.size_bytes, "load_seconds": round(row.load_seconds, 3)}
    return {"uri": row.model_uri, "version": row.version, "since": row.since, **(process if is_operator else {})}


def _failure(row: LoadFailure, is_operator: bool) -> dict[str, Any]:
    why = {"process": process_of(row), "reason": row.reason}
    return {
        "uri": row.model_uri,
        "version": row.version,
        "tries": row.tries,
        "failed_at": row.failed_at,
        "next_try_at": row.next_try_at,
        **(why if is_operator else {}),
    }
