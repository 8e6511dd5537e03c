"""One page of jobs as named steps: claim, resolve, load, group, predict, settle."""

import logging
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from pyfunq.entries import ClaimedJob, ModelVersion, Outcome
from pyfunq.errors import ModelDependencyUnavailable, ModelRaised, PyFunQError, TimedOut
from pyfunq.fault_points import FaultPoint, reach
from pyfunq.job import JobError, JobStatus
from worker.frames import build_frame, encode_output, layout_key, model_error_text, split_output
from worker.model_cache import LoadedModel
from worker.process import WorkerProcess
from worker.transient import what_is_away
from worker.watch import Drained, Withdrawn

log = logging.getLogger(__name__)


def _unlimited(_: Sequence[ClaimedJob], function: Callable[[], Any]) -> Any:
    return function()


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded version in use for some jobs; `call` runs what may take long, within the jobs' limits."""

    loaded: LoadedModel
    version: ModelVersion
    confidence: bool
    call: Callable[[Sequence[ClaimedJob], Callable[[], Any]], Any] = _unlimited


@dataclass(frozen=True, slots=True)
class Setback:
    """A claimed job that did not end: what came in between says whether it waits, is tried again or is given back."""

    job: ClaimedJob
    error: PyFunQError


def run_page(process: WorkerProcess, page_id: UUID) -> str:
    """Predicts what the page has and what may come along, until the page is empty; returns a line for operators."""
    counts: dict[str, int] = {}
    reach(FaultPoint.BEFORE_CLAIM)
    while not process.drain.begun and (jobs := process.claim(page_id)):
        for outcome in run_jobs(process, jobs):
            counts[outcome] = counts.get(outcome, 0) + 1
    if process.drain.begun:
        reach(FaultPoint.DRAINING)
        process.pass_on(page_id)
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items())) or "its jobs went with another message"


def run_jobs(process: WorkerProcess, jobs: Sequence[ClaimedJob]) -> list[str]:
    """Takes claimed jobs of one model to their ends; what happened to each, as words that may repeat."""
    reach(FaultPoint.AFTER_CLAIM)
    endings = _endings(process, jobs)
    reach(FaultPoint.PREDICTING)
    return settle(process, endings)


def _endings(process: WorkerProcess, jobs: Sequence[ClaimedJob]) -> list[Outcome | Setback]:
    try:
        version, confidence = process.resolve(jobs[0])
        with ExitStack() as in_use:
            using = process.models.use(jobs[0].model_uri, version)
            loaded = process.load(jobs, lambda: in_use.enter_context(using))
            process.publish_signature(loaded, version)
            return predict(Model(loaded, version, confidence, process.call), jobs)
    except PyFunQError as exc:
        return [ending(job, exc) for job in jobs]
    except Exception as exc:  # a defect of this program must not leave jobs running for ever
        # Where it happened and not what it said: its message may hold inputs.
        where = "".join(traceback.format_tb(exc.__traceback__))
        log.error("%d jobs of %s failed with %s\n%s", len(jobs), jobs[0].model_uri, type(exc).__name__, where)
        return [failed(job, PyFunQError(f"internal error: {type(exc).__name__}")) for job in jobs]


def settle(process: WorkerProcess, endings: Sequence[Outcome | Setback]) -> list[str]:
    """Records what ended, and puts the rest where it belongs."""
    words: list[str] = []
    outcomes = [end for end in endings if isinstance(end, Outcome)]
    if outcomes:
        recorded = process.record(outcomes)
        words.extend(_words(o) if o.job.id in recorded else "not kept" for o in outcomes)
    setbacks: dict[tuple[type[PyFunQError], str], list[Setback]] = {}
    for end in endings:
        if isinstance(end, Setback):
            setbacks.setdefault((type(end.error), end.error.message), []).append(end)
    for alike in setbacks.values():
        word = _set_back(process, [setback.job for setback in alike], alike[0].error)
        words.extend([word] * len(alike))
    return words


def _set_back(process: WorkerProcess, jobs: Sequence[ClaimedJob], error: PyFunQError) -> str:
    if isinstance(error, Drained):
        reach(FaultPoint.DRAINING)
        process.give_back(jobs)
        return "given back"
    if isinstance(error, TimedOut):
        process.crash(jobs, error.message)
        return error.message
    if error.retryable:
        log.warning("%d jobs of %s wait: %s", len(jobs), jobs[0].model_uri, error)
        process.delay(jobs, error)
        return f"waiting ({error.code})"
    log.warning("%d jobs of %s are tried again: %s", len(jobs), jobs[0].model_uri, error.code)
    process.retry(jobs)
    return f"tried again ({error.code})"


