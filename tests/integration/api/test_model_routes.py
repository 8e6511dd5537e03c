"""Models over HTTP: what is known of them, whose keys may see it, and models that nobody registered."""

from collections.abc import Callable
from typing import Any

import httpx
import mlflow
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, Schema

from pyfunq.api_keys import Scope
from pyfunq.http_transport import trusted
from pyfunq.settings import Settings
from tests.conftest import Servers
from tests.integration.api.conftest import ApiServer, MakeKey, Workers
from tests.integration.conftest import IRIS, SETOSA, split
from tests.integration.mlflow_proxy import Proxy

IRIS_1 = "models:/iris/1"
pytestmark = pytest.mark.usefixtures("iris_model")


async def predict(http: httpx.AsyncClient, workers: Workers, model: str = IRIS_1, **headers: str) -> None:
    asked = http.post("/invocations", params={"model": model}, json=split(SETOSA), headers=headers)
    assert (await workers.while_(asked)).status_code == 200


async def test_a_model_with_what_it_takes_and_an_example_that_runs(
    http: httpx.AsyncClient, workers: Workers, eventually: Callable[..., Any]
) -> None:
    before = (await http.get("/v1/models/iris")).json()
    assert (before["uris"], before["versions"], before["signature"]) == ([], [], None), "registered, not asked for"
    await predict(http, workers)
    await predict(http, workers, "models:/iris@champion")

    async def seen() -> bool:
        return len((await http.get("/v1/models/iris")).json()["uris"]) == 2

    await eventually("what was looked up is looked up again", seen)
    (listed,) = (await http.get("/v1/models")).json()["data"]
    info = (await http.get("/v1/models/iris")).json()
    assert {**listed} == {key: info[key] for key in listed}
    assert {uri["uri"]: uri["version"] for uri in info["uris"]} == {IRIS_1: "1", "models:/iris@champion": "2"}
    assert [version["version"] for version in info["versions"]] == ["2", "1"]
    assert info["signature"]["inputs"] == [{"name": name, "type": "double", "required": True} for name in IRIS]
    assert info["serving"][0]["process"]
    job = await workers.while_(http.post("/v1/jobs", json=info["example"], headers={"Prefer": "wait=30"}))
    assert job.json()["status"] == "succeeded"


async def test_a_model_that_is_not_registered(http: httpx.AsyncClient) -> None:
    for answer in (
        await http.get("/v1/models/no-such-model"),
        await http.get("/v1/models/%00%1b"),
        await http.post("/v1/jobs", json={"model": "no-such-model", **split(SETOSA)}),
        await http.post("/v1/jobs", json={"model": "models:/no-such-model@champion", **split(SETOSA)}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found"), answer.text


@pytest.mark.parametrize("model", ["../x", "file:/etc/passwd", "s3://bucket/model", "http://host/model", "a" * 300])
async def test_what_is_no_models_name(http: httpx.AsyncClient, model: str) -> None:
    answer = await http.post("/v1/jobs", json={"model": model, **split(SETOSA)})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_model_uri")


async def test_while_mlflow_is_away_the_worker_checks(settings: Settings, proxy: Proxy, workers: Workers) -> None:
    proxy.is_away = True
    away = settings.model_copy(update={"mlflow_tracking_uri": proxy.uri})
    with ApiServer(away) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=trusted()) as client:
            accepted = await client.post("/v1/jobs", json={"model": "no-such-model", **split(SETOSA)})
            assert accepted.status_code == 202
            unknown = await client.get("/v1/models/no-such-model")
            assert (unknown.status_code, unknown.json()["code"]) == (503, "registry_unavailable")
            await predict(client, workers)
            assert (await client.get("/v1/models/iris")).status_code == 200, "the ledger knows it"


async def test_a_key_sees_its_models_and_no_hosts(
    http: httpx.AsyncClient, workers: Workers, make_key: MakeKey, moody_model: str
) -> None:
    both = [{"model": IRIS_1, **split(SETOSA)}, {"model": moody_model, **split([1.0], columns=["x"])}]
    for asked in both:
        done = await workers.while_(http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=30"}))
        assert done.json()["status"] == "succeeded"
    key = await make_key("acme", Scope.SUBMIT, models=["models:/iris/*"])
    assert [m["name"] for m in (await http.get("/v1/models", headers=key)).json()["data"]] == ["iris"]
    info = (await http.get("/v1/models/iris", headers=key)).json()
    assert info["serving"]
    assert "process" not in info["serving"][0]
    for name in ("moody", "no-such-model"):
        assert (await http.get(f"/v1/models/{name}", headers=key)).status_code == 404
    submitted = await http.post("/v1/jobs", json=both[1], headers=key)
    assert submitted.status_code == 404


class Doubled(PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return (model_input["x"] * 2 + model_input.get("n", 0)).tolist()


@pytest.fixture(scope="session")
def doubled_model(servers: Servers) -> str:
    """Has an integer column that may be left out."""
    mlflow.set_tracking_uri(servers.mlflow)
    mlflow.set_experiment("tests doubled")
    signature = ModelSignature(inputs=Schema([ColSpec("double", "x"), ColSpec("long", "n", required=False)]))
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            python_model=Doubled(),
            name="model",
            signature=signature,
            registered_model_name="doubled",
            pip_requirements=[],
        )
    return "models:/doubled/1"


async def test_an_optional_integer_column_may_be_null(
    http: httpx.AsyncClient, workers: Workers, doubled_model: str, eventually: Callable[..., Any]
) -> None:
    async def ask(*records: dict[str, Any]) -> httpx.Response:
        asked = http.post("/invocations", params={"model": doubled_model}, json={"dataframe_records": list(records)})
        answer = await workers.while_(asked)
        assert isinstance(answer, httpx.Response)
        return answer

    async def known() -> bool:
        return (await ask({"x": "text", "n": 1})).headers.get("location") is None  # refused before there is a job

    await eventually("the API knows the signature", known)
    assert (await ask({"x": 1.0, "n": None}, {"x": 2.0, "n": None})).json() == {"predictions": [2.0, 4.0]}
    assert (await ask({"x": 1.0})).json() == {"predictions": [2.0]}
    assert (await ask({"x": 1.0, "n": 3})).json() == {"predictions": [5.0]}
    mixed = await ask({"x": 1.0, "n": 3}, {"x": 2.0, "n": None})  # MLflow itself takes no such column
    assert (mixed.status_code, mixed.json()["errors"][0]["pointer"]) == (422, "/dataframe_records/1/n")
