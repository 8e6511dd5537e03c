"""`/metrics` as Prometheus reads it: what the API and real workers did, and what the ledger says."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from pydantic import SecretStr

from pyfunq.api_keys import Scope
from pyfunq.entries import NewJob
from pyfunq.http_transport import trusted
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput
from pyfunq.ledger import Ledger
from pyfunq.metrics import MOST_MODELS, Sample
from pyfunq.settings import Settings
from tests.integration.api.conftest import ApiServer, MakeKey, Workers
from tests.integration.conftest import SETOSA, VIRGINICA, split
from tests.programs import start_worker
from worker import metrics as worker_metrics

IRIS_1 = "models:/iris/1"
pytestmark = pytest.mark.usefixtures("iris_model")

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(http: httpx.AsyncClient, **headers: str) -> Values:
    answer = await http.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    return values_of(answer.text)


def values_of(text: str) -> Values:
    return {(s.name, frozenset(s.labels.items())): s.value for family in read_text(text) for s in family.samples}


def value(values: Values, name: str, **labels: str) -> float:
    return values.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture(autouse=True)
def _nothing_counted_yet() -> None:
    worker_metrics.recorder.take()


async def tell(workers: Workers) -> None:
    """What the process would tell with its next heartbeat."""
    await asyncio.to_thread(
        lambda: workers.process.run(worker_metrics.tell(workers.process.ledger, workers.process.id))
    )


async def test_what_was_submitted_waited_for_and_predicted(http: httpx.AsyncClient, workers: Workers) -> None:
    asked = {"model": IRIS_1, **split(SETOSA, VIRGINICA)}
    for _ in range(2):
        done = await workers.while_(http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=30"}))
        assert done.status_code == 200
    await tell(workers)
    found = await scraped(http)
    assert value(found, "pyfunq_jobs_submitted_total", model=IRIS_1, lane="interactive") == 2
    assert value(found, "pyfunq_jobs_completed_total", model=IRIS_1, outcome="succeeded") == 2
    for name in ("job_duration_seconds", "queue_wait_seconds"):
        assert value(found, f"pyfunq_{name}_count", model=IRIS_1, lane="interactive") == 2
        assert 0 < value(found, f"pyfunq_{name}_sum", model=IRIS_1, lane="interactive") < 60
        assert value(found, f"pyfunq_{name}_bucket", model=IRIS_1, lane="interactive", le="+Inf") == 2
    assert value(found, "pyfunq_predict_seconds_count", model=IRIS_1) == 2
    assert value(found, "pyfunq_batch_rows_sum") == 4
    assert value(found, "pyfunq_batch_jobs_sum") == 2
    assert value(found, "pyfunq_model_load_seconds_count") == 1
    assert value(found, "pyfunq_cache_models") == 1
    assert value(found, "pyfunq_cache_bytes") > 0
    assert value(found, "pyfunq_ledger_up") == 1
    assert value(found, "pyfunq_worker_processes") == 1
    assert value(found, "pyfunq_worker_heartbeat_age_seconds") < 60
    assert value(found, "pyfunq_http_requests_total", route="/v1/jobs", method="POST", status="200") == 2
    assert value(found, "pyfunq_http_request_duration_seconds_count", route="/v1/jobs") == 2
    assert value(found, "pyfunq_http_requests_in_progress") == 1


async def test_what_fails_and_what_serves(http: httpx.AsyncClient, workers: Workers, moody_model: str) -> None:
    asked = {"model": moody_model, **split([13.0], columns=["x"])}
    await workers.while_(http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=30"}))
    await asyncio.to_thread(workers.process.preparer.look)
    await tell(workers)
    found = await scraped(http)
    assert value(found, "pyfunq_jobs_completed_total", model=moody_model, outcome="failed") == 1
    assert value(found, "pyfunq_serving_processes", model=moody_model, version="1") == 1
    assert value(found, "pyfunq_serving_memory_bytes", model=moody_model, version="1") > 0
    assert 0 <= value(found, "pyfunq_resolution_age_seconds") < 60


async def test_a_submit_that_is_repeated_is_one_job(http: httpx.AsyncClient) -> None:
    asked, headers = {"model": IRIS_1, **split(SETOSA)}, {"Idempotency-Key": "order-1"}
    for _ in range(2):
        assert (await http.post("/v1/jobs", json=asked, headers=headers)).status_code == 202
    found = await scraped(http)
    assert value(found, "pyfunq_jobs_submitted_total", model=IRIS_1, lane="interactive") == 1


async def test_what_is_queued(http: httpx.AsyncClient, ledger: Ledger) -> None:
    for lane in ("interactive", "bulk", "bulk"):
        answer = await http.post("/v1/jobs", json={"model": IRIS_1, **split(SETOSA), "lane": lane})
        assert answer.status_code == 202
    found = await scraped(http)
    # Nobody has resolved the model yet: it could be a name that someone made up.
    assert value(found, "pyfunq_queue_depth", queue="interactive", model="other") == 1
    assert value(found, "pyfunq_queue_depth", queue="bulk", model="other") == 2
    assert 0 <= value(found, "pyfunq_oldest_queued_age_seconds", queue="bulk", model="other") < 60
    assert value(found, "pyfunq_running_jobs") == 0


async def test_what_processes_counted_outlives_them_and_is_told_once(ledger: Ledger, workers: Workers) -> None:
    one, other = new_id(), new_id()
    for worker_id in (one, other, one):
        worker_metrics.rescued(put_back=2)
        worker_metrics.watched(0.004, answered=True)
        await worker_metrics.tell(ledger, worker_id)
    await worker_metrics.tell(ledger, one)
    totals = {(s.name, s.labels): s for s in await ledger.metric_totals()}
    assert totals["pyfunq_jobs_rescued_total", ("put_back",)].total == 6
    watched = totals["pyfunq_registry_watch_seconds", ()]
    assert watched.total == pytest.approx(0.012)
    assert watched.counts is not None
    assert (sum(watched.counts), watched.counts[2]) == (3, 3)


async def test_what_nobody_counted_for_a_week_is_forgotten(ledger: Ledger) -> None:
    await ledger._fetch("point_resolution", IRIS_1, await _version(ledger), False, None, None, None, None, None)
    await ledger.name_metric_models([IRIS_1], at_most=1)
    await ledger.add_to_metrics(new_id(), [Sample("pyfunq_jobs_completed_total", (IRIS_1, "failed"), 1.0)])
    await ledger.prune_metrics()
    assert len(await ledger.metric_totals()) == 1
    for table in ("metric_total", "metric_model"):
        await ledger._pool.execute(f"UPDATE {table} SET seen_at = now() - interval '8 days'")  # noqa: S608
    await ledger.prune_metrics()
    assert await ledger.metric_totals() == []
    assert await ledger._pool.fetchval("SELECT count(*) FROM metric_model") == 0


async def test_many_processes_tell_at_once(ledger: Ledger) -> None:
    labels = [("models:/a/1", "failed"), ("models:/b/1", "failed"), ("models:/c/1", "failed")]
    tellings = [
        ledger.add_to_metrics(new_id(), [Sample("pyfunq_jobs_completed_total", own, 1.0) for own in order])
        for order in (labels, labels[::-1]) * 20
    ]
    await asyncio.gather(*tellings)
    assert {s.labels: s.total for s in await ledger.metric_totals()} == dict.fromkeys(labels, 40)


async def test_a_process_is_known_by_its_heartbeat_before_its_cache_is(ledger: Ledger) -> None:
    worker_id = new_id()
    worker_metrics.cached(1_000, 2)
    await worker_metrics.tell(ledger, worker_id)
    await ledger.beat(worker_id, "host", 1)
    await worker_metrics.tell(ledger, worker_id)
    state = await ledger.worker_state(fresh_seconds=20, forgotten_seconds=600)
    assert (state["processes"], state["cache_bytes"], state["cache_models"]) == (1, 1_000, 2)
    await ledger.stop_beating(worker_id)
    state = await ledger.worker_state(fresh_seconds=20, forgotten_seconds=600)
    assert (state["processes"], state["cache_bytes"], state["cache_models"]) == (0, 0, 0)


async def test_what_cannot_be_told_now_is_told_later(ledger: Ledger) -> None:
    worker_metrics.rescued(dead=1)

    class Away:
        async def note_cache(self, *_: Any) -> None:
            raise ConnectionResetError

    await worker_metrics.tell(Away(), new_id())  # type: ignore[arg-type]
    worker_metrics.rescued(dead=1)
    await worker_metrics.tell(ledger, new_id())
    assert [s.total for s in await ledger.metric_totals() if s.labels == ("dead",)] == [2]


async def test_labels_do_not_grow_without_end(http: httpx.AsyncClient, ledger: Ledger, iris_model: str) -> None:
    uris = [f"models:/iris/{n}" for n in range(1000, 1050 + MOST_MODELS)]
    pages = [(new_id(), _job(uri)) for uri in uris]
    await ledger.submit(pages)
    for uri in uris:
        await http.post("/v1/jobs", json={"model": uri, **split(SETOSA)})
    await http.get("/v1/jobs/not-an-id")
    await http.get("/nowhere/at-all")
    await http.request("PROPFIND", "/nowhere/else")
    found = await scraped(http)
    depths = {dict(labels)["model"]: n for (name, labels), n in found.items() if name == "pyfunq_queue_depth"}
    assert set(depths) == {"other"}, "no worker has found these versions in the registry"
    submitted = [labels for name, labels in found if name == "pyfunq_jobs_submitted_total"]
    assert len(submitted) == MOST_MODELS + 1
    routes = {dict(labels)["route"] for name, labels in found if name == "pyfunq_http_requests_total"}
    assert routes == {"/v1/jobs", "/v1/jobs/{job_id}", "unmatched"}
    assert value(found, "pyfunq_http_requests_total", route="unmatched", method="other", status="404") == 1


async def test_models_that_are_there_get_labels_up_to_the_bound(ledger: Ledger) -> None:
    uris = [f"models:/real/{n}" for n in range(1, 8)]
    version = await _version(ledger)
    for uri in uris:
        await ledger._fetch("point_resolution", uri, version, False, None, None, None, None, None)
    first = await ledger.name_metric_models(uris[:3], at_most=5)
    assert first == set(uris[:3])
    both = await ledger.name_metric_models(uris, at_most=5)
    assert len(both) == 5
    assert first < both
    assert await ledger.name_metric_models(["models:/made-up/1"], at_most=100) == set()


def _job(model_uri: str) -> NewJob:
    encoded = EncodedInput(format="split", payload=b"{}", params=None, rows=1)
    return NewJob(id=new_id(), model_uri=model_uri, input=encoded, queue="bulk.3", max_attempts=3)


async def _version(ledger: Ledger) -> int:
    row = await ledger._fetchrow("add_version", "real", "1", 1, "mlflow-artifacts:/x", None, None)
    assert row is not None
    return int(row["id"])


async def test_openmetrics_by_accept(http: httpx.AsyncClient, workers: Workers) -> None:
    await workers.while_(http.post("/v1/jobs", json={"model": IRIS_1, **split(SETOSA)}, headers={"Prefer": "wait=30"}))
    await tell(workers)
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"
    answer = await http.get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = {family.name: family.type for family in read_openmetrics(answer.text)}
    assert families["pyfunq_jobs_completed"] == "counter"
    assert families["pyfunq_predict_seconds"] == "histogram"
    plain = await http.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_who_may_read_them(settings: Settings, make_key: MakeKey) -> None:
    reader, submitter = await make_key("acme", Scope.READ), await make_key("acme", Scope.SUBMIT)
    narrow = await make_key("acme", Scope.READ, models=["models:/iris/*"])
    with_token = settings.model_copy(update={"metrics_token": SecretStr("scrape-me")})
    with ApiServer(with_token) as url:
        async with httpx.AsyncClient(base_url=url, verify=trusted()) as http:
            for headers, status in (
                ({}, 401),
                (reader, 200),
                (submitter, 200),
                (narrow, 403),
                ({"Authorization": "Bearer scrape-me"}, 200),
                ({"Authorization": "Bearer scrape-you"}, 401),
                ({"Authorization": "Bearer"}, 401),
            ):
                answer = await http.get("/metrics", headers=headers)
                assert answer.status_code == status, (headers, answer.text)
            other = await http.get("/v1/jobs", headers={"Authorization": "Bearer scrape-me"})
            assert other.status_code == 401


async def test_an_empty_token_is_none(settings: Settings, make_key: MakeKey) -> None:
    await make_key()
    with ApiServer(settings.model_copy(update={"metrics_token": SecretStr("")})) as url:
        async with httpx.AsyncClient(base_url=url, verify=trusted()) as http:
            assert (await http.get("/metrics", headers={"Authorization": "Bearer"})).status_code == 401


async def test_without_postgres_the_api_still_tells_of_itself(http: httpx.AsyncClient, ledger: Ledger) -> None:
    await ledger._pool.execute("ALTER TABLE metric_total RENAME TO elsewhere")
    found = await scraped(http)
    assert found["pyfunq_ledger_up", frozenset()] == 0
    assert not any(name.startswith("pyfunq_queue") for name, _ in found)
    await ledger._pool.execute("ALTER TABLE elsewhere RENAME TO metric_total")
    assert value(await scraped(http), "pyfunq_ledger_up") == 1


async def test_every_statement_goes_by_an_index(ledger: Ledger) -> None:
    args: Mapping[str, tuple[Any, ...]] = {
        "queue_state": (100, 100),
        "count_states": (100,),
        "worker_state": (20.0, 600.0),
        "serving_state": (20.0,),
        "failing_loads": (600.0,),
    }
    async with ledger._pool.acquire() as connection:
        for name, values in args.items():
            plan = "\n".join(r[0] for r in await connection.fetch(f"EXPLAIN {ledger._sql[name]}", *values))
            assert "Seq Scan" not in plan, plan
            assert "Disabled: true" not in plan, plan
            for index in {"queue_state": ["job_queued_model"], "count_states": ["job_running", "job_dead"]}.get(
                name, []
            ):
                assert index in plan


@pytest.mark.thorough
async def test_recycled_processes_lose_no_count(
    settings: Settings, http: httpx.AsyncClient, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    jobs = 6
    worker = await asyncio.to_thread(start_worker, settings, tmp_path / "worker.log", PYFUNQ_RECYCLE_TASKS="1")
    try:
        for _ in range(jobs):
            asked = {"model": IRIS_1, **split(SETOSA)}
            done = await http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=60"})
            assert done.json()["status"] == "succeeded", done.text
        assert await asyncio.to_thread(worker.stop) == 0
    finally:
        worker.kill()

    async def all_told() -> Values | None:
        found = await scraped(http)
        told = value(found, "pyfunq_jobs_completed_total", model=IRIS_1, outcome="succeeded")
        return found if told >= jobs else None

    found = await eventually("what the API knows is fresh", all_told)
    assert value(found, "pyfunq_jobs_completed_total", model=IRIS_1, outcome="succeeded") == jobs
    assert value(found, "pyfunq_model_load_seconds_count") > 1, "more than one process loaded it"
    assert value(found, "pyfunq_model_download_bytes_total") > 1_000, "of one host, so once"
    assert value(found, "pyfunq_model_download_seconds_count") == 1
    assert value(found, "pyfunq_worker_processes") == 0
