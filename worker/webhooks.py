"""The courier: tells the URLs that jobs named of the jobs' ends, at least once each, signed (Standard Webhooks)."""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import orjson

from pyfunq import __version__
from pyfunq.errors import InvalidInput, LedgerUnavailable
from pyfunq.job import Job
from pyfunq.job_view import job_view, time_view
from pyfunq.webhook_urls import WebhookRules
from pyfunq.webhooks import DueWebhook, WebhookStatus, pause_after
from worker import metrics

if TYPE_CHECKING:
    from worker.sending import Answer, Resolve, Sender

log = logging.getLogger(__name__)

_MOST_UNDER_WAY = 200
_MOST_OF_TENANT = 20
_LEASE_SECONDS = 60.0
"""Longer than an attempt lasts, and writing down what came of it."""
_GONE = 410
_REFUSED = frozenset({"url_refused", "address_refused"})


class WebhookTable(Protocol):
    """What the courier needs of the ledger."""

    async def claim_webhooks(
        self, *, at_most: int, of_each_tenant: int, not_of: Collection[int], lease_seconds: float
    ) -> list[DueWebhook]: ...
    async def get_many(self, ids: Sequence[UUID]) -> dict[UUID, Job]: ...
    async def record_delivery(
        self,
        due: DueWebhook,
        *,
        status_code: int | None,
        error: str | None,
        seconds: float,
        becomes: WebhookStatus,
        pause_seconds: float = 0.0,
    ) -> None: ...
    async def disable_webhooks(self, tenant_id: int, url: str) -> None: ...


class Courier:
    """Belongs to one event loop. Any number of them share the work; what one leaves behind, another does."""

    def __init__(self, table: WebhookTable, rules: WebhookRules, resolve: "Resolve | None" = None) -> None:
        """`resolve`: instead of the system's way from names to addresses."""
        self._table = table
        self._rules = rules
        self._resolve = resolve
        self._sender: Sender | None = None
        self._under_way: dict[asyncio.Task[None], int] = {}

    async def deliver_due(self) -> int:
        """Begins to deliver what is due, and returns of how many; raises LedgerUnavailable."""
        room = _MOST_UNDER_WAY - len(self._under_way)
        if room <= 0:
            return 0
        busy = [tenant for tenant, n in Counter(self._under_way.values()).items() if n >= _MOST_OF_TENANT]
        due = await self._table.claim_webhooks(
            at_most=room, of_each_tenant=_MOST_OF_TENANT, not_of=busy, lease_seconds=_LEASE_SECONDS
        )
        jobs = await self._table.get_many([one.job_id for one in due]) if due else {}
        for one in due:
            job = jobs.get(one.job_id)
            # Put back meanwhile: its next end will be told.
            if job is not None and job.status == one.event:
                task = asyncio.create_task(self._deliver(one, job))
                self._under_way[task] = one.tenant_id
                task.add_done_callback(self._under_way.pop)
        return len(due)

    async def idle(self) -> None:
        """Waits for what is under way."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def close(self) -> None:
        """What is under way is left to others."""
        for task in self._under_way:
            task.cancel()
        await self.idle()
        if self._sender is not None:
            await self._sender.close()

    async def _deliver(self, due: DueWebhook, job: Job) -> None:
        try:
            await self._record(due, await self._attempt(due, job))
        except LedgerUnavailable as exc:
            log.warning("what came of telling of job %s is not recorded, so it is told again: %s", due.job_id, exc)
        except Exception as exc:  # the lease ends, and it is tried again
            log.error("telling of job %s failed with %s", due.job_id, type(exc).__name__)

    async def _attempt(self, due: DueWebhook, job: Job) -> "Answer":
        # httpcore only where somebody is to be told.
        from worker.sending import Answer, Sender

        try:
            target = self._rules.target(due.url)
        except InvalidInput:  # the operator's rules changed
            return Answer(None, "url_refused", 0.0)
        if due.secret is None:
            return Answer(None, "no_secret", 0.0)
        if self._sender is None:
            self._sender = Sender(self._rules, self._resolve)
        body = orjson.dumps({"type": f"job.{due.event}", "timestamp": time_view(due.ended_at), "data": job_view(job)})
        return await self._sender.post(target, body, _headers(due, body))

    async def _record(self, due: DueWebhook, answer: "Answer") -> None:
        pause = pause_after(due.attempt)
        metrics.delivered(_outcome(answer, pause), answer.seconds)
        if answer.error is None:
            becomes = WebhookStatus.DELIVERED
        elif answer.status_code == _GONE:
            becomes = WebhookStatus.DISABLED
        else:
            becomes = WebhookStatus.FAILED if pause is None else WebhookStatus.DUE
        await self._table.record_delivery(
            due,
            status_code=answer.status_code,
            error=answer.error,
            seconds=answer.seconds,
            becomes=becomes,
            pause_seconds=pause or 0.0,
        )
        if becomes is WebhookStatus.DISABLED:
            await self._table.disable_webhooks(due.tenant_id, due.url)
        if becomes in (WebhookStatus.FAILED, WebhookStatus.DISABLED):
            log.warning("the webhook of job %s is %s: %s", due.job_id, becomes, answer.error)


def _outcome(answer: "Answer", pause: float | None) -> str:
    if answer.error is None:
        return "delivered"
    if answer.error in _REFUSED:
        return "refused"
    return "given_up" if pause is None or answer.status_code == _GONE else "failed"


def _headers(due: DueWebhook, body: bytes) -> Mapping[str, str]:
    from standardwebhooks.webhooks import Webhook

    now = datetime.now(UTC)
    secrets = [secret for secret in (due.secret, due.previous) if secret is not None]
    signatures = [Webhook(secret).sign(due.message_id, now, body.decode()) for secret in secrets]
    return {
        "Content-Type": "application/json",
        "User-Agent": f"PyFunQ/{__version__}",
        "webhook-id": due.message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
