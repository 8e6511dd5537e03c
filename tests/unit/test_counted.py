"""Metrics without servers: what is counted, how it is told, and what docs, alerts and dashboard name exists."""

import asyncio
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from fastapi import FastAPI, Request
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from starlette.types import Message

from producer.api.exposition import exposed
from producer.api.ledger_metrics import LedgerMetrics
from producer.api.metrics import ApiMetrics, CountRequests
from producer.api.problems import install
from pyfunq import metrics
from pyfunq.entries import Page
from pyfunq.errors import LedgerUnavailable
from pyfunq.ids import new_id
from pyfunq.metrics import METRICS, MOST_MODELS, Recorder, Sample, with_models

ROOT = Path(__file__).parents[2]


def test_a_value_falls_into_the_bucket_whose_bound_it_does_not_exceed() -> None:
    recorder = Recorder()
    for values in ([0.001], [0.0011, 0.002], [0.5, 0.0005, 700.0]):
        recorder.observe(metrics.PREDICT_SECONDS, values, "m")
    (sample,) = recorder.samples()
    assert sample.counts is not None
    assert {i: n for i, n in enumerate(sample.counts) if n} == {0: 2, 1: 2, 8: 1, len(metrics.SECONDS): 1}
    assert sample.total == pytest.approx(700.5046)


def test_what_is_taken_is_counted_from_nought_and_can_be_put_back() -> None:
    recorder = Recorder()
    recorder.count(metrics.RESCUED, "dead", by=3)
    recorder.observe(metrics.WATCH_SECONDS, [0.2])
    taken = recorder.take()
    assert recorder.samples() == []
    recorder.count(metrics.RESCUED, "dead")
    recorder.put_back(taken)
    again = {s.name: s.total for s in recorder.take()}
    assert again == {"pyfunq_jobs_rescued_total": 4, "pyfunq_registry_watch_seconds": pytest.approx(0.2)}


def test_models_without_a_label_of_their_own_are_one() -> None:
    recorder = Recorder()
    for model in ("a", "b", "c"):
        recorder.count(metrics.COMPLETED, model, "failed", by=2)
        recorder.observe(metrics.PREDICT_SECONDS, [1.0], model)
    told = with_models(recorder.samples(), {"a"})
    assert {(s.name, s.labels): s.total for s in told} == {
        ("pyfunq_jobs_completed_total", ("a", "failed")): 2,
        ("pyfunq_jobs_completed_total", ("other", "failed")): 4,
        ("pyfunq_predict_seconds", ("a",)): 1,
        ("pyfunq_predict_seconds", ("other",)): 2,
    }
    assert [sum(s.counts or ()) for s in told if s.name == "pyfunq_predict_seconds"] == [1, 2]
    assert {s.labels[0] for s in recorder.samples()} == {"a", "b", "c"}, "they can be told again"


@pytest.mark.parametrize("as_openmetrics", [False, True])
def test_every_metric_can_be_exposed(as_openmetrics: bool) -> None:
    recorder, gauges = Recorder(), []
    for metric in METRICS.values():
        labels = ['say "hi"\\\n'] * len(metric.labels)
        if metric.kind == "histogram":
            recorder.observe(metric, [1.0, 2.0], *labels)
        elif metric.kind == "counter":
            recorder.count(metric, *labels)
        else:
            gauges.append(Sample(metric.name, tuple(labels), 1.5))
    text = exposed([*recorder.samples(), *gauges], as_openmetrics=as_openmetrics).decode()
    families = list(read_openmetrics(text) if as_openmetrics else read_text(text))
    assert [f.name for f in families] == [name.removesuffix("_total") for name in METRICS]
    for family in families:
        for sample in family.samples:
            assert set(sample.labels.values()) - {sample.labels.get("le")} <= {'say "hi"\\\n'}


