"""What the ledger is asked about webhooks: their secrets, what is due, and what was delivered."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any
from uuid import UUID

import asyncpg

from pyfunq.webhooks import Delivery, DueWebhook, Webhook, WebhookStatus


class WebhookLedger(ABC):
    """The part of `Ledger` that concerns webhooks."""

    @abstractmethod
    async def _fetch(self, query: str, *args: Any) -> list[asyncpg.Record]: ...

    @abstractmethod
    async def _fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None: ...

    @abstractmethod
    async def _execute(self, query: str, *args: Any) -> None: ...

    async def set_webhook_secret(self, tenant: str | None, secret: str) -> bool:
        """Signs a tenant's webhooks with this from now on; returns whether there was another before.

        None: those of callers without a key. The tenant is made where there is none of that name.
        """
        row = await self._fetchrow("set_webhook_secret", tenant, secret)
        return row is not None and bool(row["rotated"])

    async def has_webhook_secret(self, tenant_id: int) -> bool:
        return await self._fetchrow("has_webhook_secret", tenant_id) is not None

    async def claim_webhooks(
        self, *, at_most: int, of_each_tenant: int, not_of: Collection[int], lease_seconds: float
    ) -> list[DueWebhook]:
        """Webhooks that nobody else tells meanwhile; `not_of` are tenants that have enough under way."""
        rows = await self._fetch("claim_webhooks", at_most, of_each_tenant, list(not_of), lease_seconds)
        return [DueWebhook(**r) for r in rows]

    async def record_delivery(
        self,
        due: DueWebhook,
        *,
        status_code: int | None,
        error: str | None,
        seconds: float,
        becomes: WebhookStatus,
        pause_seconds: float = 0.0,
    ) -> None:
        """Logs an attempt; with `becomes` DUE, the next one is after the pause."""
        await self._execute(
            "record_delivery",
            *(due.job_id, due.ends, due.attempt, due.event, status_code, error, seconds),
            *(str(becomes), pause_seconds),
        )

    async def disable_webhooks(self, tenant_id: int, url: str) -> None:
        """Tells a URL no more of what a tenant's jobs named it for until now."""
        await self._execute("disable_webhooks", tenant_id, url)

    async def webhook(self, job_id: UUID) -> Webhook | None:
        """Whom a job's end is told; None where nobody is."""
        row = await self._fetchrow("get_webhook", job_id)
        if row is None:
            return None
        made = tuple(Delivery(**r) for r in await self._fetch("webhook_deliveries", job_id))
        return Webhook(**{**row, "status": WebhookStatus(row["status"])}, deliveries=made)
