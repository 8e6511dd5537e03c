"""What the API asks of the ledger for many jobs at once, and how it keeps large inputs off its event loop."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

from producer.api.callers import Caller
from pyfunq.batches import valid_lane
from pyfunq.client import AsyncClient
from pyfunq.entries import NewJob, StoredResult, not_needed, request_digest
from pyfunq.errors import IdempotencyConflict, UnknownJob
from pyfunq.job import Job, Lane
from pyfunq.lanes import line_of
from pyfunq.options import JobOptions
from pyfunq.submitted import SubmittedJobs

R = TypeVar("R")

KEY_SEPARATOR = "\x1f"
"""No idempotency key of a caller holds it: they are printable."""
_LARGE_BYTES = 64 * 1024
_MANY = 20
"""Inputs that are larger, or more, are encoded in a thread."""
_PARTS_AT_ONCE = 1_000
_PART_BYTES_AT_ONCE = 8 * 1024 * 1024


class ManyService(AsyncClient):
    """The part of `Service` that concerns many jobs at once."""

    async def _check_quota(self, caller: Caller, jobs: int) -> None:
        raise NotImplementedError

    async def accept_many(
        self,
        caller: Caller,
        model: str,
        inputs: Sequence[Any],
        *,
        params: Mapping[str, Any] | None,
        lane: str,
        options: JobOptions,
    ) -> Sequence[Job]:
        """`submit_many`, for this caller; with an idempotency key, which each job has with its number."""
        if caller.key is not None:
            options = replace(options, tenant_id=caller.key.tenant_id, tenant=caller.key.tenant)
            await self._check_quota(caller, len(inputs))
        chosen = valid_lane(lane)
        new = await self._new_jobs(model, inputs, params, chosen, options)
        if options.idempotency_key is not None:
            new = await self._work(inputs, lambda: _numbered(new, inputs, params, chosen))
            if new and (first := await self._submitter.submitted_before(new[0])) is not None:
                return await self._as_before(new, first)
        if new:
            await self._admission.admit(line_of(new[0].queue), len(new))
        others = await self._submitter.submit(new) if new else {}
        return SubmittedJobs([job._replace(id=others.get(job.id, job.id)) for job in new])

    async def _as_before(self, new: Sequence[NewJob], first: UUID) -> Sequence[Job]:
        """The jobs of an earlier request with the same key, which were all accepted when the first one was."""
        found = await self._ledger.keys(
            [job.idempotency_key or "" for job in new], last_seconds=self._settings.idempotency_seconds
        )
        owners = {**not_needed([(job.id, job) for job in new], found), new[0].id: first}
        if None in owners.values():
            raise IdempotencyConflict
        return SubmittedJobs([job._replace(id=owners.get(job.id) or job.id) for job in new])

    async def _work(self, inputs: Any, work: Callable[[], R]) -> R:
        is_large = getattr(inputs, "nbytes", 0) > _LARGE_BYTES or (isinstance(inputs, list) and len(inputs) > _MANY)
        if is_large or (isinstance(inputs, list) and any(getattr(i, "nbytes", 0) > _LARGE_BYTES for i in inputs)):
            return await asyncio.to_thread(work)
        return work()

    async def some_final(self, caller: Caller, ids: Sequence[UUID], seconds: float) -> Sequence[Job]:
        """Those of the jobs that are final, as soon as one is. Raises UnknownJob for any that the caller has not."""
        jobs = await self._ledger.get_many(ids)
        for job_id in ids:
            if job_id not in jobs or not caller.sees(jobs[job_id].tenant):
                raise UnknownJob(f"there is no job {job_id}")
        final = [job for job in jobs.values() if job.is_final]
        return final if final or not seconds else await self._some_final(ids, seconds)

    async def parts(self, batch_id: UUID, start: int) -> list[tuple[int, int, StoredResult]]:
        """(index, rows, result) of a batch's jobs from an index on, in order; none at the end."""
        return await self._ledger.batch_results(
            batch_id, start=start, max_jobs=_PARTS_AT_ONCE, max_bytes=_PART_BYTES_AT_ONCE
        )


def _numbered(
    new: Sequence[NewJob], inputs: Sequence[Any], params: Mapping[str, Any] | None, lane: Lane
) -> Sequence[NewJob]:
    """With the key's part of each: the same key with fewer or other inputs is another request."""
    many = str(len(new)).encode()
    return [
        job._replace(
            idempotency_key=f"{job.tenant_id}{KEY_SEPARATOR}{job.idempotency_key}{KEY_SEPARATOR}{number}",
            request=hashlib.sha256(request_digest(job.model_uri, lane, one, params, job.input) + many).digest(),
        )
        for number, (job, one) in enumerate(zip(new, inputs, strict=True))
    ]
