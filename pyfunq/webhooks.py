"""Webhooks: what a job's end is told with, how far that is, and when it is tried again."""

import base64
import random
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

_SECRET_BYTES = 32
PAUSES_SECONDS = (5, 30, 120, 600, 3_600, 21_600, 43_200, 86_400, 86_400)
"""After each attempt that failed: ten attempts in 2.8 days."""


class WebhookStatus(StrEnum):
    """How far telling of a job's end is."""

    WAITING = "waiting"
    """The job is not final."""
    DUE = "due"
    """It is being told; after a crash, another process tells it."""
    DELIVERED = "delivered"
    FAILED = "failed"
    """Every attempt failed."""
    DISABLED = "disabled"
    """The endpoint answered 410 to this or to another job's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DueWebhook:
    """An attempt to tell of a job's end; this process's for as long as its lease lasts."""

    job_id: UUID
    tenant_id: int
    url: str
    event: str
    """The final status."""
    ended_at: datetime
    ends: int
    """How often the job ended: it can be tried again."""
    attempt: int
    """From 1 on."""
    secret: str | None
    previous: str | None
    """The secret before it, where that still signs."""

    @property
    def message_id(self) -> str:
        """The same for each attempt to tell of the same end."""
        return f"job_{self.job_id.hex}_{self.ends}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An attempt that was made."""

    event: str
    attempt: int
    at: datetime
    status_code: int | None
    error: str | None
    """A word for what went wrong; None: it was delivered."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Whom a job's end is told, and how far that is."""

    url: str
    status: WebhookStatus
    event: str | None
    attempts: int
    next_at: datetime | None
    deliveries: tuple[Delivery, ...]


def new_secret() -> str:
    """As Standard Webhooks has it: `whsec_` and random bytes as base64."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"


def pause_after(attempt: int) -> float | None:
    """Seconds until the next attempt, spread by a tenth; None: there is none."""
    if attempt > len(PAUSES_SECONDS):
        return None
    return PAUSES_SECONDS[attempt - 1] * random.uniform(1.0, 1.1)  # noqa: S311
