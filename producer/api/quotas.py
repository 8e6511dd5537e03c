"""How many jobs of a tenant may wait: counted rarely, as the lanes' bound is (`pyfunq.admission`)."""

from collections.abc import Awaitable, Callable

from producer.api.problems import Problem
from pyfunq.admission import Admission
from pyfunq.api_keys import ApiKey
from pyfunq.errors import BacklogFull


class Quotas:
    """Belongs to one event loop. Approximate by what other processes submit between two counts."""

    def __init__(self, count: Callable[[int, int], Awaitable[int]]) -> None:
        """`count`: a tenant's queued jobs, up to a number."""
        self._count = count
        self._by_bound: dict[int, Admission] = {}

    async def admit(self, key: ApiKey, jobs: int = 1) -> None:
        """Raises Problem 429 where the key's tenant has as many queued jobs as the key says, or would have."""
        bound = key.max_queued_jobs
        if bound is None:
            return
        if jobs > bound:
            raise Problem(422, f"more jobs at once than {key.tenant} may have queued, {bound:,}", code="quota_exceeded")
        try:
            await self._admission(bound).admit(str(key.tenant_id), jobs)
        except BacklogFull as exc:
            raise Problem(
                429,
                f"{key.tenant} has as many queued jobs as it may, {bound:,}",
                code="quota_exceeded",
                headers={"Retry-After": str(max(1, round(exc.retry_after_seconds)))},
                retryable=True,
            ) from None

    async def close(self) -> None:
        for admission in self._by_bound.values():
            await admission.close()

    def _admission(self, bound: int) -> Admission:
        if bound not in self._by_bound:
            self._by_bound[bound] = Admission(lambda tenant, at_most: self._count(int(tenant), at_most), bound)
        return self._by_bound[bound]
