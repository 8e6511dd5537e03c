"""The client: submit jobs, wait for them, read their results; `AsyncClient`, and `Client` over it for everyone else."""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache, partial, wraps
from itertools import islice
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, cast
from uuid import UUID

from pyfunq.admission import Admission
from pyfunq.ahead import IN_FLIGHT, AsyncAhead
from pyfunq.batches import AsyncBatches, batch_id_of, valid_lane
from pyfunq.client_settings import asks_for_http, settings_of
from pyfunq.entries import NewJob, request_digest
from pyfunq.errors import BacklogFull, InvalidInput, UnknownJob, WaitTimeout
from pyfunq.gathered import Gathered
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput, encode_input
from pyfunq.job import Batch, Job, JobStatus, Lane
from pyfunq.lanes import line, line_of
from pyfunq.ledger import Ledger
from pyfunq.loop_thread import LoopThread
from pyfunq.many_inputs import LikeBefore, encode_alike
from pyfunq.migrate import require_current
from pyfunq.model_uri import check_allowed, parse_model_uri
from pyfunq.options import JobOptions
from pyfunq.outcomes import BatchPart, decoded
from pyfunq.publishing import AsyncPublisher
from pyfunq.settings import Settings
from pyfunq.signature import Signature
from pyfunq.signatures import Signatures
from pyfunq.submitted import SubmittedJobs, as_job, job_id_of
from pyfunq.submitting import Submitter
from pyfunq.waiting import FinishedJobs

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
R = TypeVar("R")
Jobs = list[Job]  # the clients' method `list` hides the type in their bodies
Encoded = list[EncodedInput]

_QUEUE_SECONDS = 1.0
_ENCODED_AT_ONCE = 1_000
_EXPECTED_AT_ONCE = 10_000
_END: Any = object()


