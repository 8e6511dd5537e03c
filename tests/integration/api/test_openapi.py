"""The OpenAPI document is true: requests made up from it get no 5xx and no answer that it does not have."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pyfunq.http_transport import trusted
from pyfunq.http_wire import ARROW, PARQUET
from pyfunq.settings import Settings
from tests.integration.api.conftest import ApiServer, MakeKey, Workers
from tests.integration.conftest import IRIS, SETOSA, split

_CHECKS = (status_code_conformance, content_type_conformance, response_schema_conformance)
_EVERY = tuple(schemathesis.GenerationMode)
BATCH = "/v1/batches?model=models:/iris/1"
ROWS = b"".join(orjson.dumps(dict(zip(IRIS, SETOSA, strict=True))) + b"\n" for _ in range(3))
_TEXTS = ("text/html", "text/javascript", "text/css", "image/png")


@schemathesis.serializer("application/x-ndjson", "text/csv", ARROW, PARQUET)
def _as_it_is(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@dataclass(frozen=True)
class Api:
    """A server with a model, a job of each end, a batch that is done and one that is not, and what they are called."""

    url: str
    job_ids: list[str]
    batch_ids: list[str]


@pytest.fixture
async def api(settings: Settings, workers: Workers, iris_model: str, moody_model: str) -> AsyncIterator[Api]:
    with ApiServer(settings.model_copy(update={"api_wait_seconds": 0.02, "api_model": "models:/iris/1"})) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=trusted()) as http:
            wait = {"Prefer": "wait=30"}
            ids, batch_ids = [], []
            for _ in range(2):
                await workers.all()
                sent = await http.post(BATCH, content=ROWS, headers={"Content-Type": "application/x-ndjson"})
                batch_ids.append(sent.json()["id"])
            for model, given in (("models:/iris/1", split(SETOSA)), (moody_model, split([13.0], columns=["x"]))):
                asked = http.post("/v1/jobs", json={"model": model, **given}, headers=wait)
                ids.append((await workers.while_(asked)).json()["id"])
            for _ in range(2):
                queued = await http.post("/v1/jobs", json={"model": "models:/iris/1", **split(SETOSA)})
                ids.append(queued.json()["id"])
            assert (await http.post(f"/v1/jobs/{ids[-1]}/cancel")).status_code == 202
        yield Api(url, ids, batch_ids)


@pytest.mark.parametrize("cases", [2, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
async def test_whatever_is_sent_the_answer_is_documented(api: Api, cases: int) -> None:
    count = await asyncio.to_thread(_try_all, api, cases)
    print(f"{count:,} requests")
    assert count > 40 * cases


def _try_all(api: Api, cases: int) -> int:
    """How many requests were made; `cases` are the most an operation and a kind (valid and invalid) gets."""
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    count = 0
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in _EVERY:
                count += _try(api, session, operation, mode, cases)
    return count


def _try(api: Api, session: requests.Session, operation: Any, mode: Any, cases: int) -> int:
    count = 0
    choice = random.Random(cases)  # noqa: S311

    @seeded(cases)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        nonlocal count
        count += 1
        _make_it_real(case, api, choice)
        answer = case.call(session=session, timeout=30)
        assert answer.status_code not in (500, 501, 505), (operation.label, case.as_curl_command(), answer.text)
        case.validate_response(answer, checks=list(_CHECKS))

    # An operation without parameters takes everything.
    with suppress(Unsatisfiable) if mode.is_negative else nullcontext():
        one()
    return count


def _make_it_real(case: Any, api: Api, choice: random.Random) -> None:
    """Most cases are about jobs and models that exist; none waits for long."""
    path, query = case.path_parameters or {}, case.query if isinstance(case.query, dict) else {}
    real = {
        "job_id": api.job_ids,
        "batch_id": api.batch_ids,
        "model": ["iris", "moody"],
        "name": ["iris"],
        "version": ["1", "99", "Production"],
    }
    if case.path.endswith("/events"):  # those of others never end; one that failed may have been tried again
        real |= {"job_id": api.job_ids[:1], "batch_id": api.batch_ids[:1]}
    for name, values in real.items():
        if name in path and (choice.random() < 0.7 or case.path.endswith("/events")):
            path[name] = choice.choice(values)
    if "wait" in query:
        query["wait"] = choice.choice([0, 0.01, -1, "soon"])
    body = case.body
    if not isinstance(body, dict) or choice.random() < 0.5:
        return
    if isinstance(body.get("inputs"), list) and case.path.startswith("/v2"):
        body["inputs"] = [{"name": "input-0", "shape": [1, 4], "datatype": "FP32", "data": SETOSA}]
    elif "model" in body:
        body["model"] = choice.choice(["iris", "models:/iris/1"])


async def test_the_models_are_in_the_document_and_its_examples_run(
    http: httpx.AsyncClient, workers: Workers, iris_model: str, eventually: Callable[..., Any]
) -> None:
    first = http.post("/v1/jobs", json={"model": "iris", **split(SETOSA)}, headers={"Prefer": "wait=30"})
    assert (await workers.while_(first)).json()["status"] == "succeeded"

    async def examples() -> Any:
        document = (await http.get("/openapi.json")).json()
        return document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"].get("examples")

    (example,) = (await eventually("the model's example is in the document", examples)).values()
    answer = await workers.while_(http.post("/v1/jobs", json=example["value"], headers={"Prefer": "wait=30"}))
    assert answer.json()["status"] == "succeeded"
    document = (await http.get("/openapi.json")).json()
    record = document["components"]["schemas"]["job.iris.latest"]["properties"]["dataframe_records"]["items"]
    assert record["required"] == ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    scoring = document["paths"]["/invocations"]["post"]
    (body,) = scoring["requestBody"]["content"]["application/json"]["examples"].values()
    (model,) = scoring["parameters"][0]["examples"].values()
    scored = await workers.while_(http.post("/invocations", params={"model": model["value"]}, json=body["value"]))
    assert scored.status_code == 200


async def test_a_caller_without_a_key_gets_the_document_without_models(
    http: httpx.AsyncClient, workers: Workers, iris_model: str, make_key: MakeKey, eventually: Callable[..., Any]
) -> None:
    first = http.post("/v1/jobs", json={"model": "iris", **split(SETOSA)}, headers={"Prefer": "wait=30"})
    await workers.while_(first)
    mine, others = await make_key("acme"), await make_key("other", models=["models:/moody/*"])

    async def shut() -> bool:
        return (await http.get("/v1/jobs")).status_code == 401

    await eventually("the API knows that there are keys", shut)

    async def shown() -> bool:
        return "job.iris.latest" in (await http.get("/openapi.json", headers=mine)).text

    await eventually("the document has the model", shown)
    for headers in ({}, others):
        answer = await http.get("/openapi.json", headers=headers)
        assert answer.status_code == 200
        assert "iris.latest" not in answer.text


async def test_the_docs_need_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in page.text
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js", "favicon-32x32.png"):
        assert f"docs/{name}" in page.text
        asset = await http.get(f"/docs/{name}")
        assert asset.status_code == 200
        assert asset.headers["content-type"].partition(";")[0] in _TEXTS
    assert (await http.get("/docs/..%2f__init__.py")).status_code == 404
    assert (await http.get("/docs/__init__.py")).status_code == 404