def predict(model: Model, jobs: Sequence[ClaimedJob]) -> list[Outcome | Setback]:
    """An ending for every job, whatever its neighbours hold."""
    endings: list[Outcome | Setback] = []
    groups: dict[Hashable, list[ClaimedJob]] = {}
    for job in jobs:
        try:
            groups.setdefault(_company(model, job), []).append(job)
        except PyFunQError as exc:
            endings.append(ending(job, exc, model.version))
    for group in groups.values():
        endings.extend(_predict_group(model, group))
    return endings


def _company(model: Model, job: ClaimedJob) -> Hashable:
    """Jobs with equal keys may share a call. One whose process died may have killed it: it goes alone."""
    if job.crashes:
        return job.id
    return job.input_format, job.params, layout_key(job.input_format, job.input, model.loaded.schema)


def _predict_group(model: Model, group: Sequence[ClaimedJob]) -> Iterator[Outcome | Setback]:
    """One call for the group; if it fails, parts of it, until those that make it fail stand alone."""
    try:
        yield from _predict_together(model, group)
    except PyFunQError as exc:
        parts = [] if len(group) == 1 else _parts(group, exc)
        if not parts:
            for job in group:
                yield ending(job, exc, model.version)
        for part in parts:
            yield from _predict_group(model, part)


def _parts(group: Sequence[ClaimedJob], exc: PyFunQError) -> list[Sequence[ClaimedJob]]:
    """What to call next when the call of a group of several failed; nothing if the failure concerns them all."""
    match exc:
        case Drained():
            return []
        case Withdrawn():
            gone = [job for job in group if job.id in exc.ids]
            return [part for part in ([j for j in group if j not in gone], *([j] for j in gone)) if part]
        case TimedOut():
            return [[job] for job in group]
        case ModelDependencyUnavailable() if not any(job.delayed for job in group):
            return []
    return [group[: len(group) // 2], group[len(group) // 2 :]]


def _predict_together(model: Model, group: Sequence[ClaimedJob]) -> list[Outcome | Setback]:
    frame = build_frame(group[0].input_format, [job.input for job in group], model.loaded.schema)
    output = _call(model, group, frame)
    rows = [job.rows for job in group]
    parts = split_output(output, rows)
    if parts is None:
        if len(group) > 1:
            return [end for job in group for end in _predict_group(model, [job])]
        parts = [output]
    scores = _confidence(model, group, frame)
    return [_succeeded(model, job, part, score) for job, part, score in zip(group, parts, scores, strict=True)]


def _call(model: Model, group: Sequence[ClaimedJob], frame: Any) -> Any:
    params = group[0].params
    asked = orjson.loads(params) if params else None
    try:
        return model.call(group, lambda: model.loaded.pyfunc.predict(frame, params=asked))
    except (TimedOut, Withdrawn, Drained):
        raise
    except Exception as exc:  # whatever the model's own code raises
        if away := what_is_away(exc):
            raise ModelDependencyUnavailable(f"what the model asks is away: {away}") from exc
        if len(group) > 1:  # it is asked again, in halves, before anyone is told
            raise ModelRaised from exc
        raise ModelRaised(model_error_text(exc, [(group[0].input_format, group[0].input)])) from exc


def _confidence(model: Model, group: Sequence[ClaimedJob], frame: Any) -> list[list[float] | None]:
    """The largest class probability of each row, by job, where that was asked for and the model knows any."""
    if not model.confidence or model.loaded.predict_proba is None:
        return [None] * len(group)
    score = model.loaded.predict_proba
    try:
        highest = [float(p) for p in model.call(group, lambda: score(frame)).max(axis=1)]
    except Exception as exc:  # a score is an extra: the prediction stands without it
        log.warning("no confidence scores from %s: %s", model.version, type(exc).__name__)
        return [None] * len(group)
    ends = iter(highest)
    return [[next(ends) for _ in range(job.rows)] for job in group]


def _succeeded(model: Model, job: ClaimedJob, part: Any, confidence: list[float] | None) -> Outcome | Setback:
    try:
        result_format, result = encode_output(part, arrow=job.input_format == "arrow")
    except PyFunQError as exc:
        return ending(job, exc, model.version)
    return Outcome(
        job=job,
        status=JobStatus.SUCCEEDED,
        version_id=model.version.id,
        result_format=result_format,
        result=result,
        confidence=confidence,
    )


def ending(job: ClaimedJob, error: PyFunQError, version: ModelVersion | None = None) -> Outcome | Setback:
    """What an error means for a job: a setback if it was not the job's fault, hung, or is to be tried again."""
    again = error.retryable or isinstance(error, TimedOut) or job.failures < job.retries
    return Setback(job, error) if again and not isinstance(error, Withdrawn) else failed(job, error, version)


def failed(job: ClaimedJob, error: PyFunQError, version: ModelVersion | None = None) -> Outcome:
    return Outcome(
        job=job,
        status=JobStatus.FAILED,
        version_id=version.id if version else None,
        error=JobError(code=error.code, message=error.message),
    )


def _words(outcome: Outcome) -> str:
    return str(outcome.status) if outcome.error is None else f"{outcome.status} ({outcome.error.code})"
