"""Many jobs in a request, Arrow as a job's input, and which of many jobs are final."""

import base64
from typing import Any
from uuid import UUID, uuid4

import httpx
import orjson
import pyarrow as pa
import pytest

from pyfunq.http_wire import ARROW, MOST_WATCHED, NDJSON
from pyfunq.ids import new_id
from pyfunq.ledger import Ledger
from tests.integration.api.conftest import MakeKey, Workers
from tests.integration.conftest import IRIS, SETOSA, VIRGINICA, split

IRIS_1 = "models:/iris/1"
pytestmark = pytest.mark.usefixtures("iris_model")


def stream(*rows: list[float]) -> bytes:
    table = pa.table({name: list(values) for name, values in zip(IRIS, zip(*rows, strict=True), strict=True)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def lines(*inputs: Any) -> bytes:
    return b"\n".join(orjson.dumps(one) for one in inputs)


async def bulk(http: httpx.AsyncClient, body: bytes, headers: Any = None, **query: Any) -> httpx.Response:
    content = {"Content-Type": NDJSON, **(headers or {})}
    return await http.post("/v1/jobs/bulk", params={"model": IRIS_1, **query}, content=body, headers=content)


async def test_a_table_is_a_jobs_input(http: httpx.AsyncClient, workers: Workers) -> None:
    query = {"model": "iris", "version": "1", "retries": "2", "metadata": '{"order": 1}', "lane": "bulk"}
    headers = {"Content-Type": ARROW, "Prefer": "wait=30"}
    answer = await workers.while_(
        http.post("/v1/jobs", params=query, content=stream(SETOSA, VIRGINICA), headers=headers)
    )
    job = answer.json()
    assert (answer.status_code, job["predictions"], job["rows"]) == (200, [0, 2], 2)
    assert (job["model"], job["retries"], job["metadata"], job["lane"]) == (IRIS_1, 2, {"order": 1}, "bulk")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({}, 422, "invalid_input"),
        ({"model": IRIS_1, "retries": "many"}, 422, "invalid_input"),
        ({"model": IRIS_1, "timeout": "nan"}, 422, "invalid_input"),
        ({"model": IRIS_1, "params": "[1]"}, 422, "invalid_input"),
        ({"model": IRIS_1, "model_uri": "s3://x"}, 422, "invalid_input"),
        ({"model": "file:///x"}, 422, "invalid_model_uri"),
    ],
)
async def test_a_query_that_cannot_be(http: httpx.AsyncClient, query: dict[str, str], status: int, code: str) -> None:
    for path, kind, body in (("/v1/jobs", ARROW, stream(SETOSA)), ("/v1/jobs/bulk", NDJSON, lines(split(SETOSA)))):
        answer = await http.post(path, params=query, content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_what_is_no_table(http: httpx.AsyncClient, ledger: Ledger) -> None:
    for body in (b"", b"not arrow", stream(SETOSA)[:-100]):
        query, headers = {"model": IRIS_1}, {"Content-Type": ARROW}
        answer = await http.post("/v1/jobs", params=query, content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_input")
    assert await ledger.list_jobs() == []


async def test_many_inputs_are_as_many_jobs(http: httpx.AsyncClient, ledger: Ledger) -> None:
    inputs = [split(SETOSA)] * 2500
    arrow = {"arrow": base64.b64encode(stream(SETOSA, VIRGINICA)).decode()}
    answer = await bulk(http, lines(*inputs, arrow) + b"\n\n", retries=1)
    found = answer.json()
    assert answer.status_code == 202
    assert found["rows"] == [1] * 2500 + [2]
    assert (found["common"]["model"], found["common"]["retries"], found["common"]["status"]) == (IRIS_1, 1, "queued")
    assert len(await ledger.get_many([UUID(one) for one in found["ids"]])) == 2501


async def test_the_same_key_is_the_same_jobs(http: httpx.AsyncClient, ledger: Ledger) -> None:
    body, key = lines(*[split(SETOSA)] * 20), {"Idempotency-Key": "k"}
    one, two = [(await bulk(http, body, key)).json() for _ in range(2)]
    assert one["ids"] == two["ids"]
    for other in (body + b"\n" + lines(split(SETOSA)), lines(*[split(VIRGINICA)] * 20), lines(split(SETOSA))):
        answer = await bulk(http, other, key)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_conflict")
    assert len(await ledger.list_jobs(limit=100)) == 20


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 422, "no inputs"),
        (b"\n \n", 422, "no inputs"),
        (lines(split(SETOSA)) + b"\n{", 400, "inputs[1]"),
        (lines(split(SETOSA)) + b'\n{"dataframe_split": 1}', 422, "inputs[1]"),
        (b'{"instances": [NaN]}', 400, "inputs[0]"),
        (b'{"arrow": "!"}', 400, "base64"),
        (b'{"arrow": "eA=="}', 400, "Arrow"),
        (b'{"arrow": "eA==", "instances": [1]}', 422, "alone"),
        (b'{"lane": "bulk", "instances": [1]}', 422, "not an input format"),
        (b"[" * 100_000, 400, "inputs[0]"),
    ],
)
async def test_lines_that_are_none(
    http: httpx.AsyncClient, ledger: Ledger, body: bytes, status: int, said: str
) -> None:
    answer = await bulk(http, body)
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert await ledger.list_jobs() == []


