"""What the ledger is asked for metrics: its own state, within bounds, and what the worker processes counted."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from pyfunq.metrics import METRICS, Sample

_SHARDS = 4


class MetricLedger(ABC):
    """The part of `Ledger` that concerns metrics."""

    @abstractmethod
    async def _fetch(self, query: str, *args: Any) -> list[asyncpg.Record]: ...

    @abstractmethod
    async def _fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None: ...

    @abstractmethod
    async def _execute(self, query: str, *args: Any) -> None: ...

    async def add_to_metrics(self, worker_id: UUID, samples: Sequence[Sample]) -> None:
        """Adds to what all worker processes counted; a name and its labels come once."""
        columns = [
            [s.name for s in samples],
            [orjson.dumps(s.labels).decode() for s in samples],
            [s.total for s in samples],
            # unnest() flattens nested arrays.
            [None if s.counts is None else "{" + ",".join(map(str, s.counts)) + "}" for s in samples],
        ]
        await self._execute("add_to_metrics", worker_id.int % _SHARDS, *columns)

    async def metric_totals(self) -> list[Sample]:
        """What all worker processes counted; not what those of another version did in other buckets or labels."""
        found: dict[tuple[str, str], Sample] = {}
        for name, labels, total, counts in await self._fetch("metric_totals"):
            values = tuple(orjson.loads(labels))
            if (metric := METRICS.get(name)) is None or len(values) != len(metric.labels):
                continue
            if counts is not None and len(counts) != len(metric.buckets) + 1:
                continue
            sample = Sample(name, values, total, counts)
            if (there := found.get((name, labels))) is not None:
                there.add(sample)
            else:
                found[name, labels] = sample
        return list(found.values())

    async def name_metric_models(self, model_uris: Collection[str], *, at_most: int) -> set[str]:
        """Those that have a label of their own, which no more than `at_most` ever have at a time."""
        rows = await self._fetch("name_metric_models", list(model_uris), at_most)
        return {r["model_uri"] for r in rows}

    async def prune_metrics(self) -> None:
        """Forgets what nobody counted for a week."""
        await self._execute("prune_metrics")

    async def note_cache(self, worker_id: UUID, size_bytes: int, models: int) -> bool:
        """What a worker process has in its cache; whether it has had a heartbeat."""
        return await self._fetchrow("note_cache", worker_id, size_bytes, models) is not None

    async def queue_state(self, *, most_pairs: int, at_most: int) -> list[asyncpg.Record]:
        """By Redis queue and model: queue, model_uri, jobs (no more than `at_most` counted), oldest_seconds."""
        return await self._fetch("queue_state", most_pairs, at_most)

    async def count_states(self, *, at_most: int) -> tuple[int, int]:
        """Running and dead jobs."""
        row = await self._fetchrow("count_states", at_most)
        return (row["running"], row["dead"]) if row else (0, 0)

    async def worker_state(self, *, fresh_seconds: float, forgotten_seconds: float) -> dict[str, Any]:
        """processes, cache_bytes, cache_models of those heard within the first time; heartbeat_age: second."""
        row = await self._fetchrow("worker_state", fresh_seconds, forgotten_seconds)
        return dict(row) if row else {}

    async def oldest_confirmation(self) -> float | None:
        """Seconds since the registry last confirmed a model URI, the longest; None where there is none."""
        row = await self._fetchrow("oldest_confirmation")
        return row["seconds"] if row else None

    async def serving_state(self, *, stale_seconds: float) -> list[asyncpg.Record]:
        """By model URI and version: model_uri, version, processes, size_bytes."""
        return await self._fetch("serving_state", stale_seconds)

    async def failing_loads(self, *, since_seconds: float) -> list[asyncpg.Record]:
        """By model URI: model_uri, versions."""
        return await self._fetch("failing_loads", since_seconds)