class AsyncClient(AsyncBatches, AsyncAhead):
    """Use it as `async with AsyncClient() as client`; it belongs to the event loop that entered it.

    Without arguments the addresses come from PYFUNQ_DATABASE_URL and PYFUNQ_REDIS_URL. With `base_url`, or where only
    PYFUNQ_API_URL is set, what it makes is an `HttpAsyncClient`: the same over HTTP.
    """

    def __new__(
        cls,
        settings: Settings | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        **overrides: Any,
    ) -> Self:
        if cls is AsyncClient and asks_for_http(settings, base_url, overrides):
            from pyfunq.http_client import HttpAsyncClient

            return cast(Self, object.__new__(HttpAsyncClient))
        return object.__new__(cls)

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        **overrides: Any,
    ) -> None:
        """`base_url`: a PyFunQ API's. `overrides` are fields of `Settings`, such as database_url and redis_url."""
        self._settings = settings_of(settings, base_url, api_key, overrides)
        self._stack = AsyncExitStack()
        self._queues: dict[tuple[str, str], tuple[float, str]] = {}
        self._like_before = LikeBefore()

    async def __aenter__(self) -> Self:
        await require_current(self._settings.database)
        async with AsyncExitStack() as opened:
            self._ledger = await opened.enter_async_context(Ledger.open(self._settings.database))
            self._publisher = AsyncPublisher(self._settings.redis)
            opened.push_async_callback(self._publisher.aclose)
            kept = self._settings.idempotency_seconds
            self._submitter = Submitter(self._ledger, self._publisher, keys_last_seconds=kept)
            opened.push_async_callback(self._submitter.close)
            self._admission = Admission(
                lambda line, at_most: self._ledger.count_queued(line, at_most=at_most), self._settings.max_queued_jobs
            )
            opened.push_async_callback(self._admission.close)
            self._jobs = Gathered(self._ledger.get_many)
            self._results = Gathered(self._ledger.results)
            for asked in (self._jobs, self._results):
                opened.push_async_callback(asked.close)
            self._signatures = Signatures(self._ledger.resolution)
            opened.push_async_callback(self._signatures.close)
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
        metadata: Mapping[str, Any] | None = None,
        webhook: str | None = None,
    ) -> Job:
        """Accepts one job: when this returns, it is committed.

        `inputs`: a mapping with one of MLflow's `dataframe_split`, `dataframe_records`, `instances` or `inputs`, a
        DataFrame or an Arrow table. `expires_in`: seconds after which it is no longer worth predicting. `timeout`:
        seconds that predicting it may take. `retries`: how often it is tried again when it fails. With
        `idempotency_key` (1 to 255 characters) the same request returns the same job, as it is now. `metadata`: an
        object of at most 16 KB as JSON, which comes back with the job. `webhook`: a URL that is told of its end,
        signed (docs/webhooks.md). Raises InvalidModelURI, ModelNotAllowed, InvalidInput, InputTooLarge,
        IdempotencyConflict, BacklogFull or LedgerUnavailable, and has accepted nothing; or AcceptanceUnknown.
        """
        options = JobOptions.of(expires_in, timeout, retries, idempotency_key, metadata)
        if webhook is not None:
            options = await self._with_webhook(options, webhook)
        return await self._submit(model, inputs, params, valid_lane(lane), options)

    async def _with_webhook(self, options: JobOptions, url: str) -> JobOptions:
        """Raises InvalidInput for a URL that may not be told, and where there is nothing to sign with."""
        self._settings.webhook_rules.target(url)
        if not await self._ledger.has_webhook_secret(options.tenant_id):
            raise InvalidInput(
                "webhooks are signed, and there is no secret to sign this one with: see `pyfunq webhooks secret`",
                field="webhook",
            )
        return replace(options, webhook=url)

    async def _submit(
        self, model: str, inputs: Any, params: Mapping[str, Any] | None, lane: Lane, options: JobOptions
    ) -> Job:
        model_uri, signature = await self._model(model)
        encoded = await self._work([inputs], lambda: self._encode(inputs, params, signature, lane))
        queue = await self._recent_queue(self._line(lane, model_uri), model_uri)
        new = self._new_job(model_uri, encoded, queue, options)
        if new.idempotency_key:
            digest = partial(request_digest, new.model_uri, lane, inputs, params, new.input)
            new = new._replace(request=await self._work(inputs, digest))
        try:
            await self._admission.admit(line_of(new.queue), 1)
        except BacklogFull:
            # What was accepted before takes no room.
            if (other := await self._submitter.submitted_before(new)) is None:
                raise
            return await self.get(other)
        self._finished.expect([new.id])
        others = await self._submitter.submit([new])
        return await self.get(others[new.id]) if others else as_job(new, options.tenant)

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
    ) -> Sequence[Job]:
        """Accepts one job for each of the inputs, all or none; see `submit`."""
        lane = valid_lane(lane)
        new = await self._new_jobs(model, inputs, params, lane, JobOptions.of(expires_in, timeout, retries))
        if new:
            await self._admission.admit(line_of(new[0].queue), len(new))
            self._finished.expect(job.id for job in new[:_EXPECTED_AT_ONCE])
            await self._submitter.submit(new)
        return SubmittedJobs(new)

    async def _work(self, inputs: Any, work: Callable[[], R]) -> R:
        """Does what takes the longer the larger the inputs are."""
        return work()

    async def _new_jobs(
        self,
        model: str,
        inputs: Iterable[Any],
        params: Mapping[str, Any] | None,
        lane: Lane,
        options: JobOptions,
    ) -> Sequence[NewJob]:
        model_uri, signature = await self._model(model)
        encoded = await self._work(inputs, lambda: self._encode_all(inputs, params, signature, lane))
        queue = await self._recent_queue(self._line(lane, model_uri), model_uri) if encoded else lane
        return [self._new_job(model_uri, one, queue, options) for one in encoded]

    def _new_job(self, model_uri: str, encoded: EncodedInput, queue: str, options: JobOptions) -> NewJob:
        return NewJob(
            id=new_id(),
            model_uri=model_uri,
            input=encoded,
            queue=queue,
            max_attempts=self._settings.max_attempts,
            expires_at=options.expires_at,
            timeout_seconds=options.timeout_seconds,
            retries=options.retries,
            idempotency_key=options.idempotency_key,
            tenant_id=options.tenant_id,
            metadata=options.metadata,
            webhook=options.webhook,
        )

    def _line(self, lane: Lane, model_uri: str) -> str:
        return line(lane, self._signatures.queue(model_uri))

    async def _recent_queue(self, line: str, model_uri: str) -> str:
        """Singles that are submitted in a row share a queue: so they can be predicted together."""
        chosen_at, queue = self._queues.get((line, model_uri), (float("-inf"), ""))
        if time.monotonic() > chosen_at + _QUEUE_SECONDS:
            queue = await self._queue(line)
            self._queues[line, model_uri] = time.monotonic(), queue
        return queue

    async def get(self, job: Job | UUID | str) -> Job:
        """The job as it is now. Raises UnknownJob."""
        job_id = job_id_of(job)
        return self._known(job_id, await self._jobs.get(job_id))

    @staticmethod
    def _known(job_id: UUID, found: R | None) -> R:
        if found is None:
            raise UnknownJob(f"there is no job {job_id}")
        return found

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
            batch_id=None if batch is None else batch_id_of(batch),
            before=None if before is None else job_id_of(before),
            limit=limit,
        )

    async def wait(self, job: Job | UUID | str, timeout: float | None = None) -> Job:  # noqa: ASYNC109
        """The job once it is final. Raises WaitTimeout after `timeout` seconds (the job goes on), UnknownJob."""
        job_id = job_id_of(job)
        if not isinstance(job, Job):
            now = await self.get(job_id)
            if now.is_final:
                return now
        return self._known(job_id, await self._when_final(job_id, timeout, self._jobs.ask_for))

    async def _when_final(
        self,
        job_id: UUID,
        timeout: float | None,  # noqa: ASYNC109
        ask: Callable[[UUID, "asyncio.Future[R]"], None],
    ) -> R:
        """What is asked in the moment in which the job is final. Raises WaitTimeout."""
        if timeout is None:
            return await self._finished.then(job_id, ask)
        try:
            async with asyncio.timeout(timeout):
                return await self._finished.then(job_id, ask)
        except TimeoutError:
            raise WaitTimeout(f"job {job_id} was not finished after {timeout:g} s; it goes on") from None

    async def result(self, job: Job | UUID | str, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """Waits for the job and returns its predictions.

        A list (JSON input) or a Series, DataFrame, array or list (DataFrame and Arrow input), one entry a row. Raises
        JobFailed, JobCancelled, JobExpired, JobDead, WaitTimeout or UnknownJob.
        """
        job_id = job_id_of(job)
        if not self._finished.expects(job_id):
            stored = self._known(job_id, await self._results.get(job_id))
            if stored.status.is_final:
                return decoded(f"job {job_id}", stored)
        stored = self._known(job_id, await self._when_final(job_id, timeout, self._results.ask_for))
        return decoded(f"job {job_id}", stored)

    async def cancel(self, job: Job | UUID | str, *, terminate: bool = False) -> Job:
        """Withdraws the job: it is not predicted, or what is being predicted is not kept. A final job stays so.

        `terminate`: a call that predicts it now is stopped, within about two seconds.
        """
        job_id = job_id_of(job)
        await self._ledger.cancel([job_id], terminate=terminate)
        return await self._ledger.get(job_id)

    async def _some_final(self, ids: Sequence[UUID], seconds: float) -> Sequence[Job]:
        final = await self._finished.any_of(ids, seconds)
        if final:
            return list((await self._ledger.get_many(list(final))).values())
        known = await self._ledger.get_many(ids)
        if unknown := [job_id for job_id in ids if job_id not in known]:
            raise UnknownJob(f"there is no job {unknown[0]}")
        return []

    async def _cancel_all(self, ids: Sequence[UUID]) -> None:
        await self._ledger.cancel(ids)

    async def requeue_dead(self, jobs: Iterable[Job | UUID | str]) -> int:
        """Puts dead jobs back with all their attempts; returns how many of these were dead."""
        ids = [job_id_of(job) for job in jobs]
        pages = await self._ledger.requeue_dead(ids, [new_id() for _ in ids])
        await self._submitter.publish(pages)
        return len(pages)

    async def purge_dead(self, *, older_than_seconds: float = 0.0) -> int:
        """Deletes dead jobs, with their inputs, that ended longer ago than this; returns how many."""
        return await self._ledger.purge_dead(older_than_seconds=older_than_seconds)

    async def _model(self, model: str) -> tuple[str, Signature | None]:
        """The canonical URI, and the signature of what it stands for where the ledger knows it."""
        model_uri = _allowed_uri(model, self._settings.allowed_models)
        return model_uri, await self._signatures.get(model_uri)

    def _encode_all(
        self, inputs: Iterable[Any], params: Mapping[str, Any] | None, signature: Signature | None, lane: Lane
    ) -> Sequence[EncodedInput]:
        encoded: Encoded = []
        known = len(inputs) if isinstance(inputs, Sized) else 0
        max_bytes = self._settings.max_input_bytes
        source = iter(inputs)
        most = self._settings.max_queued_jobs + 1  # what is one too many is refused before more is read
        while part := tuple(islice(source, min(_ENCODED_AT_ONCE, most - len(encoded)))):
            self._admission.check_fits(lane, max(known, len(encoded) + len(part)))
            encoded += encode_alike(part, params, signature=signature, max_bytes=max_bytes) or [
                self._encode_one(one, len(encoded) + i, known == 1, params, signature) for i, one in enumerate(part)
            ]
        return encoded

    def _encode(
        self, one: Any, params: Mapping[str, Any] | None, signature: Signature | None, lane: Lane
    ) -> EncodedInput:
        """An input that comes alone."""
        self._admission.check_fits(lane, 1)
        return self._encode_one(one, 0, True, params, signature)

    def _encode_one(
        self, one: Any, number: int, is_only_one: bool, params: Mapping[str, Any] | None, signature: Signature | None
    ) -> EncodedInput:
        max_bytes = self._settings.max_input_bytes
        try:
            if params is None and (encoded := self._like_before.encode(one, signature, max_bytes)) is not None:
                return encoded
            encoded = encode_input(one, params, signature=signature, max_bytes=max_bytes)
            self._like_before.remember(one, encoded, signature)
            return encoded
        except InvalidInput as exc:
            if is_only_one:
                raise
            raise type(exc)(f"inputs[{number}]: {exc.message}", field=exc.field) from exc


class Client:
    """`AsyncClient` for programs without an event loop: the same methods, run on a loop in a thread of its own.

    Use it as a context manager, or call `close()`. Safe to use from several threads; not across a fork.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        **overrides: Any,
    ) -> None:
        """See `AsyncClient`."""
        self._loop = LoopThread("pyfunq-client")
        try:
            self._client = AsyncClient(settings, base_url=base_url, api_key=api_key, **overrides)
            self._loop.run(self._client.__aenter__())
        except BaseException:
            self._loop.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything submitted is committed and published."""
        if not self._loop.is_closed:
            self._loop.run(self._client.__aexit__(None, None, None))
            self._loop.stop()

    @staticmethod
    def _bridge(
        method: Callable[Concatenate[AsyncClient, P], Awaitable[R]],
    ) -> "Callable[Concatenate[Client, P], R]":
        name = method.__name__  # not the method itself: over HTTP it is another

        @wraps(method)
        def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
            result: R = self._loop.run(getattr(self._client, name)(*args, **kwargs))
            return result

        return cast(Callable[Concatenate[Any, P], R], call)

    @staticmethod
    def _bridge_batch(
        method: Callable[Concatenate[AsyncClient, P], Awaitable[Batch]],
    ) -> "Callable[Concatenate[Client, P], Batch]":
        name = method.__name__  # not the method itself: over HTTP it is another

        @wraps(method)
        def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> Batch:
            batch: Batch = self._loop.run(getattr(self._client, name)(*args, **kwargs))
            return replace(batch, _frames=lambda batch_id, missing: self.batch_frames(batch_id, on_missing=missing))

        return cast(Callable[Concatenate[Any, P], Batch], call)

    submit = _bridge(AsyncClient.submit)
    submit_many = _bridge(AsyncClient.submit_many)
    get = _bridge(AsyncClient.get)
    list = _bridge(AsyncClient.list)
    wait = _bridge(AsyncClient.wait)
    result = _bridge(AsyncClient.result)
    predict = _bridge(AsyncClient.predict)
    cancel = _bridge(AsyncClient.cancel)
    requeue_dead = _bridge(AsyncClient.requeue_dead)
    purge_dead = _bridge(AsyncClient.purge_dead)
    submit_batch = _bridge_batch(AsyncClient.submit_batch)
    get_batch = _bridge_batch(AsyncClient.get_batch)
    wait_batch = _bridge_batch(AsyncClient.wait_batch)
    cancel_batch = _bridge_batch(AsyncClient.cancel_batch)

    def batch_results(self, batch: Batch | UUID | str) -> Iterator[BatchPart]:
        """A finished batch's results in input order, a job's share at a time, in constant memory."""
        return self._iterate(self._client.batch_results(batch))

    def batch_frames(
        self, batch: Batch | UUID | str, *, on_missing: Callable[[BatchPart], None] | None = None
    ) -> "Iterator[pd.DataFrame]":
        """See `AsyncClient.batch_frames`."""
        return self._iterate(self._client.batch_frames(batch, on_missing=on_missing))

    def map(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        params: Mapping[str, Any] | None = None,
        lane: Lane | str = Lane.INTERACTIVE,
        retries: int = 0,
        in_flight: int = IN_FLIGHT,
        timeout: float | None = None,
        progress: bool = False,
    ) -> Iterator[Any]:
        """See `AsyncClient.map`."""
        asked = {"params": params, "lane": lane, "retries": retries, "in_flight": in_flight, "timeout": timeout}
        return self._iterate(self._client.map(model, inputs, progress=progress, **asked))  # type: ignore[arg-type]

    def as_completed(self, jobs: Iterable[Job | UUID | str], timeout: float | None = None) -> Iterator[Job]:
        """See `AsyncClient.as_completed`."""
        return self._iterate(self._client.as_completed(jobs, timeout))

    def _iterate(self, items: AsyncIterator[R]) -> Iterator[R]:
        try:
            while (item := self._loop.run(anext(items, _END))) is not _END:
                yield cast(R, item)
        finally:
            if isinstance(items, AsyncGenerator) and not self._loop.is_closed:
                self._loop.run(items.aclose())


@lru_cache(4096)
def _allowed_uri(model: str, patterns: tuple[str, ...]) -> str:
    uri = parse_model_uri(model)
    check_allowed(uri, patterns)
    return str(uri)
