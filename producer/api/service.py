"""What the API asks of the ledger and the queue, for the caller whose request it is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self
from uuid import UUID

from producer.api.batch_service import BatchService
from producer.api.callers import Caller, KeyTable
from producer.api.known_models import Known
from producer.api.ledger_metrics import MetricSource
from producer.api.many_service import KEY_SEPARATOR, ManyService
from producer.api.model_names import allowed, parsed
from producer.api.quotas import Quotas
from producer.api.registered import Registered
from pyfunq.batches import valid_lane
from pyfunq.entries import Page, StoredResult
from pyfunq.errors import InvalidInput, ModelNotAllowed, UnknownBatch, UnknownJob, WaitTimeout
from pyfunq.gathered import Gathered
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput
from pyfunq.job import Batch, Job, JobStatus, Lane
from pyfunq.model_uri import ModelURI, check_allowed
from pyfunq.options import JobOptions
from pyfunq.signature import Signature
from pyfunq.webhooks import Webhook

Ended = tuple[Job, StoredResult]

_POLL_SECONDS = 1.0


class Service(BatchService, ManyService):
    """An `AsyncClient` that knows whose each job is. Everything here raises what the methods of that raise."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._ended = Gathered(self._ledger.ended)
        self._stack.push_async_callback(self._ended.close)
        self._quotas = Quotas(lambda tenant_id, at_most: self._ledger.count_queued_of(tenant_id, at_most=at_most))
        self._stack.push_async_callback(self._quotas.close)
        self._registered = Registered(self._settings.mlflow_tracking_uri, self._ledger.resolution)
        self._stack.push_async_callback(self._registered.close)
        self._known_models = Known(self._ledger, self._settings.stale_seconds)
        return self

    async def accept(
        self,
        caller: Caller,
        model: str,
        inputs: Any,
        *,
        params: Mapping[str, Any] | None = None,
        lane: str = Lane.INTERACTIVE,
        options: JobOptions,
    ) -> Job:
        """`submit`, for this caller; `inputs` may be an EncodedInput. Raises ModelNotFound where MLflow has none."""
        await self.check_asked(caller, model)
        if (key := caller.key) is not None:
            options = replace(options, tenant_id=key.tenant_id, tenant=key.tenant)
            if options.idempotency_key is not None:
                own = f"{key.tenant_id}{KEY_SEPARATOR}{options.idempotency_key}"
                options = replace(options, idempotency_key=own)
            await self._check_quota(caller, 1)
        return await self._submit(model, inputs, params, valid_lane(lane), options)

    def _encode(
        self, one: Any, params: Mapping[str, Any] | None, signature: Signature | None, lane: Lane
    ) -> EncodedInput:
        return one if isinstance(one, EncodedInput) else super()._encode(one, params, signature, lane)

    async def signature(self, caller: Caller, model: str) -> tuple[Signature | None, str | None]:
        """What a model takes, and the same as MLflow's JSON; None where nobody has loaded it yet.

        Raises InvalidModelURI, ModelNotAllowed, ModelNotFound.
        """
        uri = await self.check_asked(caller, model)
        signature = await self._signatures.get(str(uri))
        return signature, self._signatures.text(str(uri))

    async def check_asked(self, caller: Caller, model: str) -> ModelURI:
        """The URI of a model that is registered, and that this caller may ask for.

        Raises InvalidModelURI, ModelNotAllowed, ModelNotFound.
        """
        check_model(caller, model)
        uri = allowed(model, self._settings.allowed_models)
        await self._registered.check(uri)
        return uri

    @property
    def known_models(self) -> Known:
        return self._known_models

    @property
    def registered(self) -> Registered:
        return self._registered

    async def _check_quota(self, caller: Caller, jobs: int) -> None:
        if caller.key is not None:
            await self._quotas.admit(caller.key, jobs)

    def tell_accepted(self, told: Callable[[Sequence[Page]], None]) -> None:
        """From now on `told` hears of what was committed."""
        self._submitter.accepted = told

    async def find(self, caller: Caller, job_id: UUID) -> Job:
        job = await self.get(job_id)
        if not caller.sees(job.tenant):
            raise UnknownJob(f"there is no job {job_id}")
        return job

    async def find_ended(self, caller: Caller, job_id: UUID) -> Ended:
        """The job as it is now, and its result if it has one."""
        return self._seen(caller, job_id, await self._ended.get(job_id))

    @staticmethod
    def _seen(caller: Caller, job_id: UUID, found: Ended | None) -> Ended:
        if found is None or not caller.sees(found[0].tenant):
            raise UnknownJob(f"there is no job {job_id}")
        return found

    async def wait_ended(self, caller: Caller, job: Job, seconds: float) -> Ended | None:
        """A job that the caller may see, once it is final; None after so many seconds."""
        if job.is_final:
            return await self.find_ended(caller, job.id)
        try:
            return self._seen(caller, job.id, await self._when_final(job.id, seconds, self._ended.ask_for))
        except WaitTimeout:
            return None

    async def job_states(self, job_id: UUID) -> AsyncIterator[Job]:
        """The job again and again until it is final: every second, and when its end is announced."""
        ended = asyncio.ensure_future(self._finished.wait(job_id))
        try:
            while True:
                job = await self.get(job_id)
                yield job
                if job.is_final:
                    return
                await asyncio.wait([ended], timeout=_POLL_SECONDS)
                if ended.done():
                    # Final, or Postgres was away; a job that was put back since is not final any more.
                    await asyncio.sleep(_POLL_SECONDS if ended.exception() else 0)
                    ended = asyncio.ensure_future(self._finished.wait(job_id))
        finally:
            ended.cancel()

    @property
    def keys(self) -> KeyTable:
        return self._ledger

    @property
    def metrics(self) -> MetricSource:
        return self._ledger

    @property
    def most_body_bytes(self) -> int:
        """Of a request that is one job: an input that is as large as it may be, and what is beside it."""
        return 2 * self._settings.max_input_bytes

    @property
    def most_input_bytes(self) -> int:
        """Of one job's encoded input."""
        return self._settings.max_input_bytes

    async def with_webhook(self, caller: Caller, options: JobOptions, url: str) -> JobOptions:
        """The options with a URL that is told of the job's end. Raises InvalidInput."""
        return await self._with_webhook(replace(options, tenant_id=caller.tenant_id or 0), url)

    async def webhook(self, job_id: UUID) -> Webhook | None:
        """Whom the end of a job that the caller may see is told."""
        return await self._ledger.webhook(job_id)

    async def ping(self) -> None:
        """Raises LedgerUnavailable."""
        await self._ledger.clock()

    async def retry_job(self, job_id: UUID) -> bool:
        """Queues a job again that ended without success; False where it did not."""
        pages = await self._ledger.try_again([job_id], [new_id()])
        await self._submitter.publish(pages)
        return bool(pages)

    async def page(
        self,
        caller: Caller,
        *,
        status: JobStatus | None,
        model: str | None,
        batch_id: UUID | None,
        before: UUID | None,
        limit: int,
    ) -> list[Job]:
        return await self._ledger.list_jobs(
            status=status,
            model_uri=None if model is None else str(parsed(model)),
            batch_id=batch_id,
            before=before,
            limit=limit,
            tenant_id=caller.tenant_id,
        )

    async def find_batch(self, caller: Caller, batch_id: UUID) -> Batch:
        await self.check_batch(caller, batch_id)
        return await self.get_batch(batch_id)

    async def check_batch(self, caller: Caller, batch_id: UUID) -> None:
        """Raises UnknownBatch where the caller has none of that id."""
        tenant_id = await self._ledger.tenant_of_batch(batch_id)
        if tenant_id is None or caller.tenant_id not in (None, tenant_id):
            raise UnknownBatch(f"there is no batch {batch_id}")


