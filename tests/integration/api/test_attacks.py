"""What callers may try over HTTP, one by one, and the answers; numbers are those of docs/security.md."""

import asyncio
import gzip
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from producer.api.problems import MEDIA_TYPE
from producer.api.service import Service
from pyfunq.api_keys import Scope, new_key
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.integration.api.conftest import MakeKey, Serve, Workers, job_id_of
from tests.integration.api.sockets import ask, connected, head
from tests.integration.conftest import SETOSA, VIRGINICA, split

IRIS_1 = "models:/iris/1"
JOB = {"model": IRIS_1, **split(SETOSA)}
AS_JSON = {"Content-Type": "application/json"}
pytestmark = pytest.mark.usefixtures("iris_model")


def problem_of(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    document: dict[str, Any] = answer.json()
    assert document["instance"].startswith("urn:uuid:")
    if code is not None:
        assert document["code"] == code
    return document


# What is asked for.


async def test_3_a_field_that_no_job_has(http: httpx.AsyncClient) -> None:
    document = problem_of(await http.post("/v1/jobs", json={"model_uri": "file:///etc/passwd", **split(SETOSA)}), 422)
    assert document["errors"][0]["pointer"] == "/model_uri"


@pytest.mark.parametrize(
    "model",
    [
        "../x",
        "..",
        "file:///etc/passwd",
        "s3://bucket/model",
        "http://169.254.169.254/",
        "runs:/../x/y",
        "models:/../x/1",
    ],
)
async def test_4_a_file_or_a_host_instead_of_a_model(http: httpx.AsyncClient, model: str) -> None:
    problem_of(await http.post("/v1/jobs", json={**JOB, "model": model}), 422, "invalid_model_uri")


async def test_5_a_model_that_is_not_registered(http: httpx.AsyncClient, serve: Serve) -> None:
    nowhere = {**JOB, "model": "models:/nowhere/1"}
    problem_of(await http.post("/v1/jobs", json=nowhere), 404, "model_not_found")
    # Only the registry can tell; while it is away, jobs are accepted and wait for it.
    async with serve(mlflow_tracking_uri="http://127.0.0.1:9") as alone:
        assert (await alone.post("/v1/jobs", json=nowhere)).status_code == 202


async def test_6_a_version_that_the_operator_does_not_allow(serve: Serve, make_key: MakeKey) -> None:
    async with serve(allowed_models=("models:/iris/2",)) as http:
        problem_of(await http.post("/v1/jobs", json=JOB), 404, "model_not_allowed")
        assert (await http.post("/v1/jobs", json={**JOB, "model": "models:/iris/2"})).status_code == 202
        narrow = await make_key(models=("models:/iris@*",))
        problem_of(await http.post("/v1/jobs", json={**JOB, "model": "models:/iris/2"}, headers=narrow), 404)


# Who asks.


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/018f0000-0000-7000-8000-000000000000"])
async def test_14_no_key(http: httpx.AsyncClient, make_key: MakeKey, path: str) -> None:
    await make_key()
    answer = await http.get(path)
    problem_of(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_15_a_wrong_key(http: httpx.AsyncClient, make_key: MakeKey) -> None:
    """Keys are found by their SHA-256, so that the time of a look tells nothing of how much of a guess is right."""
    await make_key()
    for wrong in (new_key(), new_key()[:-1] + "?", "x", "Basic abc"):
        answer = await http.get("/v1/jobs", headers={"Authorization": f"Bearer {wrong}"})
        problem_of(answer, 401)
        assert "invalid_token" in answer.headers["www-authenticate"]


async def test_16_a_key_in_the_address(
    http: httpx.AsyncClient, make_key: MakeKey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = await make_key()
    key = headers["Authorization"].split()[1]
    for also in ({}, headers):
        answer = await http.get("/v1/jobs", params={"api_key": key}, headers=also)
        problem_of(answer, 401)
        assert key not in answer.text
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith("http")]
    assert [line[:300] for line in ours if key in line] == []


async def test_17_a_revoked_key(
    serve: Serve, make_key: MakeKey, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known keys are asked for again after 30 s; here after a tenth of that time's hundredth."""
    monkeypatch.setattr("producer.api.callers._FRESH_SECONDS", 0.03)
    headers = await make_key(name="gone")
    async with serve() as http:
        assert (await http.get("/v1/jobs", headers=headers)).status_code == 200
        assert len(await ledger.revoke_keys("gone")) == 1
        async with asyncio.timeout(10):
            while (await http.get("/v1/jobs", headers=headers)).status_code == 200:
                pass
        problem_of(await http.get("/v1/jobs", headers=headers), 401)
        late = await make_key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
        problem_of(await http.get("/v1/jobs", headers=late), 401)


async def test_18_a_key_that_may_only_read(http: httpx.AsyncClient, make_key: MakeKey) -> None:
    headers = await make_key("acme", Scope.READ)
    problem_of(await http.post("/v1/jobs", json=JOB, headers=headers), 403, "forbidden")
    assert (await http.get("/v1/jobs", headers=headers)).status_code == 200


async def test_19_another_tenants_job(http: httpx.AsyncClient, make_key: MakeKey) -> None:
    ours, theirs = await make_key("acme"), await make_key("rival")
    place = (await http.post("/v1/jobs", json=JOB, headers=ours)).headers["location"]
    none = "/v1/jobs/018f0000-0000-7000-8000-000000000000"
    for method, end in (("GET", ""), ("GET", "/result"), ("POST", "/cancel"), ("POST", "/retry")):
        of_theirs = problem_of(await http.request(method, place + end, headers=theirs), 404)
        of_none = problem_of(await http.request(method, none + end, headers=theirs), 404)
        assert of_theirs["code"] == of_none["code"]
    assert (await http.get("/v1/jobs", headers=theirs)).json()["data"] == []
    assert (await http.get(place, headers=ours)).json()["status"] == "queued"


async def test_20_another_tenants_idempotency_key(http: httpx.AsyncClient, make_key: MakeKey) -> None:
    ids = {
        job_id_of(
            await http.post("/v1/jobs", json=JOB, headers={**await make_key(tenant), "Idempotency-Key": "order-1"})
        )
        for tenant in ("acme", "rival")
    }
    assert len(ids) == 2


async def test_21_an_idempotency_key_with_another_body(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order-1"}
    assert (await http.post("/v1/jobs", json=JOB, headers=headers)).status_code == 202
    other = await http.post("/v1/jobs", json={**JOB, **split(VIRGINICA)}, headers=headers)
    problem_of(other, 422, "idempotency_conflict")


async def test_22_an_idempotency_key_a_hundred_times_at_once(http: httpx.AsyncClient) -> None:
    asked = [http.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "order-1"}) for _ in range(100)]
    answers = await asyncio.gather(*asked)
    assert {a.status_code for a in answers} == {202}
    assert len({job_id_of(a) for a in answers}) == 1


async def test_23_a_key_of_10_kilobytes(http: httpx.AsyncClient) -> None:
    problem_of(await http.get("/v1/jobs", headers={"Authorization": f"Bearer {'x' * 10_240}"}), 400)
    problem_of(await http.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "x" * 10_240}), 422)


