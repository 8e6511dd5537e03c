"""The ledger as metrics: asked at a scrape, each statement bounded, and not again for some seconds."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from pyfunq import metrics
from pyfunq.errors import PyFunQError
from pyfunq.lanes import line_of
from pyfunq.metrics import MOST_MODELS, Metric, Sample, models_in, with_models

log = logging.getLogger(__name__)

_FRESH_SECONDS = 5.0
_LARGEST_SHARE = 0.05
"""Counting a long queue takes a while; scrapes must not be what keeps Postgres busy."""
_PATIENCE_SECONDS = 8.0
"""A scraper waits for 10 s by default."""
_FORGOTTEN_SECONDS = 600.0
_MOST_PAIRS = 2_000
_MOST_JOBS = 100_000


class MetricSource(Protocol):
    """What is needed of the ledger; see `MetricLedger`."""

    async def metric_totals(self) -> list[Sample]: ...
    async def name_metric_models(self, model_uris: set[str], *, at_most: int) -> set[str]: ...
    async def queue_state(self, *, most_pairs: int, at_most: int) -> list[Any]: ...
    async def count_states(self, *, at_most: int) -> tuple[int, int]: ...
    async def worker_state(self, *, fresh_seconds: float, forgotten_seconds: float) -> dict[str, Any]: ...
    async def oldest_confirmation(self) -> float | None: ...
    async def serving_state(self, *, stale_seconds: float) -> list[Any]: ...
    async def failing_loads(self, *, since_seconds: float) -> list[Any]: ...


class LedgerMetrics:
    """Belongs to the event loop that asks; scrapes at the same time share an answer."""

    def __init__(
        self, ledger: MetricSource, *, stale_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`stale_seconds`: a worker process that was silent for this long is taken for dead."""
        self._ledger = ledger
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._known: list[Sample] = []
        self._fresh_until = float("-inf")
        self._asking: asyncio.Task[list[Sample]] | None = None

    async def samples(self) -> list[Sample]:
        """What the ledger says, some seconds old at most; only that it is away where it does not answer in time."""
        if self._clock() < self._fresh_until:
            return self._known
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(self._asking), _PATIENCE_SECONDS)
        except (PyFunQError, TimeoutError) as exc:
            log.warning("no metrics of the ledger: %s", type(exc).__name__)
            return [_gauge(metrics.LEDGER_UP, 0.0)]

    async def close(self) -> None:
        if self._asking is not None and not self._asking.done():
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> list[Sample]:
        started = self._clock()
        totals = await self._ledger.metric_totals()
        gauges = [*await self._queues(), *await self._jobs(), *await self._workers(), *await self._models()]
        named = await self._ledger.name_metric_models(models_in(gauges), at_most=MOST_MODELS)
        oldest = _oldest(gauges, named)
        others = [s for s in gauges if s.name != metrics.OLDEST_QUEUED.name]
        now = self._clock()
        self._known = [_gauge(metrics.LEDGER_UP, 1.0), *totals, *oldest, *with_models(others, named)]
        self._fresh_until = now + max(_FRESH_SECONDS, (now - started) / _LARGEST_SHARE)
        return self._known

    async def _queues(self) -> list[Sample]:
        found = []
        for queue, model_uri, oldest, jobs in await self._ledger.queue_state(
            most_pairs=_MOST_PAIRS, at_most=_MOST_JOBS
        ):
            labels = (line_of(queue), model_uri)
            found += [_gauge(metrics.QUEUE_DEPTH, jobs, *labels), _gauge(metrics.OLDEST_QUEUED, oldest, *labels)]
        return found

    async def _jobs(self) -> list[Sample]:
        running, dead = await self._ledger.count_states(at_most=_MOST_JOBS)
        return [_gauge(metrics.RUNNING_JOBS, running), _gauge(metrics.DEAD_JOBS, dead)]

    async def _workers(self) -> list[Sample]:
        state = await self._ledger.worker_state(fresh_seconds=self._stale_seconds, forgotten_seconds=_FORGOTTEN_SECONDS)
        told = (
            (metrics.WORKER_PROCESSES, state["processes"]),
            (metrics.HEARTBEAT_AGE, state["heartbeat_age"]),
            (metrics.CACHE_BYTES, state["cache_bytes"]),
            (metrics.CACHE_MODELS, state["cache_models"]),
            (metrics.RESOLUTION_AGE, await self._ledger.oldest_confirmation()),
        )
        return [_gauge(metric, value) for metric, value in told if value is not None]

    async def _models(self) -> list[Sample]:
        found = []
        for model_uri, version, processes, size_bytes in await self._ledger.serving_state(
            stale_seconds=self._stale_seconds
        ):
            found.append(_gauge(metrics.SERVING_PROCESSES, processes, model_uri, version))
            found.append(_gauge(metrics.SERVING_BYTES, size_bytes, model_uri, version))
        for model_uri, versions in await self._ledger.failing_loads(since_seconds=_FORGOTTEN_SECONDS):
            found.append(_gauge(metrics.LOAD_FAILURES, versions, model_uri))
        return found


def _gauge(metric: Metric, value: float, *labels: str) -> Sample:
    return Sample(metric.name, labels, float(value))


def _oldest(gauges: list[Sample], named: set[str]) -> list[Sample]:
    """Of a line's queues, and of the models without a label of their own, the age of the oldest."""
    oldest: dict[tuple[str, ...], Sample] = {}
    for gauge in gauges:
        if gauge.name == metrics.OLDEST_QUEUED.name:
            (one,) = with_models([gauge], named)
            if one.labels not in oldest or oldest[one.labels].total < one.total:
                oldest[one.labels] = one
    return list(oldest.values())