def check_model(caller: Caller, model: str) -> None:
    """Raises ModelNotAllowed for a model that the caller's key does not name."""
    if caller.key is None or not caller.key.models:
        return
    uri = parsed(model)
    try:
        check_allowed(uri, caller.key.models)
    except ModelNotAllowed:
        raise ModelNotAllowed(f"this API key may not ask for {uri}") from None


def model_uri_of(request: Mapping[str, Any]) -> str:
    """What `model`, and `version`, `alias` or `stage` beside a bare name, stand for. Raises InvalidInput."""
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidInput("model must be a registered model's name, or a models:/ URI", field="model")
    which = [name for name in ("version", "alias", "stage") if request.get(name) is not None]
    if len(which) > 1:
        raise InvalidInput(f"{' and '.join(which)} exclude each other", field=which[1])
    if ":" in model:
        if which:
            raise InvalidInput(f"a model URI says which version: leave {which[0]} out", field=which[0])
        parsed(model)
        return model
    if not which:
        return f"models:/{model}/latest"
    value = request[which[0]]
    if not isinstance(value, int if which[0] == "version" else str) or isinstance(value, bool):
        kind = "a whole number" if which[0] == "version" else "a text"
        raise InvalidInput(f"{which[0]} must be {kind}", field=which[0])
    return f"models:/{model}@{value}" if which[0] == "alias" else f"models:/{model}/{value}"
