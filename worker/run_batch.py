"""Claimed jobs of one model as named steps: resolve, load, read, group, predict, and what each job's ending means."""

import logging
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from pyfunq.entries import ClaimedJob, ModelTags, ModelVersion, Outcome
from pyfunq.errors import InvalidInput, ModelDependencyUnavailable, ModelRaised, PyFunQError, TimedOut
from pyfunq.fault_points import FaultPoint, reach
from pyfunq.input_roots import InputRoots
from pyfunq.job import JobError, JobStatus
from worker.error_text import is_refusal, model_error_text
from worker.frames import Input, build_frame, read_inputs, table_input
from worker.loading import LoadedModel
from worker.params import check_params
from worker.predictions import encode_each, encode_output, split_output
from worker.process import OtherQueue, WorkerProcess
from worker.references import ReferenceReader
from worker.transient import what_is_away
from worker.watch import Drained, Withdrawn

log = logging.getLogger(__name__)

_ARROW = ("arrow", "reference")
"""Formats whose jobs get Arrow back."""


def _untimed(_: Sequence[ClaimedJob], seconds: float) -> None:
    return None


def _unlimited(_: Sequence[ClaimedJob], function: Callable[[], Any]) -> Any:
    return function()


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded version in use for some jobs; `call` runs what may take long, within the jobs' limits.

    `timed` is told how many seconds a call took that answered.
    """

    loaded: LoadedModel
    version: ModelVersion
    tags: ModelTags
    call: Callable[[Sequence[ClaimedJob], Callable[[], Any]], Any] = _unlimited
    read: Callable[[ClaimedJob, LoadedModel], Any] = ReferenceReader(InputRoots(())).read
    timed: Callable[[Sequence[ClaimedJob], float], None] = _untimed


class Ready(NamedTuple):
    """A job and its input as read, ready to be put in a frame with others."""

    job: ClaimedJob
    content: Any


@dataclass(frozen=True, slots=True)
class Setback:
    """A claimed job that did not end: what came in between says whether it waits, is tried again or is given back."""

    job: ClaimedJob
    error: PyFunQError


def run_jobs(process: WorkerProcess, jobs: Sequence[ClaimedJob]) -> list[str]:
    """Takes claimed jobs of one model to their ends; what happened to each, as words that may repeat."""
    endings = endings_of(process, jobs)
    outcomes = [end for end in endings if isinstance(end, Outcome)]
    words = recorded_words(outcomes, process.recorded(outcomes, process.start_recording(outcomes))) if outcomes else []
    return words + set_back(process, [end for end in endings if isinstance(end, Setback)])


def endings_of(process: WorkerProcess, jobs: Sequence[ClaimedJob]) -> list[Outcome | Setback]:
    """An ending for each of the claimed jobs, which are all of one model; nothing is recorded yet."""
    try:
        wanted, tags = process.desk.resolve(jobs[0])
        with process.serving.use(jobs[0].model_uri, wanted, partial(_load, process, jobs)) as loaded:
            model = Model(loaded, loaded.version, tags, process.call, process.references.read, process.timed)
            return predict(model, jobs)
    except PyFunQError as exc:
        return [ending(job, exc) for job in jobs]
    except Exception as exc:  # a defect of this program must not leave jobs running for ever
        # Where it happened and not what it said: its message may hold inputs.
        where = "".join(traceback.format_tb(exc.__traceback__))
        log.error("%d jobs of %s failed with %s\n%s", len(jobs), jobs[0].model_uri, type(exc).__name__, where)
        return [failed(job, PyFunQError(f"internal error: {type(exc).__name__}")) for job in jobs]


def _load(process: WorkerProcess, jobs: Sequence[ClaimedJob], load: Callable[[], Any]) -> Any:
    """Where the model is not in memory it need not come there: other workers may be meant to have it."""
    process.check_queue(jobs[0])
    return process.load(jobs, load)


def recorded_words(outcomes: Sequence[Outcome], recorded: Set[UUID]) -> list[str]:
    """What became of outcomes of which some were recorded."""
    return [_words(o) if o.job.id in recorded else "not kept" for o in outcomes]


def set_back(process: WorkerProcess, setbacks: Sequence[Setback]) -> list[str]:
    """Puts what did not end where it belongs."""
    words: list[str] = []
    kinds: dict[tuple[type[PyFunQError], str], list[Setback]] = {}
    for setback in setbacks:
        kinds.setdefault((type(setback.error), setback.error.message), []).append(setback)
    for alike in kinds.values():
        word = _set_back(process, [setback.job for setback in alike], alike[0].error)
        words.extend([word] * len(alike))
    return words


def _set_back(process: WorkerProcess, jobs: Sequence[ClaimedJob], error: PyFunQError) -> str:
    if isinstance(error, Drained):
        reach(FaultPoint.DRAINING)
        process.give_back(jobs)
        return "given back"
    if isinstance(error, OtherQueue):
        process.give_back(jobs, error.own)
        return f"handed to {error.own}"
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
    alike: dict[tuple[str, bytes | None], list[ClaimedJob]] = {}
    for job in jobs:
        alike.setdefault((job.input_format, job.params), []).append(job)
    endings: list[Outcome | Setback] = []
    groups: dict[Hashable, list[Ready]] = {}
    for (input_format, params), several in alike.items():
        try:
            _check_params(model, params)
        except InvalidInput as exc:
            endings.extend(ending(job, exc, model.version) for job in several)
            continue
        for job, read in zip(several, _read(model, input_format, several), strict=True):
            if isinstance(read, PyFunQError):
                endings.append(ending(job, read, model.version))
            else:
                # One whose process died may have killed it: it goes alone.
                company = job.id if job.crashes else (input_format, params, read.key)
                groups.setdefault(company, []).append(Ready(job, read.content))
    for group in groups.values():
        for part in _calls(group, model.tags.max_rows):
            endings.extend(_predict_group(model, part))
    return endings


def _check_params(model: Model, params: bytes | None) -> None:
    if params:
        check_params(orjson.loads(params), model.loaded.metadata.get_params_schema())


def _calls(group: list[Ready], max_rows: int | None) -> Iterator[list[Ready]]:
    """The group in as few parts as the model takes: in none more rows than this, but for a job that has more."""
    rows = begin = 0
    for i, (job, _) in enumerate(group):
        if max_rows is not None and begin < i and rows + job.rows > max_rows:
            yield group[begin:i]
            begin, rows = i, 0
        rows += job.rows
    yield group[begin:]


def _read(model: Model, input_format: str, jobs: Sequence[ClaimedJob]) -> Sequence[Input | PyFunQError]:
    """The jobs' inputs; those that are elsewhere are read within their limits, for a share may hang."""
    if input_format != "reference":
        return read_inputs(input_format, [job.input for job in jobs], model.loaded.schema)
    found: list[Input | PyFunQError] = []
    for job in jobs:
        try:
            table = model.call([job], partial(model.read, job, model.loaded))
            found.append(table_input(table, model.loaded.schema))
        except PyFunQError as exc:
            found.append(exc)
    return found


