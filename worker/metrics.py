"""What this process counts of its work, and how it tells the ledger, where sums outlive processes that are recycled.

What a process had not told yet when it is killed, of some seconds at most, is lost.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence, Set
from uuid import UUID

from pyfunq import metrics
from pyfunq.entries import ClaimedJob, Outcome
from pyfunq.job import JobStatus
from pyfunq.lanes import lane_of
from pyfunq.metric_ledger import MetricLedger
from pyfunq.metrics import MOST_MODELS, Recorder, models_in, with_models

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10.0


class ProcessRecorder(Recorder):
    """Beside what it counted, what the process's cache holds."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = (0, 0)
        """Bytes and models."""
        self.told_cache: tuple[UUID, tuple[int, int]] | None = None


recorder = ProcessRecorder()
"""This process's; the parent of forked ones counts nothing."""


def claimed(jobs: Sequence[ClaimedJob]) -> None:
    """Jobs of one model and queue that this process has taken."""
    if new := [job for job in jobs if job.attempt == 1]:
        recorder.observe(metrics.WAIT_SECONDS, _ages(new), new[0].model_uri, lane_of(new[0].queue))


def predicted(jobs: Sequence[ClaimedJob], seconds: float) -> None:
    """A call of a model for these jobs that answered."""
    recorder.observe(metrics.PREDICT_SECONDS, (seconds,), jobs[0].model_uri)
    recorder.observe(metrics.BATCH_JOBS, (len(jobs),))
    recorder.observe(metrics.BATCH_ROWS, (sum([job.rows for job in jobs]),))


def completed(outcomes: Sequence[Outcome], recorded: Set[UUID]) -> None:
    """Outcomes of jobs of one model and queue, of which some were recorded."""
    if len(recorded) < len(outcomes):
        outcomes = [o for o in outcomes if o.job.id in recorded]
    for status in {o.status for o in outcomes}:
        ended([o.job for o in outcomes if o.status is status], status)


def ended(jobs: Sequence[ClaimedJob], status: JobStatus) -> None:
    """Jobs of one model and queue that came to this final status here."""
    if jobs:
        recorder.count(metrics.COMPLETED, jobs[0].model_uri, str(status), by=len(jobs))
        recorder.observe(metrics.JOB_SECONDS, _ages(jobs), jobs[0].model_uri, lane_of(jobs[0].queue))


def loaded(seconds: float) -> None:
    recorder.observe(metrics.LOAD_SECONDS, (seconds,))


def not_loaded() -> None:
    recorder.count(metrics.LOAD_ERRORS)


def evicted(models: int) -> None:
    if models:
        recorder.count(metrics.EVICTED, by=models)


def cached(size_bytes: int, models: int) -> None:
    """What the process's cache holds now."""
    recorder.cache = (size_bytes, models)


def downloaded(size_bytes: int, seconds: float) -> None:
    recorder.count(metrics.DOWNLOAD_BYTES, by=size_bytes)
    recorder.observe(metrics.DOWNLOAD_SECONDS, (seconds,))


def rescued(**jobs: int) -> None:
    """How many jobs came to each outcome."""
    for outcome, n in jobs.items():
        if n:
            recorder.count(metrics.RESCUED, outcome, by=n)


def watched(seconds: float, *, answered: bool) -> None:
    """A look at the registry, and whether it told of all models."""
    recorder.observe(metrics.WATCH_SECONDS, (seconds,))
    if not answered:
        recorder.count(metrics.WATCH_ERRORS)


def delivered(outcome: str, seconds: float) -> None:
    """An attempt to deliver a webhook: `delivered`, `failed`, `refused` (a forbidden address) or `given_up`."""
    recorder.count(metrics.WEBHOOKS, outcome)
    recorder.observe(metrics.WEBHOOK_SECONDS, (seconds,))


async def keep_telling(ledger: MetricLedger, worker_id: Callable[[], UUID], seconds: float) -> None:
    """Apart from the heartbeat, which nothing here may hold up."""
    while True:
        await asyncio.sleep(seconds)
        await tell(ledger, worker_id())


async def tell(ledger: MetricLedger, worker_id: UUID, *, within_seconds: float = _PATIENCE_SECONDS) -> None:
    """Adds what was counted since the last time; what cannot be told now is told the next time."""
    taken, cache = recorder.take(), (worker_id, recorder.cache)
    try:
        async with asyncio.timeout(within_seconds):
            if cache != recorder.told_cache and await ledger.note_cache(worker_id, *recorder.cache):
                recorder.told_cache = cache
            if taken:
                models = models_in(taken)
                named = await ledger.name_metric_models(models, at_most=MOST_MODELS) if models else set()
                await ledger.add_to_metrics(worker_id, with_models(taken, named))
    except BaseException as exc:
        recorder.put_back(taken)
        if not isinstance(exc, Exception):
            raise
        log.debug("what was counted is told later: %s", type(exc).__name__)


def _ages(jobs: Sequence[ClaimedJob]) -> list[float]:
    """Seconds since they were made, as their ids say: by the clock of whoever submitted them."""
    now = time.time()
    ages = [now - (job.id.int >> 80) * 0.001 for job in jobs]
    return ages if min(ages) >= 0 else [max(0.0, age) for age in ages]
