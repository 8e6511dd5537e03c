"""Batches over HTTP: every format in and out, names of rows, what is refused, tenants, repeated requests."""

import asyncio
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from pyfunq.api_keys import Scope
from pyfunq.environment import child_environment
from pyfunq.http_transport import trusted
from pyfunq.ids import new_id
from pyfunq.job import Lane
from pyfunq.lanes import queues_of
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.integration.api.conftest import MakeKey, Workers
from tests.programs import until
from worker.page_run import run_page

MIB = 1 << 20
NDJSON, PARQUET = "application/x-ndjson", "application/vnd.apache.parquet"
STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
ROWS = [float(x) for x in range(1, 12)]


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def in_format(kind: str) -> bytes:
    table = pa.table({"x": ROWS})
    sink = io.BytesIO()
    if kind == NDJSON:
        return lines(*({"x": x} for x in ROWS))
    if kind == "text/csv":
        pa_csv.write_csv(table, sink)
    elif kind == PARQUET:
        pq.write_table(table, sink)
    else:
        with (pa.ipc.new_stream if kind == STREAM else pa.ipc.new_file)(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    return sink.getvalue()


async def submit(http: httpx.AsyncClient, body: Any, kind: str = NDJSON, *, model: str, **more: Any) -> httpx.Response:
    headers = {"Content-Type": kind, **more.pop("headers", {})}
    return await http.post("/v1/batches", params={"model": model, **more}, content=body, headers=headers)


async def finished(http: httpx.AsyncClient, workers: Workers, body: Any, kind: str = NDJSON, **more: Any) -> str:
    """Where the batch is, once it is final."""
    answer = await submit(http, body, kind, **more)
    assert answer.status_code == 202, answer.text
    place = str(answer.headers["location"])
    await workers.while_(http.get(place, params={"wait": 60}))
    return place


def parsed(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.parametrize("kind", [NDJSON, "application/jsonl", "text/csv", PARQUET, STREAM, FILE])
async def test_every_format_goes_in(http: httpx.AsyncClient, workers: Workers, moody_model: str, kind: str) -> None:
    body = in_format(NDJSON if kind == "application/jsonl" else kind)
    answer = await submit(http, body, kind, model=moody_model, chunk_rows=4)
    batch = answer.json()
    assert (answer.status_code, batch["rows"], batch["jobs"]) == (202, 11, 3), answer.text
    assert batch["submitted_at"] is not None
    place = answer.headers["location"]
    final = await workers.while_(http.get(place, params={"wait": 60}))
    assert final.json()["status"] == "succeeded"
    found = await http.get(f"{place}/results")
    assert found.headers["content-type"].startswith(NDJSON)
    assert parsed(found) == [{"index": i, "prediction": 2 * x} for i, x in enumerate(ROWS)]


async def test_a_jobs_rows_are_those_that_the_model_takes_in_time(
    http: httpx.AsyncClient, workers: Workers, ledger: Ledger, moody_model: str
) -> None:
    await finished(http, workers, in_format(NDJSON), model=moody_model)
    await ledger.set_call_rows(moody_model, 4)
    assert (await submit(http, in_format(NDJSON), model=moody_model)).json()["jobs"] == 3
    assert (await submit(http, in_format(NDJSON), model=moody_model, chunk_rows=11)).json()["jobs"] == 1


async def test_gzip_and_bodies_without_a_length(http: httpx.AsyncClient, workers: Workers, moody_model: str) -> None:
    async def parts() -> Any:
        packed = gzip.compress(in_format(NDJSON))
        for start in range(0, len(packed), 10):
            yield packed[start : start + 10]

    place = await finished(http, workers, parts(), model=moody_model, headers={"Content-Encoding": "gzip"})
    assert [row["prediction"] for row in parsed(await http.get(f"{place}/results"))] == [2 * x for x in ROWS]


async def test_results_in_every_format_with_the_rows_names(
    http: httpx.AsyncClient, workers: Workers, moody_model: str
) -> None:
    body = lines(*({"custom_id": f"row {x:g}, é", "row": {"x": x}} for x in ROWS))
    place = await finished(http, workers, body, model=moody_model, chunk_rows=3)
    names, doubled = [f"row {x:g}, é" for x in ROWS], [2 * x for x in ROWS]
    expected = {"index": list(range(11)), "custom_id": names, "prediction": doubled}
    rows = parsed(await http.get(f"{place}/results"))
    assert rows == [dict(zip(expected, row, strict=True)) for row in zip(*expected.values(), strict=True)]
    results = {
        kind: (await http.get(f"{place}/results", headers={"Accept": f"image/png, {kind}"})).content
        for kind in ("text/csv", PARQUET, STREAM)
    }
    assert pa.ipc.open_stream(results[STREAM]).read_all().to_pydict() == expected
    assert pq.read_table(io.BytesIO(results[PARQUET])).to_pydict() == expected
    assert pd.read_csv(io.BytesIO(results["text/csv"])).to_dict("list") == expected
    refused = await http.get(f"{place}/results", headers={"Accept": "image/png"})
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (lines({"x": 1.0}, {"x": 2.0}) + b"{oops}\n" + lines({"x": 3.0}), NDJSON, "line 3"),
        (lines({"x": 1.0}, {"y": 2.0}), NDJSON, "line 2 has other keys"),
        (b'{"x": 1.0}\n{"x": 1.0, "x": 2.0}\n', NDJSON, "line 2"),
        (lines({"x": 1.0}, {"x": "tall"}), NDJSON, "'x'"),
        (lines({"custom_id": "a", "row": {"x": 1.0}}, {"x": 2.0}), NDJSON, "line 2 has no custom_id"),
        (lines({"x": 2.0}, {"custom_id": "a", "row": {"x": 1.0}}), NDJSON, "line 2 has a custom_id"),
        (lines(*({"custom_id": i, "row": {"x": 1.0}} for i in ("a", "b", "a"))), NDJSON, "lines 1 and 3"),
        (lines({"custom_id": "", "row": {"x": 1.0}}), NDJSON, "line 1: a custom_id is"),
        (lines({"custom_id": "a" * 201, "row": {"x": 1.0}}), NDJSON, "line 1: a custom_id is"),
        (b"x\n1.0\n2.0,3.0\n", "text/csv", "line 3"),
        (in_format(PARQUET)[:-20], PARQUET, "ends in the middle"),
        (in_format(STREAM)[:-200], STREAM, "ends in the middle"),
        (in_format(FILE)[:-20], FILE, "ends in the middle"),
        (b"", NDJSON, "is empty"),
        (b"\n\n", NDJSON, "no rows"),
    ],
)
async def test_nothing_is_accepted_of_a_body_with_a_fault(
    http: httpx.AsyncClient, ledger: Ledger, settings: Settings, moody_model: str, body: bytes, kind: str, says: str
) -> None:
    answer = await submit(http, body, kind, model=moody_model, chunk_rows=1)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), answer.text
    assert says in answer.json()["detail"]
    assert "tall" not in answer.text
    assert str(settings.home) not in answer.text
    assert (await http.get("/v1/batches")).json() == {"data": [], "next_cursor": None}
    assert await ledger.list_jobs() == []
    assert leftovers(settings) == []


