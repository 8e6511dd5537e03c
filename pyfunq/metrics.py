"""What PyFunQ measures: each metric's name, kind, labels and meaning, and where a process keeps what it counted."""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

MOST_MODELS = 200
"""So many model URIs have a label of their own; the others share `OTHER`."""
OTHER = "other"

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 100_000.0)

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Of a histogram: upper bounds, inclusive, without infinity."""


METRICS: dict[str, Metric] = {}
"""All of them, by name."""


def _counter(name: str, text: str, *labels: str) -> Metric:
    return _known(Metric(f"pyfunq_{name}_total", "counter", text, labels))


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return _known(Metric(f"pyfunq_{name}", "gauge", text, labels))


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Metric:
    return _known(Metric(f"pyfunq_{name}", "histogram", text, labels, buckets))


def _known(metric: Metric) -> Metric:
    METRICS[metric.name] = metric
    return metric


# As the ledger says when it is asked.
LEDGER_UP = _gauge("ledger_up", "1 if Postgres answered; without it, nothing of the ledger is told.")
QUEUE_DEPTH = _gauge(
    "queue_depth", "Queued jobs; of a model in a Redis queue at most 100,000 are counted.", "queue", "model"
)
OLDEST_QUEUED = _gauge("oldest_queued_age_seconds", "Age of the job that is queued longest.", "queue", "model")
RUNNING_JOBS = _gauge("running_jobs", "Jobs that worker processes have claimed, at most 100,000 counted.")
DEAD_JOBS = _gauge("dead_jobs", "Jobs that cost too many worker processes, at most 100,000 counted.")
WORKER_PROCESSES = _gauge("worker_processes", "Worker processes whose heartbeat is fresh.")
HEARTBEAT_AGE = _gauge(
    "worker_heartbeat_age_seconds",
    "The oldest heartbeat of processes heard within 10 minutes that did not say they ended.",
)
RESOLUTION_AGE = _gauge(
    "resolution_age_seconds", "Time since the registry last confirmed what model URIs stand for, the longest."
)
SERVING_PROCESSES = _gauge(
    "serving_processes", "Worker processes that serve a model with a version.", "model", "version"
)
SERVING_BYTES = _gauge("serving_memory_bytes", "Memory that these take with it, all together.", "model", "version")
LOAD_FAILURES = _gauge(
    "load_failures", "Versions that worker processes could not load within 10 minutes, and have not since.", "model"
)
CACHE_BYTES = _gauge("cache_bytes", "Memory of the models in the worker processes' caches.")
CACHE_MODELS = _gauge("cache_models", "Model versions in the worker processes' caches.")

# What worker processes did, all together.
COMPLETED = _counter("jobs_completed", "Jobs that came to a final status in a worker.", "model", "outcome")
JOB_SECONDS = _histogram("job_duration_seconds", "From submit to final status.", "model", "lane")
WAIT_SECONDS = _histogram("queue_wait_seconds", "From submit to the first claim.", "model", "lane")
PREDICT_SECONDS = _histogram("predict_seconds", "A call of a model that answered.", "model")
BATCH_ROWS = _histogram("batch_rows", "Rows of a call of a model.", buckets=_SIZES)
BATCH_JOBS = _histogram("batch_jobs", "Jobs of a call of a model.", buckets=_SIZES)
LOAD_SECONDS = _histogram("model_load_seconds", "Loading a version into a process's memory, its download included.")
LOAD_ERRORS = _counter("model_load_errors", "Versions that could not be loaded.")
EVICTED = _counter("models_evicted", "Versions that left a process's cache for want of room.")
DOWNLOAD_SECONDS = _histogram("model_download_seconds", "Fetching a version's files to a host.")
DOWNLOAD_BYTES = _counter("model_download_bytes", "Bytes of model files fetched to hosts.")
RESCUED = _counter("jobs_rescued", "What rescue did: put_back, dead, expired, published again.", "outcome")
WATCH_SECONDS = _histogram("registry_watch_seconds", "A look at the registry.")
WATCH_ERRORS = _counter("registry_watch_errors", "Looks at the registry that got no answer, or not of all models.")
WEBHOOKS = _counter("webhook_deliveries", "Attempts to deliver a webhook.", "outcome")
WEBHOOK_SECONDS = _histogram("webhook_delivery_seconds", "An attempt to deliver a webhook.")

# What this API process did.
SUBMITTED = _counter("jobs_submitted", "Jobs accepted by this API process.", "model", "lane")
REQUESTS = _counter("http_requests", "Requests answered.", "route", "method", "status")
REQUEST_SECONDS = _histogram("http_request_duration_seconds", "From a request's head to its answer's end.", "route")
IN_PROGRESS = _gauge("http_requests_in_progress", "Requests that are being answered.")


@dataclass(slots=True)
class Sample:
    """What was counted for some labels. Of a histogram `total` is the sum, `counts` how many fell into each bucket."""

    name: str
    labels: tuple[str, ...]
    total: float = 0.0
    counts: list[int] | None = None
    """Not cumulative; one more than the metric has buckets."""

    def add(self, other: "Sample") -> None:
        self.total += other.total
        if self.counts is not None and other.counts is not None:
            self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]


class Recorder:
    """Counters and histograms of a process. Safe for its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[tuple[str, tuple[str, ...]], Sample] = {}

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        with self._lock:
            self._of(metric, labels).total += by

    def observe(self, metric: Metric, values: Sequence[float], *labels: str) -> None:
        """`values`: at least one."""
        with self._lock:
            sample = self._of(metric, labels)
            counts, buckets = sample.counts, metric.buckets
            assert counts is not None  # noqa: S101
            lowest = bisect_left(buckets, min(values))
            if len(values) == 1 or lowest == bisect_left(buckets, max(values)):  # so it is for most micro-batches
                counts[lowest] += len(values)
            else:
                for value in values:
                    counts[bisect_left(buckets, value)] += 1
            sample.total += sum(values)

    def samples(self) -> list[Sample]:
        """All of them, as copies."""
        with self._lock:
            return [Sample(s.name, s.labels, s.total, s.counts and list(s.counts)) for s in self._samples.values()]

    def take(self) -> list[Sample]:
        """What came since the last time; it is counted from nought again."""
        with self._lock:
            taken, self._samples = self._samples, {}
        return list(taken.values())

    def put_back(self, samples: Iterable[Sample]) -> None:
        """What was taken and could not be told."""
        with self._lock:
            for sample in samples:
                self._of(METRICS[sample.name], sample.labels).add(sample)

    def _of(self, metric: Metric, labels: tuple[str, ...]) -> Sample:
        key = (metric.name, labels)
        sample = self._samples.get(key)
        if sample is None:
            counts = [0] * (len(metric.buckets) + 1) if metric.kind == "histogram" else None
            sample = self._samples[key] = Sample(metric.name, labels, counts=counts)
        return sample


def with_models(samples: Iterable[Sample], named: frozenset[str] | set[str]) -> list[Sample]:
    """The same, but the labels `model` that are not among these are `OTHER`."""
    merged: dict[tuple[str, tuple[str, ...]], Sample] = {}
    for sample in samples:
        labels = tuple(
            value if label != "model" or value in named else OTHER
            for label, value in zip(METRICS[sample.name].labels, sample.labels, strict=True)
        )
        if (there := merged.get((sample.name, labels))) is not None:
            there.add(sample)
        else:
            merged[sample.name, labels] = Sample(sample.name, labels, sample.total, sample.counts)
    return list(merged.values())


def models_in(samples: Iterable[Sample]) -> set[str]:
    """The model URIs that are labels of these."""
    return {
        value
        for sample in samples
        for label, value in zip(METRICS[sample.name].labels, sample.labels, strict=True)
        if label == "model"
    }
