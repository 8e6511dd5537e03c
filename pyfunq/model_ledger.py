"""What the ledger is asked about models: versions, what URIs stand for, and which process serves what."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from pyfunq.entries import Asked, LoadFailure, ModelTags, ModelVersion, Resolution, Serving
from pyfunq.job import Lane
from pyfunq.lanes import line, queues_of


class ModelLedger(ABC):
    """The part of `Ledger` that concerns models."""

    @abstractmethod
    async def _fetch(self, query: str, *args: Any) -> list[asyncpg.Record]: ...

    @abstractmethod
    async def _fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None: ...

    @abstractmethod
    async def _execute(self, query: str, *args: Any) -> None: ...

    async def resolution(self, model_uri: str) -> Resolution | None:
        row = await self._fetchrow("resolution", model_uri)
        return None if row is None else _resolution({"model_uri": model_uri, **row})

    async def resolutions(self) -> list[Resolution]:
        return [_resolution(dict(r)) for r in await self._fetch("resolutions")]

    async def version(self, version_id: int) -> ModelVersion:
        row = await self._fetchrow("get_version", version_id)
        assert row is not None, "versions are never deleted"  # noqa: S101
        return ModelVersion(**row)

    async def versions_named(self, name: str, at_most: int) -> list[ModelVersion]:
        """The versions of a model that were ever asked for, newest first."""
        return [ModelVersion(**r) for r in await self._fetch("versions_named", name, at_most)]

    async def point(
        self,
        model_uri: str,
        version: ModelVersion,
        tags: ModelTags,
        updated_ms: int | None = None,
        asked_at: datetime | None = None,
    ) -> ModelVersion:
        """Makes a model URI stand for this version from now on; returns the version with the ledger's id.

        `updated_ms`: see `Resolution`. `asked_at`: Postgres' time when the registry was asked; who asked later has the
        last word.
        """
        row = await self._fetchrow("add_version", *version.identity, version.run_id, version.experiment_id)
        assert row is not None  # noqa: S101
        said = (tags.confidence, tags.timeout_seconds, tags.max_rows, tags.queue, updated_ms, asked_at)
        await self._execute("point_resolution", model_uri, row["id"], *said)
        return replace(version, id=row["id"])

    async def confirm(self, same: Mapping[str, int | None], asked_at: datetime | None = None) -> None:
        """Notes that model URIs stand for what they stood for, and the `updated_ms` of each."""
        await self._execute("confirm_resolutions", list(same), list(same.values()), asked_at)

    async def set_call_rows(self, model_uri: str, rows: int) -> None:
        """Notes how many rows a call of a model may have so that it does not take long."""
        await self._execute("set_call_rows", model_uri, rows)

    async def forget(self, model_uri: str, asked_at: datetime | None = None) -> None:
        await self._execute("drop_resolution", model_uri, asked_at)

    async def own_queues(self) -> dict[str, bool]:
        """Every queue that was ever a model's own, and whether it still is."""
        return {r["name"]: r["in_use"] for r in await self._fetch("own_queues")}

    async def made_ready(self, model_uri: str, version_id: int, signature: str | None) -> None:
        """Notes that a process has a version ready, and its signature, which inputs are checked against from now on."""
        await self._execute("made_ready", model_uri, version_id, signature)

    async def asked_models(self, model_uris: Sequence[str], since: datetime) -> list[Asked]:
        """What these model URIs stand for now, and those that operators asked to have in memory since then."""
        return [
            Asked(r["model_uri"], r["version_id"] and (r["version_id"], r["good_version_id"]), r["asked_at"])
            for r in await self._fetch("asked_models", list(model_uris), since)
        ]

    async def queued_inputs(self, model_uri: str, at_most: int) -> list[tuple[str, bytes]]:
        """Formats and inputs of some jobs that are queued for a model URI; not of large ones."""
        lines = [line(lane, own) for own in (None, *await self.own_queues()) for lane in Lane]
        queues = [queue for waited_in in lines for queue in queues_of(waited_in)]
        return [(r["input_format"], r["input"]) for r in await self._fetch("queued_inputs", model_uri, queues, at_most)]

    async def ended_in_load(self, hostname: str, version_id: int) -> float | None:
        """For how many seconds a version is not to be tried on a host, as a process ended that tried it."""
        row = await self._fetchrow("ended_in_load", hostname, version_id)
        return row["seconds"] if row else None

    async def serve(self, worker_id: UUID, model_uri: str, version_id: int, size_bytes: int, seconds: float) -> None:
        """Notes that a worker process serves a model URI with this version from now on, and how it was loaded."""
        await self._execute("serve", worker_id, model_uri, version_id, size_bytes, seconds)

    async def serve_no_more(self, worker_id: UUID, model_uris: Sequence[str]) -> None:
        await self._execute("serve_no_more", worker_id, list(model_uris))

    async def serving(self, *, stale_seconds: float) -> list[Serving]:
        """What the worker processes serve whose heartbeat is younger than this."""
        return [Serving(**r) for r in await self._fetch("serving", stale_seconds)]

    async def begin_load(self, worker_id: UUID, model_uri: str, version_id: int, *, pause_seconds: float) -> None:
        """Notes an attempt to load a version, as failed until `end_load` says otherwise; the next is due then."""
        await self._execute("begin_load", worker_id, model_uri, version_id, pause_seconds)

    async def end_load(self, worker_id: UUID, version_id: int, *, reason: str | None) -> None:
        """How the attempt ended: `reason` says why it failed; None: the version is loaded."""
        await self._execute("fail_load" if reason else "forget_failure", worker_id, version_id, *filter(None, [reason]))

    async def load_failures(self, *, since_seconds: float = 86_400.0) -> list[LoadFailure]:
        """What worker processes, also ended ones, could not load lately."""
        return [LoadFailure(**r) for r in await self._fetch("load_failures", since_seconds)]

    async def ask_to_warm(self, model_uri: str) -> None:
        """Asks all worker processes that run now to have a model URI in memory."""
        await self._execute("ask_to_warm", model_uri)

    async def prune_models(self) -> None:
        """Forgets what ended processes served, and old failures and requests."""
        await self._execute("prune_models")


def _resolution(row: dict[str, Any]) -> Resolution:
    tags = ModelTags(**{name: row.pop(name) for name in ("confidence", "timeout_seconds", "max_rows", "queue")})
    about = {name: row.pop(name) for name in ("model_uri", "resolved_at", "checked_at", "updated_ms", "call_rows")}
    return Resolution(version=ModelVersion(**row), tags=tags, **about)
