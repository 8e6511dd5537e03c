"""Webhooks that the Python clients ask for, directly and over HTTP; and what is counted of them."""

from collections.abc import AsyncIterator
from typing import Any

import pandas as pd
import pytest

from pyfunq import metrics
from pyfunq.client import AsyncClient
from pyfunq.errors import InvalidInput
from pyfunq.settings import Settings
from tests.integration.api.conftest import Workers
from tests.integration.api.webhooks.conftest import IRIS_1, delivered
from tests.integration.api.webhooks.receiver import Receiver, status
from tests.integration.conftest import IRIS, SETOSA, split
from worker.metrics import recorder
from worker.webhooks import Courier

pytestmark = pytest.mark.usefixtures("iris_model")


@pytest.fixture(params=["direct", "over HTTP"])
async def client(request: pytest.FixtureRequest, settings: Settings, api_url: str) -> AsyncIterator[AsyncClient]:
    opened = AsyncClient(settings) if request.param == "direct" else AsyncClient(base_url=api_url)
    async with opened:
        yield opened


@pytest.mark.parametrize("inputs", [split(SETOSA), pd.DataFrame([SETOSA], columns=IRIS)], ids=["document", "frame"])
async def test_a_client_names_who_is_told(
    client: AsyncClient, inputs: Any, workers: Workers, receiver: Receiver, secret: str, courier: Courier
) -> None:
    job = await client.submit(IRIS_1, inputs, webhook=receiver.url("/here"))
    await workers.all()
    await delivered(courier)
    (told,) = receiver.told
    assert (told.path, told.json["type"], told.json["data"]["id"]) == ("/here", "job.succeeded", str(job.id))


async def test_a_client_is_told_why_nobody_can_be(client: AsyncClient, receiver: Receiver) -> None:
    for url, why in ((receiver.url(), "no secret"), ("http://169.254.169.254/", "public address")):
        with pytest.raises(InvalidInput, match=why) as caught:
            await client.submit(IRIS_1, split(SETOSA), webhook=url)
        assert caught.value.field == "webhook"


async def test_attempts_are_counted_by_what_came_of_them(
    settings: Settings, workers: Workers, receiver: Receiver, secret: str, courier: Courier
) -> None:
    recorder.take()
    async with AsyncClient(settings) as client:
        for code in (204, 500, 410):
            receiver.reply = status(code)
            await client.submit(IRIS_1, split(SETOSA), webhook=receiver.url(f"/{code}"))
            await workers.all()
            await delivered(courier)
        strict = Courier(workers.ledger, Settings().webhook_rules)
        await client.submit(IRIS_1, split(SETOSA), webhook=receiver.url("/refused"))
        await workers.all()
        await delivered(strict)
        await strict.close()
    counted = {s.labels[0]: s.total for s in recorder.samples() if s.name == metrics.WEBHOOKS.name}
    assert counted == {"delivered": 1, "failed": 1, "given_up": 1, "refused": 1}
    (seconds,) = (s for s in recorder.samples() if s.name == metrics.WEBHOOK_SECONDS.name)
    assert sum(seconds.counts or ()) == 4