class _Ledger:
    """Answers when it may; notes how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False
        self.may_answer = asyncio.Event()

    async def metric_totals(self) -> list[Sample]:
        self.asked += 1
        await self.may_answer.wait()
        if self.away:
            raise LedgerUnavailable
        return []

    async def name_metric_models(self, model_uris: set[str], *, at_most: int) -> set[str]:
        return {"models:/a/1"}

    async def queue_state(self, *, most_pairs: int, at_most: int) -> list[Any]:
        return [
            ("bulk", "models:/a/1", 5.0, 10),
            ("bulk.3", "models:/a/1", 9.0, 1),
            ("bulk.3", "models:/x/1", 2.0, 4),
            ("bulk.4", "models:/y/1", 1.0, 5),
            ("model.gpu", "models:/a/1", 3.0, 7),
        ]

    async def count_states(self, *, at_most: int) -> tuple[int, int]:
        return 3, 0

    async def worker_state(self, *, fresh_seconds: float, forgotten_seconds: float) -> dict[str, Any]:
        return {"processes": 0, "heartbeat_age": None, "cache_bytes": 0, "cache_models": 0}

    async def oldest_confirmation(self) -> float | None:
        return None

    async def serving_state(self, *, stale_seconds: float) -> list[Any]:
        return []

    async def failing_loads(self, *, since_seconds: float) -> list[Any]:
        return []


async def test_scrapes_share_an_answer_and_keep_it_for_a_while() -> None:
    ledger, now = _Ledger(), [100.0]
    told = LedgerMetrics(ledger, stale_seconds=20, clock=lambda: now[0])
    scrapes = [asyncio.create_task(told.samples()) for _ in range(3)]
    for _ in range(3):
        await asyncio.sleep(0)
    now[0] += 2.0  # so long it took
    ledger.may_answer.set()
    answers = await asyncio.gather(*scrapes)
    assert ledger.asked == 1
    found = {(s.name, s.labels): s.total for s in answers[0]}
    assert found["pyfunq_queue_depth", ("bulk", "models:/a/1")] == 11
    assert found["pyfunq_queue_depth", ("bulk", "other")] == 9
    assert found["pyfunq_queue_depth", ("model.gpu", "models:/a/1")] == 7
    assert found["pyfunq_oldest_queued_age_seconds", ("bulk", "models:/a/1")] == 9
    assert found["pyfunq_oldest_queued_age_seconds", ("bulk", "other")] == 2
    assert not any(name == "pyfunq_worker_heartbeat_age_seconds" for name, _ in found)
    now[0] += 39.0  # a twentieth of the time may go into it
    await told.samples()
    assert ledger.asked == 1
    now[0] += 2.0
    await told.samples()
    assert ledger.asked == 2


async def test_a_ledger_that_is_away_is_told_of() -> None:
    ledger = _Ledger()
    ledger.away = True
    ledger.may_answer.set()
    told = LedgerMetrics(ledger, stale_seconds=20)
    assert [(s.name, s.total) for s in await told.samples()] == [("pyfunq_ledger_up", 0)]
    ledger.away = False
    assert Sample("pyfunq_ledger_up", (), 1.0) in await told.samples()


async def test_a_ledger_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.api.ledger_metrics._PATIENCE_SECONDS", 0.05)
    ledger = _Ledger()
    told = LedgerMetrics(ledger, stale_seconds=20)
    assert [s.total for s in await told.samples()] == [0]
    assert [s.total for s in await told.samples()] == [0]
    assert ledger.asked == 1, "the one that is under way"
    await told.close()


async def requested(counted: ApiMetrics, path: str, method: str = "GET") -> list[Message]:
    app, sent = FastAPI(), []
    install(app, lambda _: asyncio.sleep(0))

    @app.get("/jobs/{job_id}")
    async def read(job_id: str, request: Request) -> int:
        if job_id == "bad":
            raise RuntimeError("a defect")
        return counted.in_progress

    app.add_middleware(CountRequests, counted=counted)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    await app({**scope, "headers": [], "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
    return sent


async def test_requests_are_counted_by_their_routes_template() -> None:
    counted = ApiMetrics()
    for n in range(3):
        sent = await requested(counted, f"/jobs/{n}")
    assert sent[1]["body"] == b"1", "itself in progress"
    await requested(counted, "/somewhere/else")
    await requested(counted, "/jobs/1", "BREW")
    with pytest.raises(RuntimeError):
        await requested(counted, "/jobs/bad")
    found = {s.labels: s.total for s in counted.recorder.samples() if s.name == metrics.REQUESTS.name}
    assert found == {
        ("/jobs/{job_id}", "GET", "200"): 3,
        ("unmatched", "GET", "404"): 1,
        ("/jobs/{job_id}", "other", "405"): 1,
        ("/jobs/{job_id}", "GET", "500"): 1,
    }
    assert counted.in_progress == 0


def test_what_callers_choose_does_not_become_labels_without_end() -> None:
    counted = ApiMetrics()
    counted.accepted([Page(id=new_id(), model_uri=f"models:/m/{n}", queue="bulk.2", jobs=2) for n in range(300)])
    found = {(s.name, s.labels): s.total for s in counted.recorder.samples()}
    assert found[metrics.SUBMITTED.name, ("other", "bulk")] == 2 * (300 - MOST_MODELS)


def test_the_page_of_metrics_says_what_there_is() -> None:
    rows = re.findall(
        r"^\| `(pyfunq_\w+)` \| (\w+) \| (.*?) \|", (ROOT / "docs" / "metrics.md").read_text("utf-8"), re.M
    )
    told = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert told == {m.name: (m.kind, m.labels) for m in METRICS.values()}


def _expressions() -> list[str]:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text("utf-8"))
    dashboard = orjson.loads((ROOT / "deploy" / "grafana" / "pyfunq.json").read_bytes())
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return found + [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def test_what_alerts_and_the_dashboard_ask_is_promql() -> None:
    promql = pytest.importorskip("promql_parser")
    for expression in _expressions():
        promql.parse(expression.replace("$__rate_interval", "5m"))


def test_every_metric_that_an_alert_or_the_dashboard_names_exists() -> None:
    expressions = _expressions()
    assert len(expressions) > 20
    for expression in expressions:
        names = re.findall(r"pyfunq_\w+", expression)
        assert names or "up{" in expression, expression
        for name in names:
            metric = METRICS.get(name) or METRICS.get(re.sub(r"_(bucket|sum|count)$", "", name))
            assert metric is not None, name
            assert (metric.kind == "histogram") == (name != metric.name), name
            by = {label for group in re.findall(r"by ?\(([^)]*)\)", expression) for label in group.split(",")}
            matched = set(re.findall(rf"{name}{{(\w+)[=!]", expression))
            for label in ({b.strip() for b in by} - {"le", "instance", "job", ""}) | matched:
                assert label in metric.labels, (name, label)