async def test_bounds_of_many(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, make_key: MakeKey) -> None:
    assert (await http.post("/v1/jobs/bulk", params={"model": IRIS_1}, json=[])).status_code == 415
    monkeypatch.setattr("producer.api.many_jobs.MOST_BULK_JOBS", 10)
    assert (await bulk(http, lines(*[split(SETOSA)] * 11))).status_code == 413
    monkeypatch.setattr("producer.api.many_jobs.MOST_BULK_BYTES", 500)
    assert (await bulk(http, lines(*[split(SETOSA)] * 9))).status_code == 413
    key = await make_key("acme", max_queued_jobs=5)
    answer = await bulk(http, lines(*[{"instances": [1]}] * 6), key)
    assert (answer.status_code, answer.json()["code"]) == (422, "quota_exceeded")
    assert (await bulk(http, lines(*[{"instances": [1]}] * 5), key)).status_code == 202


async def test_which_jobs_are_final(http: httpx.AsyncClient, workers: Workers) -> None:
    ids = [(await http.post("/v1/jobs", json={"model": IRIS_1, **split(SETOSA)})).json()["id"] for _ in range(3)]
    assert (await http.post("/v1/jobs/final", json={"ids": ids})).json() == {"data": []}
    await http.post(f"/v1/jobs/{ids[1]}/cancel")
    found = (await http.post("/v1/jobs/final?wait=30", json={"ids": ids})).json()["data"]
    assert [(job["id"], job["status"]) for job in found] == [(ids[1], "cancelled")]
    rest = [ids[0], ids[2]]
    found = (await workers.while_(http.post("/v1/jobs/final?wait=30", json={"ids": rest}))).json()["data"]
    assert {job["id"] for job in found} <= set(rest)
    assert found[0]["status"] == "succeeded"


async def test_only_ones_own_jobs_are_watched(http: httpx.AsyncClient, make_key: MakeKey) -> None:
    acme, other = await make_key("acme"), await make_key("other")
    mine = (await http.post("/v1/jobs", json={"model": IRIS_1, **split(SETOSA)}, headers=acme)).json()["id"]
    for ids in ([mine], [str(uuid4())]):
        answer = await http.post("/v1/jobs/final", json={"ids": ids}, headers=other)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job")
    many = [str(new_id()) for _ in range(MOST_WATCHED + 1)]
    bad: tuple[Any, ...] = ({}, {"ids": []}, {"ids": ["x"]}, {"ids": [1]}, {"ids": [mine], "x": 1}, {"ids": many})
    for body in bad:
        assert (await http.post("/v1/jobs/final", json=body, headers=acme)).status_code == 422