# Bodies.

SMALL = 2_000


async def test_24_a_body_that_is_one_byte_too_long(serve: Serve) -> None:
    async with serve(max_input_bytes=SMALL) as http:
        fits = json.dumps(JOB).encode().ljust(2 * SMALL)
        assert (await http.post("/v1/jobs", content=fits, headers=AS_JSON)).status_code == 202
        problem_of(await http.post("/v1/jobs", content=fits + b" ", headers=AS_JSON), 413, "body_too_large")
        announced = head("POST", "/v1/jobs", "Content-Type: application/json", f"Content-Length: {2 * SMALL + 1}")
        assert (await ask(str(http.base_url), announced)).problem["code"] == "body_too_large", "before it is sent"


async def test_25_a_chunked_body_without_end(serve: Serve) -> None:
    async with serve(max_input_bytes=SMALL) as http, connected(str(http.base_url)) as raw:
        await raw.send(head("POST", "/v1/jobs", "Content-Type: application/json", "Transfer-Encoding: chunked"))
        for _ in range(2 * SMALL // 1_000 + 1):
            await raw.send(b"3e8\r\n" + b" " * 1_000 + b"\r\n")
        assert (await raw.answer()).problem["status"] == 413
        with suppress(ConnectionError):
            while not raw.reader.at_eof():
                await raw.send(b"3e8\r\n" + b" " * 1_000 + b"\r\n")
                await asyncio.sleep(0.01)


async def test_26_a_gzip_bomb(serve: Serve) -> None:
    async with serve(max_input_bytes=1_000_000) as http:
        bomb = gzip.compress(b" " * 200_000_000)
        assert len(bomb) < 2_000_000
        headers = {**AS_JSON, "Content-Encoding": "gzip"}
        problem_of(await http.post("/v1/jobs", content=bomb, headers=headers), 413)
        fits = gzip.compress(json.dumps(JOB).encode())
        assert (await http.post("/v1/jobs", content=fits, headers=headers)).status_code == 202
        problem_of(await http.post("/v1/jobs", content=fits[:-9], headers=headers), 400)
        problem_of(await http.post("/v1/jobs", content=b"not gzip", headers=headers), 400)
        doubled = {**AS_JSON, "Content-Encoding": "gzip, gzip"}
        problem_of(await http.post("/v1/jobs", content=fits, headers=doubled), 415)


DEEP = 100_000


@pytest.mark.parametrize(
    ("number", "body"),
    [
        (27, b'{"model":"iris","inputs":' + b"[" * DEEP + b"]" * DEEP + b"}"),
        (27, b'{"model":"iris","inputs":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}"),
        (27, b'{"model":"iris","inputs":' + b"[" * 65 + b"]" * 65 + b"}"),
        (28, b'{"model":"iris","inputs":[' + b"9" * 1_000_000 + b"]}"),
        (29, b'{"model":"iris","inputs":[NaN]}'),
        (29, b'{"model":"iris","inputs":[-Infinity]}'),
        (29, b'{"model":"iris","inputs":[1e999]}'),
        (31, b'{"model":"iris","inputs":["\xff"]}'),
        (31, b'{"model":"iris","inputs":["\xed\xa0\x80"]}'),
        (32, b'{"model":"iris","model":"other","inputs":[1]}'),
        (32, b'{"model":"iris","inputs":[{"a":1,"a":2}]}'),
        (27, b"[]"),
        (27, b""),
        (27, b'{"model":'),
    ],
)
async def test_27_28_29_31_32_what_is_no_strict_json(http: httpx.AsyncClient, number: int, body: bytes) -> None:
    document = problem_of(await http.post("/v1/jobs", content=body, headers=AS_JSON), 400)
    assert len(document["detail"]) < 300
    if body.startswith(b'{"model":"iris","inputs":[NaN'):
        assert "null" in document["detail"]
    assert (await http.get("/health/ready")).status_code == 200


@pytest.mark.parametrize(
    "where",
    [
        {"metadata": {"a": "\0"}},
        {"params": {"a\0": 1}},
        {"dataframe_split": {"columns": ["a\0"], "data": [[1]]}},
        {"dataframe_split": {"columns": ["a"], "data": [["\0"]]}},
    ],
)
async def test_30_characters_that_postgres_does_not_store(
    http: httpx.AsyncClient, workers: Workers, where: dict[str, Any]
) -> None:
    """Taken: inputs and metadata are bytes or escaped JSON to the ledger, and a NUL is as good a character as others.

    The worker records what a model says of them. Only a model's name cannot hold one, nor any control character.
    """
    problem_of(await http.post("/v1/jobs", json={**JOB, "model": "ir\0is"}), 422)
    answer = await workers.while_(http.post("/v1/jobs", json={**JOB, **where}, headers={"Prefer": "wait=30"}))
    job = answer.json()
    assert job["status"] == ("succeeded" if "metadata" in where else "failed"), answer.text
    assert job["metadata"] == where.get("metadata")


async def test_31_half_a_character_that_json_can_spell(http: httpx.AsyncClient) -> None:
    """422, not 400: the JSON is well-formed, and the pointer says where."""
    body = b'{"model":"iris","inputs":[{"a":"\\ud800"}]}'
    document = problem_of(await http.post("/v1/jobs", content=body, headers=AS_JSON), 422)
    assert document["errors"][0]["pointer"].startswith("/inputs")


# Lists.


@pytest.mark.parametrize(
    "query",
    [
        {"status": "queued' OR 1=1 --"},
        {"model": "models:/iris/1'; DROP TABLE job; --"},
        {"sort": "id; DROP TABLE job"},
        {"batch": "1 OR 1=1"},
        {"cursor": "018f0000-0000-4000-8000-000000000000"},
        {"cursor": "x"},
        {"cursor": "00000000-0000-7000-8000-000000000000"},
        {"limit": "1000000000"},
        {"limit": "0"},
        {"limit": "-1"},
        {"status": ["queued", "failed'"]},
    ],
)
async def test_33_34_sql_and_forged_cursors(http: httpx.AsyncClient, query: dict[str, Any]) -> None:
    document = problem_of(await http.get("/v1/jobs", params=query), 422)
    assert len(document["detail"]) < 300
    assert (await http.get("/v1/jobs")).status_code == 200


async def test_36_markup_and_control_characters_in_metadata(http: httpx.AsyncClient) -> None:
    """JSON escapes them, and no browser takes the answer for a page; the commands show metadata as JSON only."""
    nasty = {"note": "a\r\nSet-Cookie: x=1\x1b[31m<script>alert(1)</script>\u2028"}
    answer = await http.post("/v1/jobs", json={**JOB, "metadata": nasty})
    assert answer.status_code == 202
    answer = await http.get(answer.headers["location"])
    assert answer.json()["metadata"] == nasty
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in answer.headers
    assert b"\x1b" not in answer.content
    assert b"\n" not in answer.content


# Too much.


async def test_37_a_flood(http: httpx.AsyncClient, make_key: MakeKey) -> None:
    slow, other = await make_key(per_second=5.0), await make_key("rival")
    answers = [await http.get("/v1/jobs", headers=slow) for _ in range(30)]
    refused = [a for a in answers if a.status_code == 429]
    assert len(refused) >= 15, "5 a second and 10 at once"
    problem_of(refused[0], 429, "too_many_requests")
    assert int(refused[0].headers["retry-after"]) >= 1
    assert answers[0].headers["ratelimit"].startswith('"requests";r=9;t=')
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=10;w=2'
    assert (await http.get("/v1/jobs", headers=other)).status_code == 200
    assert (await http.get("/health/live")).status_code == 200


async def test_37_a_default_for_all_callers(serve: Serve) -> None:
    async with serve(api_per_second=2.0) as http:
        statuses = [(await http.get("/v1/jobs")).status_code for _ in range(12)]
        assert statuses[:4] == [200] * 4
        assert 429 in statuses


async def test_37_as_many_queued_jobs_as_the_key_says(http: httpx.AsyncClient, make_key: MakeKey) -> None:
    headers, other = await make_key(max_queued_jobs=3), await make_key("rival", max_queued_jobs=3)
    for _ in range(3):
        assert (await http.post("/v1/jobs", json=JOB, headers=headers)).status_code == 202
    refused = await http.post("/v1/jobs", json=JOB, headers=headers)
    assert problem_of(refused, 429, "quota_exceeded")["retryable"] is True
    assert int(refused.headers["retry-after"]) >= 1
    assert (await http.post("/v1/jobs", json=JOB, headers=other)).status_code == 202


async def test_37_more_at_once_than_may_be(serve: Serve, make_key: MakeKey, eventually: Callable[..., Any]) -> None:
    one, two = await make_key(), await make_key("rival")
    async with serve(api_max_requests=3, api_max_requests_per_key=2) as http:

        async def wait_for(place: str, headers: dict[str, str]) -> None:
            while (await http.get(place, params={"wait": 60}, headers=headers)).status_code != 200:
                pass  # there was no room for it

        place = (await http.post("/v1/jobs", json=JOB, headers=one)).headers["location"]
        waiting = [asyncio.ensure_future(wait_for(place, one)) for _ in range(2)]

        async def is_full() -> bool:
            return (await http.get("/v1/jobs", headers=one)).status_code == 429

        await eventually("the key's requests are under way", is_full)
        refused = await http.get("/v1/jobs", headers=one)
        problem_of(refused, 429)
        assert refused.headers["retry-after"] == "1"
        theirs = (await http.post("/v1/jobs", json=JOB, headers=two)).headers["location"]
        waiting.append(asyncio.ensure_future(wait_for(theirs, two)))

        async def is_overrun() -> bool:
            return (await http.get("/v1/jobs", headers=two)).status_code == 503

        await eventually("all that may be are under way", is_overrun)
        refused = await http.get("/v1/jobs", headers=two)
        problem_of(refused, 503, "unavailable")
        assert refused.headers["retry-after"] == "1"
        assert (await http.get("/health/ready")).status_code == 200
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

        async def has_room() -> bool:
            return (await http.get("/v1/jobs", headers=one)).status_code == 200

        await eventually("who went away waits no more", has_room, 10)


# Defects of ours.


async def test_40_an_error_that_nobody_foresaw(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, settings: Settings
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"{settings.database} {SETOSA}")

    monkeypatch.setattr(Service, "page", fail)
    document = problem_of(await http.get("/v1/jobs"), 500, "internal")
    shown = json.dumps(document)
    for secret in (settings.database, "postgresql", "5.1", "Traceback", "RuntimeError", str(Path(__file__).parent)):
        assert secret not in shown
    assert document["instance"] in caplog.text, "by which the server's log has it"