def leftovers(settings: Settings) -> list[Path]:
    return list((settings.home / "uploads").glob("*/*/*"))


@pytest.mark.parametrize(
    ("body", "kind", "query", "status"),
    [
        (b"x\n1\n", "text/plain", {}, 415),
        (b"x\n1\n", "text/csv; charset=latin-1", {}, 415),
        (lines({"x": 1.0}), NDJSON, {"chunkrows": 5}, 422),
        (lines({"x": 1.0}), NDJSON, {"chunk_rows": 0}, 422),
        (lines({"x": 1.0}), NDJSON, {"params": "[1]"}, 422),
        (lines({"x": 1.0}), NDJSON, {"params": "{"}, 422),
        (lines({"x": 1.0}), NDJSON, {"params": "[" * 2_000}, 422),
        (lines({"x": 1.0}), NDJSON, {"params": "[" * 5_000}, 414),
        (lines({"x": 1.0}), NDJSON, {"model": "../x"}, 422),
        (lines({"x": 1.0}), NDJSON, {"model": "runs:/1/m"}, 404),
        (lines({"x": "a" * (MIB + 1)}), NDJSON, {}, 413),
        (lines({"x": 1.0}) * 3 + lines({"x": "a" * (3 * MIB)}) + lines({"x": 1.0}), NDJSON, {}, 413),
    ],
)
async def test_what_is_refused(
    http: httpx.AsyncClient, moody_model: str, body: bytes, kind: str, query: dict[str, Any], status: int
) -> None:
    answer = await submit(http, body, kind, **{"model": moody_model, **query})
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status), answer.text


async def test_a_line_of_a_mebibyte_goes_in(http: httpx.AsyncClient, moody_model: str) -> None:
    long = lines({"x": ""}).rstrip()
    line = long.replace(b'""', b'"%b"' % (b"a" * (MIB - len(long))))
    assert len(line) == MIB
    assert (await submit(http, b"\n".join([line] * 3), model=moody_model)).status_code == 202


