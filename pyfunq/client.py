"""The client: submit jobs, wait for them, read their results; `AsyncClient`, and `Client` over it for everyone else."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, cast
from uuid import UUID

from pyfunq.admission import Admission
from pyfunq.entries import NewJob, request_digest
from pyfunq.errors import (
    BacklogFull,
    InvalidInput,
    LedgerUnavailable,
    PyFunQError,
    UnknownBatch,
    UnknownJob,
    WaitTimeout,
)
from pyfunq.ids import id_time, new_id
from pyfunq.inputs import EncodedInput, encode_input
from pyfunq.job import Batch, Job, JobError, JobStatus, Lane
from pyfunq.ledger import Ledger
from pyfunq.limits import JobLimits
from pyfunq.migrate import require_current
from pyfunq.model_uri import check_allowed, parse_model_uri
from pyfunq.outcomes import BatchPart, batch_part, decoded
from pyfunq.queue import Publisher, make_app
from pyfunq.results import with_index
from pyfunq.settings import Settings
from pyfunq.signature import Signature
from pyfunq.submitting import Submitter
from pyfunq.waiting import FinishedJobs

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
R = TypeVar("R")
Jobs = list[Job]  # the clients' method `list` hides the type in their bodies

_SIGNATURE_SECONDS = 2.0
_BATCH_POLL_SECONDS = 0.2
_CHUNKS_IN_FLIGHT = 8
_RESULTS_AT_ONCE = 16
_TIDY_SECONDS = 10.0


class AsyncClient:
    """Use it as `async with AsyncClient() as client`; it belongs to the event loop that entered it.

    Without arguments the addresses come from PYFUNQ_DATABASE_URL and PYFUNQ_REDIS_URL.
    """

    def __init__(self, settings: Settings | None = None, **overrides: Any) -> None:
        """`overrides` are fields of `Settings`, such as database_url and redis_url."""
        if settings is None:
            settings = Settings(**overrides)
        elif overrides:
            settings = settings.model_copy(update=overrides)
        self._settings = settings
        self._stack = AsyncExitStack()
        self._signatures: dict[str, tuple[float, Signature | None]] = {}

    async def __aenter__(self) -> Self:
        await require_current(self._settings.database)
        async with AsyncExitStack() as opened:
            self._ledger = await opened.enter_async_context(Ledger.open(self._settings.database))
            publisher = Publisher(make_app(self._settings))
            opened.callback(publisher.close)
            self._submitter = Submitter(self._ledger, publisher, keys_last_seconds=self._settings.idempotency_seconds)
            opened.push_async_callback(self._submitter.close)
            self._admission = Admission(
                lambda lane, at_most: self._ledger.count_queued(lane, at_most=at_most), self._settings.max_queued_jobs
            )
            opened.push_async_callback(self._admission.close)
            self._finished = FinishedJobs(self._ledger, self._settings.redis)
            opened.push_async_callback(self._finished.close)
            self._stack = opened.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def submit(
        self,
        model: str,
        inputs: Any,
        *,
        params: Mapping[str, Any] | None = None,
        lane: Lane | str = Lane.INTERACTIVE,
        expires_in: float | timedelta | None = None,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
        retries: int = 0,
        idempotency_key: str | None = None,
    ) -> Job:
        """Accepts one job: when this returns, it is committed.

        `inputs`: a mapping with one of MLflow's `dataframe_split`, `dataframe_records`, `instances` or `inputs`, a
        DataFrame or an Arrow table. `expires_in`: seconds after which it is no longer worth predicting. `timeout`:
        seconds that predicting it may take. `retries`: how often it is tried again when it fails. With
        `idempotency_key` (1 to 255 characters) the same request returns the same job, as it is now. Raises
        InvalidModelURI, ModelNotAllowed, InvalidInput, InputTooLarge, IdempotencyConflict, BacklogFull or
        LedgerUnavailable, and has accepted nothing; or AcceptanceUnknown.
        """
        limits = JobLimits.of(expires_in, timeout, retries, idempotency_key)
        (new,) = await self._new_jobs(model, [inputs], params, lane, limits)
        if new.idempotency_key:
            new = replace(new, request=request_digest(new.model_uri, new.lane, inputs, params, new.input))
        try:
            await self._admission.admit(new.lane, 1)
        except BacklogFull:
            # What was accepted before takes no room.
            if (other := await self._submitter.submitted_before(new)) is None:
                raise
            return await self._ledger.get(other)
        others = await self._submitter.submit([new])
        return await self._ledger.get(others[new.id]) if others else _as_job(new)

    async def submit_many(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        params: Mapping[str, Any] | None = None,
        lane: Lane | str = Lane.INTERACTIVE,
        expires_in: float | timedelta | None = None,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
        retries: int = 0,
    ) -> Jobs:
        """Accepts one job for each of the inputs, all or none; see `submit`."""
        new = await self._new_jobs(model, inputs, params, lane, JobLimits.of(expires_in, timeout, retries))
        if new:
            await self._admission.admit(new[0].lane, len(new))
            await self._submitter.submit(new)
        return [_as_job(job) for job in new]

    async def _new_jobs(
        self,
        model: str,
        inputs: Iterable[Any],
        params: Mapping[str, Any] | None,
        lane: Lane | str,
        limits: JobLimits,
    ) -> Sequence[NewJob]:
        model_uri, signature = await self._model(model)
        encoded = self._encode_all(inputs, params, signature, _lane(lane))
        return [
            NewJob(
                id=new_id(),
                model_uri=model_uri,
                input=one,
                lane=_lane(lane),
                max_attempts=self._settings.max_attempts,
                expires_at=limits.expires_at,
                timeout_seconds=limits.timeout_seconds,
                retries=limits.retries,
                idempotency_key=limits.idempotency_key,
            )
            for one in encoded
        ]

    async def submit_batch(
        self,
        model: str,
        source: Any,
        *,
        params: Mapping[str, Any] | None = None,
        chunk_rows: int | None = None,
        lane: Lane | str = Lane.BULK,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
        retries: int = 0,
        on_progress: Callable[[int], None] | None = None,
    ) -> Batch:
        """Accepts a backlog as jobs of `chunk_rows` rows each; returns when the last one is committed.

        `source`: the path of a Parquet, CSV or JSON Lines file, a DataFrame, or an iterable of DataFrames (read in a
        thread, a chunk at a time, so it may block). A file is checked whole before anything is accepted; when an
        iterable fails on the way, the jobs that still wait are cancelled and its error is raised. `timeout` and
        `retries` are each job's, see `submit`. `on_progress` is called with the number of rows committed so far.
        Where the lane holds as many jobs as it may, this waits until there is room.
        """
        from pyfunq.backlog import open_backlog

        limits = JobLimits.of(None, timeout, retries)
        model_uri, signature = await self._model(model)
        backlog = await asyncio.to_thread(open_backlog, source, signature=signature)
        chunks = backlog.chunks(chunk_rows or self._settings.chunk_rows, self._settings.max_input_bytes, params)
        batch_id = new_id()
        await self._ledger.open_batch(batch_id, model_uri, _describe(source))
        try:
            await self._submit_chunks(batch_id, model_uri, _lane(lane), chunks, limits, on_progress)
        except BaseException as exc:
            error = JobError(code=getattr(exc, "code", "interrupted"), message=f"submitting stopped: {_said(exc)}")
            with suppress(LedgerUnavailable):
                await asyncio.shield(self._ledger.fail_batch(batch_id, error))
            raise
        await self._ledger.close_batch(batch_id)
        return await self._ledger.batch(batch_id)

    async def get(self, job: Job | UUID | str) -> Job:
        """The job as it is now. Raises UnknownJob."""
        return await self._ledger.get(_job_id(job))

    async def list(
        self,
        *,
        status: JobStatus | str | None = None,
        model: str | None = None,
        batch: Batch | UUID | str | None = None,
        before: Job | UUID | str | None = None,
        limit: int = 50,
    ) -> Jobs:
        """Jobs, newest first; `before` the last one of the page before."""
        return await self._ledger.list_jobs(
            status=None if status is None else JobStatus(status),
            model_uri=None if model is None else str(parse_model_uri(model)),
            batch_id=None if batch is None else _batch_id(batch),
            before=None if before is None else _job_id(before),
            limit=limit,
        )

    async def wait(self, job: Job | UUID | str, timeout: float | None = None) -> Job:  # noqa: ASYNC109
        """The job once it is final. Raises WaitTimeout after `timeout` seconds (the job goes on), UnknownJob."""
        job_id = _job_id(job)
        if not isinstance(job, Job):
            now = await self._ledger.get(job_id)
            if now.is_final:
                return now
        try:
            async with asyncio.timeout(timeout):
                await self._finished.wait(job_id)
        except TimeoutError:
            raise WaitTimeout(f"job {job_id} was not finished after {timeout:g} s; it goes on") from None
        return await self._ledger.get(job_id)

    async def result(self, job: Job | UUID | str, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Waits for the job and returns its predictions.

        A list (JSON input) or a Series, DataFrame, array or list (DataFrame and Arrow input), one entry a row. Raises
        JobFailed, JobCancelled, JobExpired, JobDead, WaitTimeout or UnknownJob.
        """
        job_id = _job_id(job)
        stored = await self._ledger.result(job_id)
        if not stored.status.is_final:
            await self.wait(job if isinstance(job, Job) else job_id, timeout)
            stored = await self._ledger.result(job_id)
        return decoded(f"job {job_id}", stored)

    async def predict(self, model: str, df: "pd.DataFrame", timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Predicts a DataFrame through the queue: a Series or DataFrame with its index.

        More rows than a job holds become several jobs. Raises what `submit` and `result` raise.
        """
        import pandas as pd

        rows = self._settings.chunk_rows
        jobs = await self.submit_many(model, [df.iloc[i : i + rows] for i in range(0, max(1, len(df)), rows)])
        parts = await asyncio.gather(*(self.result(job, timeout) for job in jobs))
        starts = range(0, len(df), rows)
        return pd.concat([with_index(p, df.index[i : i + rows]) for i, p in zip(starts, parts, strict=True)])

    async def cancel(self, job: Job | UUID | str, *, terminate: bool = False) -> Job:
        """Withdraws the job: it is not predicted, or what is being predicted is not kept. A final job stays so.

        `terminate`: a call that predicts it now is stopped, within about two seconds.
        """
        job_id = _job_id(job)
        await self._ledger.cancel([job_id], terminate=terminate)
        return await self._ledger.get(job_id)

    async def requeue_dead(self, jobs: Iterable[Job | UUID | str]) -> int:
        """Puts dead jobs back with all their attempts; returns how many of these were dead."""
        ids = [_job_id(job) for job in jobs]
        pages = await self._ledger.requeue_dead(ids, [new_id() for _ in ids])
        await self._submitter.publish(pages)
        return len(pages)

    async def purge_dead(self, *, older_than_seconds: float = 0.0) -> int:
        """Deletes dead jobs, with their inputs, that ended longer ago than this; returns how many."""
        return await self._ledger.purge_dead(older_than_seconds=older_than_seconds)

    async def get_batch(self, batch: Batch | UUID | str) -> Batch:
        """The batch as it is now. Raises UnknownBatch."""
        return await self._ledger.batch(_batch_id(batch))

    async def wait_batch(
        self,
        batch: Batch | UUID | str,
        timeout: float | None = None,  # noqa: ASYNC109
        on_progress: Callable[[Batch], None] | None = None,
    ) -> Batch:
        """The batch once all its jobs are final. Raises WaitTimeout after `timeout` seconds; the batch goes on."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            asked = time.monotonic()
            now = await self.get_batch(batch)
            if on_progress is not None:
                on_progress(now)
            if now.is_final:
                return now
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout(f"batch {now.id} was not finished after {timeout:g} s; it goes on")
            # Counting a large batch takes a while; waiting for it must not be what keeps Postgres busy.
            await asyncio.sleep(max(_BATCH_POLL_SECONDS, 10 * (time.monotonic() - asked)))

    async def batch_results(self, batch: Batch | UUID | str) -> AsyncIterator[BatchPart]:
        """A finished batch's results in input order, a job's share at a time."""
        batch_id = _batch_id(batch)
        start = 0
        while parts := await self._ledger.batch_results(batch_id, start=start, limit=_RESULTS_AT_ONCE):
            for index, rows, stored in parts:
                yield batch_part(batch_id, index, rows, stored)
            start = parts[-1][0] + 1

    async def cancel_batch(self, batch: Batch | UUID | str) -> Batch:
        batch_id = _batch_id(batch)
        await self._ledger.cancel_batch(batch_id)
        return await self._ledger.batch(batch_id)

    async def _model(self, model: str) -> tuple[str, Signature | None]:
        """The canonical URI, and the signature of what it stands for where the ledger knows it."""
        uri = parse_model_uri(model)
        check_allowed(uri, self._settings.allowed_models)
        model_uri = str(uri)
        known = self._signatures.get(model_uri)
        if known is None or known[0] < time.monotonic():
            resolution = await self._ledger.resolution(model_uri)
            text = resolution and resolution.version.signature
            known = (time.monotonic() + _SIGNATURE_SECONDS, Signature.from_json(text) if text else None)
            self._signatures[model_uri] = known
        return model_uri, known[1]

    def _encode_all(
        self, inputs: Iterable[Any], params: Mapping[str, Any] | None, signature: Signature | None, lane: Lane
    ) -> Sequence[EncodedInput]:
        encoded = []
        known = len(inputs) if isinstance(inputs, Sized) else 0
        for i, one in enumerate(inputs):
            self._admission.check_fits(lane, max(known, i + 1))
            try:
                encoded.append(encode_input(one, params, signature=signature, max_bytes=self._settings.max_input_bytes))
            except InvalidInput as exc:
                if isinstance(inputs, Sequence) and len(inputs) == 1:
                    raise
                raise type(exc)(f"inputs[{i}]: {exc.message}", field=exc.field) from exc
        return encoded

    async def _submit_chunks(
        self,
        batch_id: UUID,
        model_uri: str,
        lane: Lane,
        chunks: Iterator[EncodedInput],
        limits: JobLimits,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        committed = 0
        room = asyncio.Semaphore(_CHUNKS_IN_FLIGHT)

        async def commit(job: NewJob) -> None:
            nonlocal committed
            try:
                await self._admission.admit_when_there_is_room(job.lane, 1)
                await self._submitter.submit([job])
            finally:
                room.release()
            committed += job.input.rows
            if on_progress is not None:
                on_progress(committed)

        try:
            async with asyncio.TaskGroup() as tasks:
                index = 0
                while True:
                    await room.acquire()
                    chunk = await asyncio.to_thread(next, chunks, None)
                    if chunk is None:
                        break
                    job = NewJob(
                        id=new_id(),
                        model_uri=model_uri,
                        input=chunk,
                        lane=lane,
                        max_attempts=self._settings.max_attempts,
                        timeout_seconds=limits.timeout_seconds,
                        retries=limits.retries,
                        batch_id=batch_id,
                        batch_index=index,
                    )
                    tasks.create_task(commit(job))
                    index += 1
        except* Exception as group:
            # What one chunk ran into is what the caller is told, not a group of the others' cancellations.
            raise group.exceptions[0] from None


class Client:
    """`AsyncClient` for programs without an event loop: the same methods, run on a loop in a thread of its own.

    Use it as a context manager, or call `close()`. Safe to use from several threads; not across a fork.
    """

    def __init__(self, settings: Settings | None = None, **overrides: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pyfunq-client", daemon=True)
        self._thread.start()
        self._client = AsyncClient(settings, **overrides)
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything submitted is committed and published."""
        if not self._loop.is_closed():
            self._run(self._client.__aexit__(None, None, None))
            self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, awaitable: Awaitable[R]) -> R:
        ended = threading.Event()

        async def run() -> R:
            try:
                return await awaitable
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                # An interrupted call tidies up, and needs the connections for it.
                ended.wait(_TIDY_SECONDS)
            raise

    @staticmethod
    def _bridge(
        method: Callable[Concatenate[AsyncClient, P], Awaitable[R]],
    ) -> "Callable[Concatenate[Client, P], R]":
        @wraps(method)
        def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
            result: R = self._run(method(self._client, *args, **kwargs))
            return result

        return cast(Callable[Concatenate[Any, P], R], call)

    submit = _bridge(AsyncClient.submit)
    submit_many = _bridge(AsyncClient.submit_many)
    submit_batch = _bridge(AsyncClient.submit_batch)
    get = _bridge(AsyncClient.get)
    list = _bridge(AsyncClient.list)
    wait = _bridge(AsyncClient.wait)
    result = _bridge(AsyncClient.result)
    predict = _bridge(AsyncClient.predict)
    cancel = _bridge(AsyncClient.cancel)
    requeue_dead = _bridge(AsyncClient.requeue_dead)
    purge_dead = _bridge(AsyncClient.purge_dead)
    get_batch = _bridge(AsyncClient.get_batch)
    wait_batch = _bridge(AsyncClient.wait_batch)
    cancel_batch = _bridge(AsyncClient.cancel_batch)

    def batch_results(self, batch: Batch | UUID | str) -> Iterator[BatchPart]:
        """A finished batch's results in input order, a job's share at a time."""
        parts = self._client.batch_results(batch)
        while (part := self._run(anext(parts, None))) is not None:
            yield part


def _job_id(job: Job | UUID | str) -> UUID:
    if isinstance(job, str):
        try:
            return UUID(job)
        except ValueError:
            raise UnknownJob(f"{job[:80]!r} is not a job id") from None
    return job.id if isinstance(job, Job) else job


def _batch_id(batch: Batch | UUID | str) -> UUID:
    if isinstance(batch, str):
        try:
            return UUID(batch)
        except ValueError:
            raise UnknownBatch(f"{batch[:80]!r} is not a batch id") from None
    return batch.id if isinstance(batch, Batch) else batch


def _lane(lane: Lane | str) -> Lane:
    try:
        return Lane(lane)
    except ValueError:
        raise InvalidInput(f"lane is one of {', '.join(Lane)}", field="lane") from None


def _as_job(job: NewJob) -> Job:
    return Job(
        id=job.id,
        status=JobStatus.QUEUED,
        model_uri=job.model_uri,
        lane=job.lane,
        rows=job.input.rows,
        attempt=0,
        max_attempts=job.max_attempts,
        created_at=id_time(job.id),
        expires_at=job.expires_at,
        timeout_seconds=job.timeout_seconds,
        retries=job.retries,
        batch_id=job.batch_id,
    )


def _describe(source: Any) -> str:
    return Path(source).name if isinstance(source, (str, Path)) else type(source).__name__


def _said(exc: BaseException) -> str:
    return exc.message if isinstance(exc, PyFunQError) else type(exc).__name__
