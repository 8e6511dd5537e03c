"""Webhooks: every end of a job is told, signed, and at least once."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import orjson
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from pyfunq.environment import child_environment
from pyfunq.errors import LedgerUnavailable
from pyfunq.ids import new_id
from pyfunq.job import JobStatus
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from pyfunq.webhooks import PAUSES_SECONDS, new_secret
from tests.integration.api.conftest import AppServer, MakeKey, Workers, job_id_of
from tests.integration.api.webhooks.conftest import IRIS_1, Eventually, asked, delivered, log_of, now_due, submitted
from tests.integration.api.webhooks.receiver import Receiver, status
from tests.integration.conftest import SETOSA, split
from tests.programs import start_worker
from worker.webhooks import Courier

pytestmark = pytest.mark.usefixtures("iris_model")
DOCS = Path(__file__).parents[4] / "docs" / "webhooks.md"


async def test_the_end_of_a_job_is_told_signed_and_logged(
    http: httpx.AsyncClient, workers: Workers, receiver: Receiver, secret: str, courier: Courier
) -> None:
    job_id = await submitted(http, receiver.url("/in?a=1"))
    waiting = await log_of(http, job_id)
    assert (waiting["status"], waiting["event"], waiting["deliveries"]) == ("waiting", None, [])
    assert await delivered(courier) == 0
    await workers.all()
    assert await delivered(courier) == 1
    (told,) = receiver.told
    job = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert Webhook(secret).verify(told.body, told.headers) == told.json
    assert told.json == {"type": "job.succeeded", "timestamp": job["finished_at"], "data": job}
    assert "predictions" not in told.json["data"]
    assert (told.path, told.headers["host"]) == ("/in?a=1", f"127.0.0.1:{receiver.port}")
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(told.body.replace(b"succeeded", b"cancelled"), told.headers)
    log = await log_of(http, job_id)
    (made,) = log["deliveries"]
    assert (log["status"], log["event"], log["attempts"]) == ("delivered", "job.succeeded", 1)
    assert log["next_attempt_at"] is None
    assert (made["status_code"], made["error"], made["attempt"]) == (204, None, 1)
    assert await delivered(courier) == 0


async def _fail(http: httpx.AsyncClient, workers: Workers, job_id: UUID) -> None:
    await workers.ledger._pool.execute('UPDATE job_input SET input = \'{"columns": ["x"], "data": [[1]]}\'::bytea')
    await workers.all()


async def _cancel(http: httpx.AsyncClient, workers: Workers, job_id: UUID) -> None:
    assert (await http.post(f"/v1/jobs/{job_id}/cancel")).status_code == 202


async def _expire(http: httpx.AsyncClient, workers: Workers, job_id: UUID) -> None:
    await workers.ledger._pool.execute("UPDATE job SET expires_at = now()")
    assert await workers.ledger.expire() == [job_id]


async def _die(http: httpx.AsyncClient, workers: Workers, job_id: UUID) -> None:
    ledger = workers.ledger
    await ledger._pool.execute("UPDATE job SET max_attempts = 1")
    await ledger.claim(job_id, new_id(), max_jobs=1, max_rows=10, max_bytes=10_000)
    assert (await ledger.rescue_crashed(0.0))[job_id].status == JobStatus.DEAD


@pytest.mark.parametrize(
    ("end", "event"), [(_fail, "failed"), (_cancel, "cancelled"), (_expire, "expired"), (_die, "dead")]
)
async def test_however_it_ends(
    end: Callable[..., Awaitable[None]],
    event: str,
    http: httpx.AsyncClient,
    workers: Workers,
    receiver: Receiver,
    secret: str,
    courier: Courier,
) -> None:
    job_id = await submitted(http, receiver.url())
    await end(http, workers, job_id)
    await delivered(courier)
    (told,) = receiver.told
    assert told.json["type"] == f"job.{event}"
    assert told.json["data"]["status"] == event


async def test_a_job_that_is_tried_again_ends_again(
    http: httpx.AsyncClient, workers: Workers, receiver: Receiver, secret: str, courier: Courier
) -> None:
    job_id = await submitted(http, receiver.url())
    await _cancel(http, workers, job_id)
    await delivered(courier)
    assert (await http.post(f"/v1/jobs/{job_id}/retry")).status_code == 202
    assert (await log_of(http, job_id))["status"] == "waiting"
    await _expire(http, workers, job_id)
    await delivered(courier)
    first, second = receiver.told
    assert [told.json["type"] for told in (first, second)] == ["job.cancelled", "job.expired"]
    assert first.headers["webhook-id"] != second.headers["webhook-id"]
    assert [made["event"] for made in (await log_of(http, job_id))["deliveries"]] == ["job.cancelled", "job.expired"]


async def test_jobs_without_a_webhook_are_not_looked_at(
    http: httpx.AsyncClient, workers: Workers, courier: Courier, sql: asyncpg.Connection
) -> None:
    answer = await http.post("/v1/jobs", json={"model": IRIS_1, **split(SETOSA)})
    await workers.all()
    assert await delivered(courier) == 0
    assert await sql.fetchval("SELECT count(*) FROM webhook") == 0
    log = await http.get(f"/v1/jobs/{job_id_of(answer)}/webhook")
    assert (log.status_code, log.json()["code"]) == (404, "not_found")


async def test_what_fails_is_tried_again_later_and_later_under_the_same_id(
    http: httpx.AsyncClient,
    workers: Workers,
    receiver: Receiver,
    secret: str,
    courier: Courier,
    sql: asyncpg.Connection,
) -> None:
    receiver.reply = status(503)
    job_id = await submitted(http, receiver.url())
    await _cancel(http, workers, job_id)
    for attempt, pause in enumerate(PAUSES_SECONDS, start=1):
        assert await delivered(courier) == 1
        assert await delivered(courier) == 0, "not before the pause is over"
        left = await sql.fetchval("SELECT extract(epoch FROM next_at - now())::float FROM webhook")
        assert pause - 5 < left <= pause * 1.1
        log = await log_of(http, job_id)
        assert (log["status"], log["attempts"], len(log["deliveries"])) == ("due", attempt, attempt)
        await now_due(sql)
    await delivered(courier)
    log = await log_of(http, job_id)
    assert (log["status"], log["next_attempt_at"], len(log["deliveries"])) == ("failed", None, len(PAUSES_SECONDS) + 1)
    assert {(made["status_code"], made["error"]) for made in log["deliveries"]} == {(503, "status")}
    assert len({told.headers["webhook-id"] for told in receiver.told}) == 1
    assert len({told.body for told in receiver.told}) == 1


async def test_it_is_delivered_once_it_is_taken(
    http: httpx.AsyncClient,
    workers: Workers,
    receiver: Receiver,
    secret: str,
    courier: Courier,
    sql: asyncpg.Connection,
) -> None:
    receiver.reply = status(500)
    job_id = await submitted(http, receiver.url())
    await _cancel(http, workers, job_id)
    await delivered(courier)
    receiver.reply = status(200)
    await now_due(sql)
    await delivered(courier)
    log = await log_of(http, job_id)
    assert [made["status_code"] for made in log["deliveries"]] == [500, 200]
    assert log["status"] == "delivered"


async def test_gone_ends_it_for_all_that_named_the_url_until_then(
    http: httpx.AsyncClient, workers: Workers, receiver: Receiver, secret: str, courier: Courier
) -> None:
    receiver.reply = status(410)
    first, second = [await submitted(http, receiver.url()) for _ in range(2)]
    other = await submitted(http, receiver.url("/other"))
    await _cancel(http, workers, first)
    await delivered(courier)
    receiver.reply = status(204)
    for job_id in (second, other):
        await _cancel(http, workers, job_id)
    later = await submitted(http, receiver.url())
    await _cancel(http, workers, later)
    await delivered(courier)
    states = [(await log_of(http, job_id))["status"] for job_id in (first, second, other, later)]
    assert states == ["disabled", "disabled", "delivered", "delivered"]
    assert len(receiver.told) == 3


async def test_what_a_process_left_behind_another_delivers(
    http: httpx.AsyncClient,
    workers: Workers,
    receiver: Receiver,
    secret: str,
    ledger: Ledger,
    courier: Courier,
    sql: asyncpg.Connection,
) -> None:
    job_id = await submitted(http, receiver.url())
    await _cancel(http, workers, job_id)
    claim = {"at_most": 5, "of_each_tenant": 5, "not_of": [], "lease_seconds": 60.0}
    assert len(await ledger.claim_webhooks(**claim)) == 1  # and then it died
    assert await delivered(courier) == 0
    await now_due(sql)
    assert await delivered(courier) == 1
    assert (await log_of(http, job_id))["status"] == "delivered"


async def test_it_is_told_again_where_nobody_could_write_down_that_it_was(
    http: httpx.AsyncClient,
    workers: Workers,
    receiver: Receiver,
    secret: str,
    courier: Courier,
    sql: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    ledger: Ledger,
) -> None:
    job_id = await submitted(http, receiver.url())
    await _cancel(http, workers, job_id)

    async def away(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "record_delivery", away)
        await delivered(courier)
    await now_due(sql)
    await delivered(courier)
    assert len({told.headers["webhook-id"] for told in receiver.told}) == 1
    assert len(receiver.told) == 2


async def test_couriers_share_the_work(
    http: httpx.AsyncClient, receiver: Receiver, secret: str, ledger: Ledger, settings: Settings
) -> None:
    ids = [await submitted(http, receiver.url()) for _ in range(60)]
    await ledger.cancel(ids)
    couriers = [Courier(ledger, settings.webhook_rules) for _ in range(4)]
    while sum(await asyncio.gather(*map(delivered, couriers))):
        pass
    assert sorted(UUID(told.json["data"]["id"]) for told in receiver.told) == sorted(ids)
    for courier in couriers:
        await courier.close()


async def test_a_tenant_with_many_does_not_hide_another(
    http: httpx.AsyncClient,
    make_key: MakeKey,
    receiver: Receiver,
    ledger: Ledger,
    courier: Courier,
) -> None:
    crowd, other = await make_key("crowd"), await make_key("other")
    for tenant in ("crowd", "other"):
        await ledger.set_webhook_secret(tenant, new_secret())
    ids = [await submitted(http, receiver.url("/crowd"), **crowd) for _ in range(50)]
    ids.append(await submitted(http, receiver.url("/other"), **other))
    await ledger.cancel(ids)
    await delivered(courier)
    paths = [told.path for told in receiver.told]
    assert paths.count("/other") == 1
    assert paths.count("/crowd") == 20


async def test_each_tenant_has_its_secret_and_its_logs(
    http: httpx.AsyncClient, make_key: MakeKey, receiver: Receiver, ledger: Ledger, courier: Courier
) -> None:
    ours, theirs = await make_key("acme"), await make_key("rival")
    refused = await http.post("/v1/jobs", json=asked(receiver.url()), headers=ours)
    assert refused.status_code == 422
    assert "pyfunq webhooks secret" in refused.json()["detail"]
    secrets = {tenant: new_secret() for tenant in ("acme", "rival")}
    for tenant, secret in secrets.items():
        await ledger.set_webhook_secret(tenant, secret)
    job_id = await submitted(http, receiver.url(), **ours)
    await ledger.cancel([job_id])
    await delivered(courier)
    (told,) = receiver.told
    Webhook(secrets["acme"]).verify(told.body, told.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secrets["rival"]).verify(told.body, told.headers)
    assert (await log_of(http, job_id, **ours))["status"] == "delivered"
    assert (await http.get(f"/v1/jobs/{job_id}/webhook", headers=theirs)).status_code == 404


async def test_the_command_makes_and_rotates_a_secret(
    http: httpx.AsyncClient,
    receiver: Receiver,
    settings: Settings,
    courier: Courier,
    ledger: Ledger,
    sql: asyncpg.Connection,
) -> None:
    def made() -> str:
        command = [sys.executable, "-c", "from producer.cli import main; main()", "webhooks", "secret"]
        run = subprocess.run(command, env=child_environment(settings), capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        assert "whsec_" not in run.stderr
        return run.stdout.strip()

    old, new = [await asyncio.to_thread(made) for _ in range(2)]
    await ledger.cancel([await submitted(http, receiver.url())])
    await delivered(courier)
    for secret in (old, new):
        Webhook(secret).verify(receiver.told[0].body, receiver.told[0].headers)
    await sql.execute("UPDATE webhook_secret SET rotated_at = now() - interval '25 hours'")
    await ledger.cancel([await submitted(http, receiver.url())])
    await delivered(courier)
    Webhook(new).verify(receiver.told[1].body, receiver.told[1].headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(receiver.told[1].body, receiver.told[1].headers)


async def test_the_receiver_of_the_documentation(
    http: httpx.AsyncClient,
    secret: str,
    ledger: Ledger,
    courier: Courier,
    sql: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYFUNQ_WEBHOOK_SECRET", secret)
    written = DOCS.read_text().split("```python\n")[1].partition("```")[0]
    names: dict[str, Any] = {}
    exec(compile(written, str(DOCS), "exec"), names)  # noqa: S102
    with AppServer(names["app"]) as url:
        good, replayed, bad = [await submitted(http, f"{url}/pyfunq") for _ in range(3)]
        await ledger.cancel([good, replayed])
        await delivered(courier)
        await sql.execute("UPDATE webhook SET status = 'due', next_at = now() WHERE job_id = $1", replayed)
        await delivered(courier)
        await sql.execute("UPDATE webhook_secret SET secret = $1", new_secret())
        await ledger.cancel([bad])
        await delivered(courier)
    logs = [(await log_of(http, job_id))["deliveries"] for job_id in (good, replayed, bad)]
    assert [[made["status_code"] for made in log] for log in logs] == [[204], [204, 204], [401]]
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == sorted(f"job.cancelled /v1/jobs/{job_id}/result" for job_id in (good, replayed))


async def test_workers_deliver_without_the_api(
    http: httpx.AsyncClient,
    receiver: Receiver,
    secret: str,
    settings: Settings,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    environment = {
        "PYFUNQ_WEBHOOK_ALLOW_HTTP": "true",
        "PYFUNQ_WEBHOOK_PORTS": "1-65535",
        "PYFUNQ_WEBHOOK_NETWORKS": "127.0.0.0/8",
    }
    worker = await asyncio.to_thread(start_worker, settings, tmp_path / "worker.log", processes=1, **environment)
    try:
        job_id = await submitted(http, receiver.url())
        await eventually("the worker tells of the job's end", lambda: receiver.told)
    finally:
        await asyncio.to_thread(worker.stop)
    (told,) = receiver.told
    assert (told.json["type"], told.json["data"]["id"]) == ("job.succeeded", str(job_id))
    assert secret not in worker.text()


async def test_what_is_due_is_found_by_the_index(ledger: Ledger, sql: asyncpg.Connection) -> None:
    await sql.execute(
        """INSERT INTO webhook (job_id, tenant_id, url, status, event, ended_at, next_at)
           SELECT gen_random_uuid(), n % 3, 'https://hooks.example/',
                  CASE WHEN n % 100 = 0 THEN 'due' ELSE 'waiting' END, 'succeeded', now(), now()
           FROM generate_series(1, 20000) AS n"""
    )
    await sql.execute("SET enable_seqscan = off")
    await sql.execute(f"PREPARE claim (int, int, int[], float8) AS {ledger._sql['claim_webhooks']}")
    statement = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE claim(5, 5, '{}', 60)"
    plan = orjson.loads(await sql.fetchval(statement))[0]["Plan"]
    assert "Seq Scan" not in orjson.dumps(plan).decode()
    assert plan["Actual Rows"] == 5
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 200, "of about 500 that the table has"


async def test_nothing_of_it_is_in_the_logs(
    http: httpx.AsyncClient,
    receiver: Receiver,
    secret: str,
    ledger: Ledger,
    courier: Courier,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    receiver.reply = status(410)
    await ledger.cancel([await submitted(http, receiver.url("/in?token=opensesame"))])
    await delivered(courier)
    assert "disabled" in caplog.text
    assert not any(part in caplog.text for part in ("sesame", secret, "setosa"))


async def test_purging_dead_jobs_forgets_their_webhooks(
    http: httpx.AsyncClient,
    workers: Workers,
    receiver: Receiver,
    secret: str,
    courier: Courier,
    sql: asyncpg.Connection,
) -> None:
    await _die(http, workers, await submitted(http, receiver.url()))
    await delivered(courier)
    assert await workers.ledger.purge_dead(older_than_seconds=0) == 1
    assert await sql.fetchval("SELECT (SELECT count(*) FROM webhook) + (SELECT count(*) FROM webhook_delivery)") == 0