async def test_a_body_that_ends_early_leaves_nothing(
    api_url: str, http: httpx.AsyncClient, settings: Settings, moody_model: str
) -> None:
    url = httpx.URL(api_url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /v1/batches?model={moody_model} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: {NDJSON}\r\n"
    writer.write(head.encode() + b"Idempotency-Key: once\r\nContent-Length: 1000000\r\n\r\n" + lines({"x": 1.0}) * 10)
    await writer.drain()
    await asyncio.to_thread(until, "the body is coming", lambda: leftovers(settings))
    busy = await submit(http, lines({"x": 1.0}), model=moody_model, headers={"Idempotency-Key": "once"})
    assert (busy.status_code, busy.json()["code"]) == (409, "conflict")
    assert int(busy.headers["retry-after"]) > 0
    writer.close()
    await asyncio.to_thread(until, "the file is gone", lambda: not leftovers(settings))
    assert (await http.get("/v1/batches")).json()["data"] == []
    async with asyncio.timeout(20):  # the key is given back with the request
        while True:
            again = await submit(http, lines({"x": 1.0}), model=moody_model, headers={"Idempotency-Key": "once"})
            if again.status_code != 409:
                break
    assert again.status_code == 202


async def test_files_of_processes_that_ended_go_when_the_next_starts(settings: Settings) -> None:
    from producer.api.uploads import Uploads

    folder = settings.home / "uploads"
    (folder / "ended").mkdir(parents=True)
    (folder / "ended" / "lock").touch()
    (folder / "ended" / "body.csv").write_text("x")
    with Uploads(folder, 1) as one, Uploads(folder, 1) as two:
        assert not (folder / "ended").exists()
        assert len([place for place in folder.iterdir() if place.is_dir()]) == 2
        del one, two
    assert [place.name for place in folder.iterdir()] == ["lock"]


async def test_a_key_makes_a_batch_repeatable(http: httpx.AsyncClient, ledger: Ledger, moody_model: str) -> None:
    headers, body = {"Idempotency-Key": "nightly-1"}, lines({"x": 1.0}, {"x": 2.0})
    several = await asyncio.gather(*(submit(http, body, model=moody_model, headers=headers) for _ in range(20)))
    assert {answer.status_code for answer in several} <= {202, 409}
    (made,) = {answer.json()["id"] for answer in several if answer.status_code == 202}
    again = await submit(http, body, model=moody_model, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, made)
    assert len(await ledger.list_jobs()) == 1
    for other in ({"body": lines({"x": 3.0})}, {"body": body, "chunk_rows": 1}):
        refused = await submit(http, other.pop("body"), model=moody_model, headers=headers, **other)
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_conflict")
    bad = await submit(http, b"{", model=moody_model, headers={"Idempotency-Key": "other"})
    mended = await submit(http, body, model=moody_model, headers={"Idempotency-Key": "other"})
    assert (bad.status_code, mended.status_code) == (422, 202)


async def test_a_key_whose_producer_died_is_taken_over(
    http: httpx.AsyncClient, ledger: Ledger, moody_model: str
) -> None:
    gone = new_id()
    assert await ledger.take_batch_key("0\x1fnightly", gone, last_seconds=60, gone_seconds=60) is None
    await ledger.open_batch(gone, moody_model, "upload.jsonl")
    headers, body = {"Idempotency-Key": "nightly"}, lines({"x": 1.0})
    assert (await submit(http, body, model=moody_model, headers=headers)).status_code == 409
    await ledger._pool.execute("UPDATE batch_key SET seen_at = now() - interval '2 minutes'")
    answer = await submit(http, body, model=moody_model, headers=headers)
    assert (answer.status_code, answer.json()["id"] == str(gone)) == (202, False)
    ended = await ledger.batch(gone)
    assert ended.error is not None
    assert ended.error.code == "job_cancelled"


async def test_errors_and_another_try(http: httpx.AsyncClient, workers: Workers, moody_model: str) -> None:
    body = lines(*({"x": x} for x in (1.0, 2.0, 13.0, 3.0, 4.0)))
    place = await finished(http, workers, body, model=moody_model, chunk_rows=2)
    batch = (await http.get(place)).json()
    assert (batch["status"], batch["counts"]["failed"], batch["rows_finished"]) == ("partly_succeeded", 1, 5)
    (error,) = parsed(await http.get(f"{place}/errors"))
    assert (error["first"], error["last"], error["status"], error["code"]) == (2, 3, "failed", "model_raised")
    assert [(r["index"], r["prediction"], r.get("error")) for r in parsed(await http.get(f"{place}/results"))] == [
        (0, 2.0, None),
        (1, 4.0, None),
        (2, None, "model_raised"),
        (3, None, "model_raised"),
        (4, 8.0, None),
    ]
    table = await http.get(f"{place}/results", headers={"Accept": PARQUET})
    assert pq.read_table(io.BytesIO(table.content)).column("prediction").to_pylist() == [2.0, 4.0, None, None, 8.0]
    again = await http.post(f"{place}/retry-failed")
    assert (again.status_code, again.json()["retried"]) == (202, 1)
    early = await http.get(f"{place}/results")
    assert (early.status_code, early.json()["code"]) == (409, "not_finished")
    some = parsed(await http.get(f"{place}/results", params={"partial": True}))
    assert [row["index"] for row in some] == [0, 1, 4]
    now = {queue: new_id() for queue in queues_of(Lane.BULK)}
    for page in await workers.ledger.pages_without_message(now):  # those that were put back are on other pages
        await asyncio.to_thread(run_page, workers.process, page)
    assert (await http.get(place)).json()["status"] == "partly_succeeded"
    assert len(parsed(await http.get(f"{place}/errors"))) == 1
    nothing = await finished(http, workers, lines({"x": 1.0}), model=moody_model)
    assert (await http.post(f"{nothing}/retry-failed")).json()["retried"] == 0


async def test_a_batch_without_a_success_has_failed(
    http: httpx.AsyncClient, workers: Workers, moody_model: str
) -> None:
    place = await finished(http, workers, lines({"x": 13.0}), model=moody_model)
    assert (await http.get(place)).json()["status"] == "failed"
    for kind in (NDJSON, "text/csv", PARQUET, STREAM):
        assert (await http.get(f"{place}/results", headers={"Accept": kind})).status_code == 200


async def test_cancel(http: httpx.AsyncClient, moody_model: str) -> None:
    place = (await submit(http, lines({"x": 1.0}, {"x": 2.0}), model=moody_model, chunk_rows=1)).headers["location"]
    cancelled = await http.post(f"{place}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert (await http.post(f"{place}/cancel")).status_code == 200
    assert [error["code"] for error in parsed(await http.get(f"{place}/errors"))] == ["job_cancelled"] * 2


async def test_pages_newest_first(http: httpx.AsyncClient, moody_model: str) -> None:
    ids = [(await submit(http, lines({"x": 1.0}), model=moody_model)).json()["id"] for _ in range(3)]
    first = (await http.get("/v1/batches", params={"limit": 2})).json()
    assert [batch["id"] for batch in first["data"]] == [ids[2], ids[1]]
    assert first["data"][0]["counts"]["queued"] == 1
    second = (await http.get("/v1/batches", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([batch["id"] for batch in second["data"]], second["next_cursor"]) == ([ids[0]], None)
    forged = await http.get("/v1/batches", params={"cursor": str(UUID(int=7))})
    assert forged.status_code == 422


async def test_another_tenants_batch_is_not_there(
    http: httpx.AsyncClient, make_key: MakeKey, ledger: Ledger, moody_model: str
) -> None:
    acme, other = await make_key("acme"), await make_key("other")
    body, key = lines({"x": 1.0}), {"Idempotency-Key": "same"}
    mine = await submit(http, body, model=moody_model, headers={**acme, **key})
    theirs = await submit(http, body, model=moody_model, headers={**other, **key})
    assert (mine.status_code, theirs.status_code) == (202, 202)
    assert mine.json()["id"] != theirs.json()["id"]
    place = mine.headers["location"]
    for path in ("", "/results", "/errors", "/events"):
        assert (await http.get(place + path, headers=other)).status_code == 404, path
    for path in ("/cancel", "/retry-failed"):
        assert (await http.post(place + path, headers=other)).status_code == 404, path
    assert [b["id"] for b in (await http.get("/v1/batches", headers=other)).json()["data"]] == [theirs.json()["id"]]
    assert {job.tenant for job in await ledger.list_jobs()} == {"acme", "other"}
    assert (await http.get(place)).status_code == 401
    reader = await make_key("acme", Scope.READ)
    assert (await submit(http, body, model=moody_model, headers=reader)).status_code == 403
    assert (await http.get(place, headers=reader)).status_code == 200


async def test_a_keys_models_and_quota_bind_batches_too(
    http: httpx.AsyncClient, make_key: MakeKey, moody_model: str
) -> None:
    bound = await make_key("acme", models=["models:/moody/*"], max_queued_jobs=2)
    one = await submit(http, lines({"x": 1.0}) * 3, model=moody_model, chunk_rows=1, headers=bound)
    assert (one.status_code, one.json()["code"]) == (422, "quota_exceeded")
    two = await submit(http, lines({"x": 1.0}) * 3, model=moody_model, chunk_rows=2, headers=bound)
    assert two.status_code == 202
    three = await submit(http, lines({"x": 1.0}), model=moody_model, headers=bound)
    assert (three.status_code, three.json()["code"]) == (429, "quota_exceeded")
    assert int(three.headers["retry-after"]) > 0
    assert (await submit(http, lines({"x": 1.0}), model="models:/iris/1", headers=bound)).status_code == 404


async def test_a_body_that_is_too_large(settings: Settings, moody_model: str) -> None:
    from tests.integration.api.conftest import ApiServer

    small = settings.model_copy(update={"max_upload_bytes": 1000})
    with ApiServer(small) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=trusted()) as http:
            assert (await submit(http, lines({"x": 1.0}) * 500, model=moody_model)).status_code == 413
            bomb = gzip.compress(lines({"x": 1.0}) * 100_000)
            headers = {"Content-Encoding": "gzip"}
            assert len(bomb) < 1000 * 10
            answer = await submit(http, bomb[:900], model=moody_model, headers=headers)
            assert answer.status_code == 413
            assert leftovers(small) == []


@pytest.fixture
def api_process(settings: Settings, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """URL and process id of an API server that is a process of its own."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "producer.api", "--port", str(port)]
    with (tmp_path / "api.log").open("wb") as log:
        process = subprocess.Popen(command, env=child_environment(settings), stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/health/live").status_code == 200
        except httpx.TransportError:
            assert process.poll() is None, (tmp_path / "api.log").read_text()
            return False

    until("the API answers", answers)
    yield url, process.pid
    process.send_signal(signal.SIGTERM)
    process.wait(30)


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in status if line.startswith("VmHWM")))


def million_rows(path: Path, kind: str, rows: int = 1_000_000) -> Path:
    """20 columns of noise; NDJSON with names."""
    names, noise, at_once = [f"f{i}" for i in range(20)], np.random.default_rng(0), 50_000
    schema = pa.schema([(name, pa.float64()) for name in names])
    tables = (
        pa.table(dict(zip(names, noise.normal(size=(20, at_once)), strict=True))) for _ in range(0, rows, at_once)
    )
    if kind == NDJSON:
        with path.open("wb") as file:
            for n, table in enumerate(tables):
                text = pd.DataFrame(table.to_pandas().round(6)).to_json(orient="records", lines=True)
                for i, line in enumerate(text.splitlines(), n * at_once):
                    file.write(b'{"custom_id":"row-%d","row":%b}\n' % (i, line.encode()))
        return path
    with path.open("wb") as file:
        makers: dict[str, Any] = {PARQUET: pq.ParquetWriter, STREAM: pa.ipc.new_stream}
        with makers[kind](file, schema) as writer:
            for table in tables:
                writer.write_table(table)
    return path


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", [PARQUET, NDJSON, STREAM])
def test_a_million_rows_go_in_below_300_mb(
    api_process: tuple[str, int], database_url: str, tmp_path: Path, moody_model: str, kind: str
) -> None:
    url, pid = api_process
    path = million_rows(tmp_path / "body", kind)
    with path.open("rb") as body, httpx.Client(base_url=url, timeout=400, verify=trusted()) as http:
        answer = http.post(
            "/v1/batches",
            params={"model": moody_model},
            content=iter(lambda: body.read(1 << 16), b""),
            headers={"Content-Type": kind},
        )
        assert answer.status_code == 202, answer.text
        assert answer.json()["rows"] == 1_000_000
        into = peak_bytes(pid)
        assert into < 300 * MIB, into / MIB
        asyncio.run(_all_succeeded(database_url, answer.json()["id"]))
        with http.stream("GET", f"{answer.headers['location']}/results", headers={"Accept": kind}) as results:
            size = sum(len(part) for part in results.iter_bytes())
    assert size > 1_000_000
    assert peak_bytes(pid) < 300 * MIB, (into / MIB, peak_bytes(pid) / MIB)
    print(f"{kind}: {os.path.getsize(path) / MIB:.0f} MiB in, peak {into / MIB:.0f}, {peak_bytes(pid) / MIB:.0f} MiB")


async def _all_succeeded(database_url: str, batch_id: str) -> None:
    from worker.predictions import encode_output

    format, payload = encode_output(np.random.default_rng(0).normal(size=10_000), arrow=True)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "UPDATE job SET status = 'succeeded', result_format = $2, result = $3 WHERE batch_id = $1 AND rows = 10000",
        UUID(batch_id),
        format,
        payload,
    )
    await connection.close()
