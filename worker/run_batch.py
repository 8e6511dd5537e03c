"""One page of jobs as named steps: claim, resolve, load, group, predict, record."""

import logging
import traceback
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from pyfunq.errors import ModelRaised, PyFunQError
from pyfunq.fault_points import FaultPoint, reach
from pyfunq.job import JobError, JobStatus
from pyfunq.ledger import ClaimedJob, ModelVersion, Outcome
from worker.frames import build_frame, encode_output, layout_key, model_error_text, split_output
from worker.model_cache import LoadedModel
from worker.process import WorkerProcess

log = logging.getLogger(__name__)

_DEPENDENCY_PAUSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded version in use for some jobs."""

    loaded: LoadedModel
    version: ModelVersion
    confidence: bool


def run_page(process: WorkerProcess, page_id: UUID) -> str:
    """Predicts what the page has and what may come along, until the page is empty; returns a line for operators."""
    counts: dict[str, int] = {}
    reach(FaultPoint.BEFORE_CLAIM)
    while jobs := process.claim(page_id):
        for outcome in run_jobs(process, jobs):
            counts[outcome] = counts.get(outcome, 0) + 1
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items())) or "its jobs went with another message"


def run_jobs(process: WorkerProcess, jobs: Sequence[ClaimedJob]) -> list[str]:
    """Takes claimed jobs of one model to their ends; what happened to each, as words that may repeat."""
    reach(FaultPoint.AFTER_CLAIM)
    try:
        version, confidence = process.resolve(jobs[0])
        with process.models.use(jobs[0].model_uri, version) as loaded:
            process.publish_signature(loaded, version)
            outcomes = predict(Model(loaded, version, confidence), jobs)
    except PyFunQError as exc:
        if exc.retryable:
            log.warning("%d jobs of %s wait: %s", len(jobs), jobs[0].model_uri, exc)
            process.release(jobs, _DEPENDENCY_PAUSE_SECONDS)
            return ["put back"] * len(jobs)
        outcomes = [failed(job, exc) for job in jobs]
    except Exception as exc:  # a defect of this program must not leave jobs running for ever
        # Where it happened and not what it said: its message may hold inputs.
        where = "".join(traceback.format_tb(exc.__traceback__))
        log.error("%d jobs of %s failed with %s\n%s", len(jobs), jobs[0].model_uri, type(exc).__name__, where)
        outcomes = [failed(job, PyFunQError(f"internal error: {type(exc).__name__}")) for job in jobs]
    reach(FaultPoint.PREDICTING)
    recorded = process.record(outcomes)
    return [_words(o) if o.job.id in recorded else "not kept" for o in outcomes]


def predict(model: Model, jobs: Sequence[ClaimedJob]) -> list[Outcome]:
    """An outcome for every job, whatever its neighbours hold."""
    outcomes: list[Outcome] = []
    groups: dict[Hashable, list[ClaimedJob]] = {}
    for job in jobs:
        try:
            groups.setdefault(_company(model, job), []).append(job)
        except PyFunQError as exc:
            outcomes.append(failed(job, exc, model.version))
    for group in groups.values():
        outcomes.extend(_predict_group(model, group))
    return outcomes


def _company(model: Model, job: ClaimedJob) -> Hashable:
    """Jobs with equal keys may share a call. One that was taken before may have killed its worker: it goes alone."""
    if job.attempt > 1:
        return job.id
    return job.input_format, job.params, layout_key(job.input_format, job.input, model.loaded.schema)


def _predict_group(model: Model, group: Sequence[ClaimedJob]) -> Iterator[Outcome]:
    """One call for the group; if it fails, halves of it, until those that make it fail stand alone."""
    try:
        yield from _predict_together(model, group)
    except PyFunQError as exc:
        if len(group) == 1:
            yield failed(group[0], exc, model.version)
            return
        yield from _predict_group(model, group[: len(group) // 2])
        yield from _predict_group(model, group[len(group) // 2 :])


def _predict_together(model: Model, group: Sequence[ClaimedJob]) -> list[Outcome]:
    frame = build_frame(group[0].input_format, [job.input for job in group], model.loaded.schema)
    output = _call(model, group, frame)
    rows = [job.rows for job in group]
    parts = split_output(output, rows)
    if parts is None:
        if len(group) > 1:
            return [outcome for job in group for outcome in _predict_group(model, [job])]
        parts = [output]
    scores = _confidence(model, frame, rows)
    return [_succeeded(model, job, part, score) for job, part, score in zip(group, parts, scores, strict=True)]


def _call(model: Model, group: Sequence[ClaimedJob], frame: Any) -> Any:
    params = group[0].params
    try:
        return model.loaded.pyfunc.predict(frame, params=orjson.loads(params) if params else None)
    except Exception as exc:  # whatever the model's own code raises
        if len(group) > 1:  # it is asked again, in halves, before anyone is told
            raise ModelRaised from exc
        raise ModelRaised(model_error_text(exc, [(group[0].input_format, group[0].input)])) from exc


def _confidence(model: Model, frame: Any, rows: Sequence[int]) -> list[list[float] | None]:
    """The largest class probability of each row, by job, where that was asked for and the model knows any."""
    if not model.confidence or model.loaded.predict_proba is None:
        return [None] * len(rows)
    try:
        highest = [float(p) for p in model.loaded.predict_proba(frame).max(axis=1)]
    except Exception as exc:  # a score is an extra: the prediction stands without it
        log.warning("no confidence scores from %s: %s", model.version, type(exc).__name__)
        return [None] * len(rows)
    ends = iter(highest)
    return [[next(ends) for _ in range(n)] for n in rows]


def _succeeded(model: Model, job: ClaimedJob, part: Any, confidence: list[float] | None) -> Outcome:
    try:
        result_format, result = encode_output(part, arrow=job.input_format == "arrow")
    except PyFunQError as exc:
        return failed(job, exc, model.version)
    return Outcome(
        job=job,
        status=JobStatus.SUCCEEDED,
        version_id=model.version.id,
        result_format=result_format,
        result=result,
        confidence=confidence,
    )


def failed(job: ClaimedJob, error: PyFunQError, version: ModelVersion | None = None) -> Outcome:
    return Outcome(
        job=job,
        status=JobStatus.FAILED,
        version_id=version.id if version else None,
        error=JobError(code=error.code, message=error.message),
    )


def _words(outcome: Outcome) -> str:
    return str(outcome.status) if outcome.error is None else f"{outcome.status} ({outcome.error.code})"
