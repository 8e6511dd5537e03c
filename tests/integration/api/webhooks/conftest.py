"""Who is told, by whom, and with which secret."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from pyfunq.webhooks import new_secret
from tests.integration.api.conftest import job_id_of
from tests.integration.api.webhooks.receiver import Receiver
from tests.integration.conftest import SETOSA, split
from worker.webhooks import Courier

IRIS_1 = "models:/iris/1"
LOOPBACK = {
    "webhook_allow_http": True,
    "webhook_ports": ("1-65535",),
    "webhook_networks": ("127.0.0.0/8",),
}
Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update=LOOPBACK)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
async def secret(ledger: Ledger) -> str:
    secret = new_secret()
    await ledger.set_webhook_secret(None, secret)
    return secret


@pytest.fixture
async def courier(settings: Settings, ledger: Ledger) -> AsyncIterator[Courier]:
    courier = Courier(ledger, settings.webhook_rules)
    yield courier
    await courier.close()


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


def asked(url: str, **more: Any) -> dict[str, Any]:
    return {"model": IRIS_1, **split(SETOSA), "webhook": {"url": url}, **more}


async def submitted(http: httpx.AsyncClient, url: str, **headers: str) -> UUID:
    answer = await http.post("/v1/jobs", json=asked(url), headers=headers)
    assert answer.status_code == 202, answer.text
    return job_id_of(answer)


async def delivered(courier: Courier) -> int:
    begun = await courier.deliver_due()
    await courier.idle()
    return begun


async def log_of(http: httpx.AsyncClient, job_id: UUID, **headers: str) -> dict[str, Any]:
    answer = await http.get(f"/v1/jobs/{job_id}/webhook", headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def now_due(sql: asyncpg.Connection) -> None:
    """As if the pause, or the lease, were over."""
    await sql.execute("UPDATE webhook SET next_at = now() WHERE status = 'due'")
