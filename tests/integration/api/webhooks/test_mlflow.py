"""MLflow tells the API of changes: who it is, when, once; and what comes of it."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.webhooks.delivery import _generate_hmac_signature
from redis import Redis

from producer.api import hooks
from producer.api.hooks import Refresher
from pyfunq.errors import QueueUnavailable
from pyfunq.http_transport import trusted
from pyfunq.ledger import Ledger
from pyfunq.queue import CONTROL_QUEUE
from pyfunq.settings import Settings
from tests.conftest import Servers
from tests.integration.api.conftest import ApiServer
from tests.integration.api.webhooks.conftest import Eventually
from tests.integration.conftest import SETOSA, split
from tests.programs import start_worker

SECRET = "a word between the two"
HOOK = "/v1/hooks/mlflow"
BODY = '{"entity": "model_version_alias", "action": "created", "data": {}}'


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_validate({**dict(settings), "mlflow_webhook_secret": SECRET})


def signed(
    body: str = BODY, *, secret: str = SECRET, age: float = 0.0, delivery_id: str | None = None
) -> dict[str, Any]:
    """A request as MLflow makes it, with the signature that its own code gives."""
    delivery_id, sent_at = delivery_id or str(uuid4()), str(int(time.time() - age))
    signature = _generate_hmac_signature(secret, delivery_id, sent_at, body)
    return {
        "content": body,
        "headers": {
            "Content-Type": "application/json",
            "X-MLflow-Delivery-Id": delivery_id,
            "X-MLflow-Timestamp": sent_at,
            "X-MLflow-Signature": signature,
        },
    }


def messages(redis_url: str) -> int:
    with Redis.from_url(redis_url) as redis:
        return int(redis.llen(CONTROL_QUEUE))


async def test_an_alias_that_moved_is_followed_at_once(
    api_url: str,
    http: httpx.AsyncClient,
    settings: Settings,
    servers: Servers,
    ledger: Ledger,
    iris_model: str,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    registry = MlflowClient(servers.mlflow, servers.mlflow)
    uri = "models:/iris@hooked"
    await asyncio.to_thread(registry.set_registered_model_alias, "iris", "hooked", "1")
    webhook = await asyncio.to_thread(
        registry.create_webhook,
        f"pyfunq-{uuid4().hex}",
        f"{api_url}{HOOK}",
        [WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)],
        secret=SECRET,
    )
    # The watch itself would come an hour later. Until it works, MLflow has noticed its webhook: that takes a second.
    worker = await asyncio.to_thread(
        start_worker, settings, tmp_path / "worker.log", processes=1, PYFUNQ_REGISTRY_WATCH_SECONDS="3600"
    )

    async def is_followed() -> bool:
        return {r.model_uri: r.version.version for r in await ledger.resolutions()}[uri] == "2"

    try:
        answer = await http.post("/v1/jobs", json={"model": uri, **split(SETOSA)}, headers={"Prefer": "wait=60"})
        assert (answer.json()["status"], answer.json()["model_version"]) == ("succeeded", "1")
        await asyncio.to_thread(registry.set_registered_model_alias, "iris", "hooked", "2")
        await eventually("the alias is followed", is_followed, 30)
    finally:
        await asyncio.to_thread(registry.delete_webhook, webhook.webhook_id)
        await asyncio.to_thread(registry.delete_registered_model_alias, "iris", "hooked")
        await asyncio.to_thread(worker.stop)


async def test_what_mlflow_signed_makes_the_watch_run(
    http: httpx.AsyncClient, redis_url: str, eventually: Eventually
) -> None:
    assert (await http.post(HOOK, **signed())).status_code == 202
    await eventually("the watch is asked to run", lambda: messages(redis_url) == 1)


async def test_many_at_once_make_it_run_once_a_second(
    http: httpx.AsyncClient, redis_url: str, eventually: Eventually
) -> None:
    begun = time.monotonic()
    assert (await http.post(HOOK, **signed())).status_code == 202
    await eventually("once at once", lambda: messages(redis_url) >= 1)
    answers = await asyncio.gather(*(http.post(HOOK, **signed()) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {202}
    await eventually("once for those that came meanwhile", lambda: messages(redis_url) >= 2)
    assert messages(redis_url) <= 1 + (time.monotonic() - begun)


async def test_a_replay_is_refused(http: httpx.AsyncClient, redis_url: str, eventually: Eventually) -> None:
    request = signed()
    assert (await http.post(HOOK, **request)).status_code == 202
    again = await http.post(HOOK, **request)
    assert (again.status_code, again.json()["code"]) == (409, "replayed")
    with Redis.from_url(redis_url) as redis:
        (kept,) = redis.scan_iter("pyfunq:mlflow-delivery:*")
        assert 590 < redis.ttl(kept) <= 601


def _without(name: str) -> dict[str, Any]:
    request = signed()
    del request["headers"][name]
    return request


def _with(name: str, value: str | bytes) -> dict[str, Any]:
    request = signed()
    request["headers"][name] = value
    return request


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: signed(secret="another"),
        lambda: signed(age=301),
        lambda: signed(age=-310),
        lambda: {**signed(), "content": BODY.replace("created", "deleted")},
        lambda: _without("X-MLflow-Signature"),
        lambda: _without("X-MLflow-Timestamp"),
        lambda: _without("X-MLflow-Delivery-Id"),
        lambda: _with("X-MLflow-Delivery-Id", str(uuid4())),
        lambda: _with("X-MLflow-Timestamp", str(int(time.time()) + 1)),
        lambda: _with("X-MLflow-Signature", "v1,"),
        lambda: _with("X-MLflow-Signature", "v1,ä".encode()),
        lambda: signed(delivery_id="x" * 101),
    ],
)
async def test_what_mlflow_did_not_sign_just_now_is_refused(
    request_of: Callable[[], dict[str, Any]], http: httpx.AsyncClient, redis_url: str
) -> None:
    answer = await http.post(HOOK, **request_of())
    assert (answer.status_code, answer.json()["code"]) == (401, "bad_signature")
    assert "www-authenticate" in answer.headers
    assert SECRET not in answer.text
    assert messages(redis_url) == 0


async def test_too_large_a_body_is_refused(http: httpx.AsyncClient) -> None:
    assert (await http.post(HOOK, **signed("x" * (256 * 1024 + 1)))).status_code == 413
    assert (await http.post(HOOK, **signed("x" * (256 * 1024)))).status_code == 202


async def test_without_a_secret_nobody_is_listened_to(settings: Settings) -> None:
    for secret in (None, ""):
        deaf = settings.model_validate({**dict(settings), "mlflow_webhook_secret": secret})
        with ApiServer(deaf) as url:
            async with httpx.AsyncClient(base_url=url, verify=trusted()) as http:
                answer = await http.post(HOOK, **signed(secret=""))
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_where_redis_is_away_mlflow_is_to_try_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        async def set(self, *_: Any, **__: Any) -> None:
            raise ConnectionError

        async def aclose(self) -> None: ...

    monkeypatch.setattr(hooks.Redis, "from_url", lambda *_, **__: Away())
    with ApiServer(settings) as url:
        async with httpx.AsyncClient(base_url=url, verify=trusted()) as http:
            answer = await http.post(HOOK, **signed())
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
    assert answer.headers["retry-after"]


async def test_a_look_that_could_not_be_asked_for_ends_nothing(eventually: Eventually) -> None:
    asked = 0

    def refresh() -> None:
        nonlocal asked
        asked += 1
        raise QueueUnavailable

    refresher = Refresher(refresh, pause_seconds=0.01)
    for n in (1, 2):
        refresher.ask()
        await eventually("it is asked for", lambda n=n: asked == n)
        await eventually("it is over", lambda: refresher._task is None)
    await refresher.close()