def _predict_group(model: Model, group: Sequence[Ready]) -> Iterator[Outcome | Setback]:
    """One call for the group; if it fails, parts of it, until those that make it fail stand alone."""
    try:
        yield from _predict_together(model, group)
    except PyFunQError as exc:
        parts = [] if len(group) == 1 else _parts(group, exc)
        if not parts:
            for job, _ in group:
                yield ending(job, exc, model.version)
        for part in parts:
            yield from _predict_group(model, part)


def _parts(group: Sequence[Ready], exc: PyFunQError) -> list[Sequence[Ready]]:
    """What to call next when the call of a group of several failed; nothing if the failure concerns them all."""
    match exc:
        case Drained():
            return []
        case Withdrawn():
            gone = [ready for ready in group if ready.job.id in exc.ids]
            staying = [ready for ready in group if ready.job.id not in exc.ids]
            return [part for part in (staying, *([ready] for ready in gone)) if part]
        case TimedOut():
            return [[ready] for ready in group]
        case ModelDependencyUnavailable() if not any(ready.job.delayed for ready in group):
            return []
    return [group[: len(group) // 2], group[len(group) // 2 :]]


def _predict_together(model: Model, group: Sequence[Ready]) -> list[Outcome | Setback]:
    jobs = [ready.job for ready in group]
    frame = build_frame(jobs[0].input_format, [ready.content for ready in group], model.loaded.schema)
    # A model may change what it is given; its scores are to be those of the input.
    output = _call(model, group, frame.copy() if _scores(model) else frame)
    rows = [job.rows for job in jobs]
    if jobs[0].input_format not in _ARROW and (results := encode_each(output, rows)) is not None:
        scores = _confidence(model, jobs, frame)
        return [
            Outcome(job, JobStatus.SUCCEEDED, model.version.id, "json", result, score)
            for job, result, score in zip(jobs, results, scores, strict=True)
        ]
    parts = split_output(output, rows, by_name=isinstance(output, dict) and model.loaded.answers_by_name)
    if parts is None:
        if len(group) > 1:
            return [end for ready in group for end in _predict_group(model, [ready])]
        parts = [output]
    scores = _confidence(model, jobs, frame)
    return [_succeeded(model, job, part, score) for job, part, score in zip(jobs, parts, scores, strict=True)]


def _call(model: Model, group: Sequence[Ready], frame: Any) -> Any:
    jobs = [ready.job for ready in group]
    asked = orjson.loads(jobs[0].params) if jobs[0].params else None
    started = time.monotonic()
    try:
        output = model.call(jobs, lambda: model.loaded.predict(frame, asked))
        model.timed(jobs, time.monotonic() - started)
        return output
    except (TimedOut, Withdrawn, Drained):
        raise
    except Exception as exc:  # whatever the model's own code raises
        if away := what_is_away(exc):
            raise ModelDependencyUnavailable(f"what the model asks is away: {away}") from exc
        if len(jobs) > 1:  # it is asked again, in halves, before anyone is told
            raise ModelRaised from exc
        input_ = group[0].content if jobs[0].input_format in _ARROW else jobs[0].input
        told = [(jobs[0].input_format, input_), ("params", jobs[0].params or b"{}")]
        text = model_error_text(exc, told)
        raise (InvalidInput(text) if is_refusal(exc) else ModelRaised(text)) from exc


def _scores(model: Model) -> Callable[[Any], Any] | None:
    return model.loaded.predict_proba if model.tags.confidence else None


def _confidence(model: Model, jobs: Sequence[ClaimedJob], frame: Any) -> list[list[float] | None]:
    """The largest class probability of each row, by job, where that was asked for and the model knows any."""
    score = _scores(model)
    if score is None:
        return [None] * len(jobs)
    try:
        highest = [float(p) for p in model.call(jobs, lambda: score(frame)).max(axis=1)]
    except (TimedOut, Withdrawn, Drained):
        raise
    except Exception as exc:  # a score is an extra: the prediction stands without it
        log.warning("no confidence scores from %s: %s", model.version, type(exc).__name__)
        return [None] * len(jobs)
    ends = iter(highest)
    return [[next(ends) for _ in range(job.rows)] for job in jobs]


def _succeeded(model: Model, job: ClaimedJob, part: Any, confidence: list[float] | None) -> Outcome | Setback:
    try:
        result_format, result = encode_output(part, arrow=job.input_format in _ARROW)
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
