"""MLflow's scoring protocol over the queue: its own client, its formats, its answers; and the aliases."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

from pyfunq.api_keys import Scope
from pyfunq.http_transport import trusted
from pyfunq.settings import Settings
from tests.conftest import RegisterModel
from tests.integration.api.conftest import ApiServer, MakeKey, Workers
from tests.integration.conftest import IRIS, SETOSA, VIRGINICA, split

IRIS_1 = "models:/iris/1"
FRAME = pd.DataFrame([SETOSA, VIRGINICA], columns=IRIS)
pytestmark = pytest.mark.usefixtures("iris_model")


@pytest.fixture
async def http_1(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An API with a default model."""
    with ApiServer(settings.model_copy(update={"api_model": IRIS_1})) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=trusted()) as client:
            yield client


async def post(http: httpx.AsyncClient, workers: Workers, path: str, **request: Any) -> httpx.Response:
    answer = await workers.while_(http.post(path, **request))
    assert isinstance(answer, httpx.Response)
    return answer


async def test_mlflows_own_client(http_1: httpx.AsyncClient, workers: Workers) -> None:
    address = urlsplit(str(http_1.base_url))
    client = ScoringServerClient(address.hostname, address.port)
    await asyncio.to_thread(client.wait_server_ready, timeout=10)
    assert (await asyncio.to_thread(client.get_version))[0].isdigit()
    answer = await workers.while_(asyncio.to_thread(client.invoke, FRAME))
    assert answer.get_predictions().iloc[:, 0].tolist() == [0, 2]
    assert answer.get_predictions("ndarray").tolist() == [0, 2]
    with pytest.raises(Exception, match="error code 422"):
        await workers.while_(asyncio.to_thread(client.invoke, FRAME.drop(columns=IRIS[0])))


def _parquet(frame: pd.DataFrame) -> bytes:
    written = io.BytesIO()
    frame.to_parquet(written)
    return written.getvalue()


_JSON = {
    "split": split(SETOSA, VIRGINICA),
    "split with an index": {"dataframe_split": FRAME.to_dict(orient="split")},
    "records": {"dataframe_records": FRAME.to_dict(orient="records")},
    "instances": {"instances": FRAME.to_dict(orient="records")},
    "inputs": {"inputs": FRAME.to_dict(orient="list")},
}


@pytest.mark.parametrize("body", _JSON.values(), ids=list(_JSON))
async def test_each_json_format(http: httpx.AsyncClient, workers: Workers, body: dict[str, Any]) -> None:
    answer = await post(http, workers, "/invocations?model=iris/1", json=body)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [0, 2]}), answer.text
    job = (await http.get(answer.headers["location"])).json()
    assert (job["status"], job["model"]) == ("succeeded", IRIS_1)


async def test_csv_and_parquet(http: httpx.AsyncClient, workers: Workers) -> None:
    bodies = {
        "text/csv; charset=utf-8": FRAME.to_csv(index=False).encode(),
        "application/vnd.apache.parquet": _parquet(FRAME.set_axis(["a", "b"])),
    }
    for _ in ("before the signature is known", "after"):
        for kind, body in bodies.items():
            answer = await post(
                http, workers, "/invocations?model=iris/1", content=body, headers={"Content-Type": kind}
            )
            assert (answer.status_code, answer.json()) == (200, {"predictions": [0, 2]}), answer.text


@pytest.mark.parametrize("place", ["iris/1", "models:/iris/1", "models%3A%2Firis%2F1", "iris/Production", "iris@first"])
async def test_a_model_in_the_path(http: httpx.AsyncClient, workers: Workers, place: str) -> None:
    answer = await post(http, workers, f"/models/{place}/invocations", json=split(SETOSA))
    assert (answer.status_code, answer.json()) == (200, {"predictions": [0]}), answer.text


async def test_what_cannot_be_scored_is_a_problem(http: httpx.AsyncClient) -> None:
    csv = {"Content-Type": "text/csv"}
    refused: list[tuple[int, str, dict[str, Any]]] = [
        (422, "/invocations", {"json": split(SETOSA)}),
        (422, "/invocations?model=iris", {"json": {**split(SETOSA), "model_uri": "x"}}),
        (422, "/invocations?model=iris", {"json": {}}),
        (400, "/invocations?model=iris", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        (415, "/invocations?model=iris", {"content": b"x", "headers": {"Content-Type": "text/html"}}),
        (415, "/invocations?model=iris", {"content": b"a\n1", "headers": {"Content-Type": "text/csv; charset=latin1"}}),
        (422, "/invocations?model=iris", {"content": b"a,b\n1\n", "headers": csv}),
        (422, "/invocations?model=iris", {"content": b"", "headers": csv}),
        (422, "/invocations?model=iris", {"content": b"a,b\n", "headers": csv}),
        (422, "/invocations?model=iris", {"content": b'a\n"1', "headers": csv}),
        (422, "/invocations?model=iris", {"content": b"\xff\xfe\x00", "headers": csv}),
        (
            422,
            "/invocations?model=iris",
            {"content": b"PAR1", "headers": {"Content-Type": "application/vnd.apache.parquet"}},
        ),
        (404, "/invocations?model=no-such-model", {"json": split(SETOSA)}),
        (422, "/models/file:///etc/passwd/invocations", {"json": split(SETOSA)}),
        (422, "/invocations?model=../x", {"json": split(SETOSA)}),
    ]
    for status, path, request in refused:
        answer = await http.post(path, **request)
        assert answer.status_code == status, (path, request, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "/tmp" not in answer.text
        assert answer.json()["status"] == status


async def test_a_little_parquet_that_stands_for_much_is_refused(settings: Settings) -> None:
    many = pd.DataFrame({"x": ["a" * 1000] * 100_000})
    with ApiServer(settings.model_copy(update={"max_input_bytes": 1024 * 1024})) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=trusted()) as client:
            kind = {"Content-Type": "application/vnd.apache.parquet"}
            answer = await client.post("/invocations?model=iris", content=_parquet(many), headers=kind)
    assert (answer.status_code, answer.json()["code"]) == (413, "input_too_large")


async def test_nan_of_a_frame_is_null_here_and_refused_elsewhere(
    http: httpx.AsyncClient, workers: Workers, register: RegisterModel
) -> None:
    register("nulls", Nulls(), pd.DataFrame({"x": [1.0, None]}))
    body, kind = b'{"dataframe_records": [{"x": NaN}, {"x": 2.0}]}', {"Content-Type": "application/json"}
    answer = await post(http, workers, "/predict?model=nulls", content=body, headers=kind)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [True, False]}), answer.text
    infinite = await http.post("/predict?model=nulls", content=body.replace(b"NaN", b"Infinity"), headers=kind)
    assert infinite.status_code == 400
    job = b'{"model": "nulls", ' + body[1:]
    assert (await http.post("/v1/jobs", content=job, headers=kind)).status_code == 400


class Nulls(PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input["x"].isna().tolist()


async def test_what_is_not_ready_in_time_goes_on(settings: Settings, workers: Workers) -> None:
    with ApiServer(settings.model_copy(update={"api_wait_seconds": 0.05})) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=trusted()) as client:
            late = await client.post("/invocations?model=iris/1", json=split(SETOSA))
            assert (late.status_code, late.json()["code"]) == (504, "wait_timeout")
            done = await workers.while_(client.get(late.headers["location"], params={"wait": 30}))
            assert done.json()["status"] == "succeeded"
            assert (await client.get(f"{late.headers['location']}/result")).json() == {"predictions": [0]}


async def test_a_model_that_raises_and_a_version_that_is_not_there(
    http: httpx.AsyncClient, workers: Workers, moody_model: str
) -> None:
    raised = await post(http, workers, f"/models/{moody_model}/invocations", json=split([13.0], columns=["x"]))
    assert (raised.status_code, raised.json()["code"]) == (422, "model_raised")
    assert "13" not in raised.json()["detail"].replace(raised.headers["location"].split("/")[-1], "")
    missing = await post(http, workers, "/models/iris/99/invocations", json=split(SETOSA))
    assert (missing.status_code, missing.json()["code"]) == (404, "model_not_found")


async def test_the_same_idempotency_key_is_the_same_job(http: httpx.AsyncClient, workers: Workers) -> None:
    csv = FRAME.to_csv(index=False).encode()
    headers = {"Content-Type": "text/csv", "Idempotency-Key": "rows-1"}
    one, two = [await post(http, workers, "/invocations?model=iris/1", content=csv, headers=headers) for _ in range(2)]
    assert one.headers["location"] == two.headers["location"]


async def test_the_aliases(http_1: httpx.AsyncClient, workers: Workers, make_key: MakeKey) -> None:
    answer = await post(http_1, workers, "/predict", json=split(SETOSA))
    assert answer.json() == {"predictions": [0]}
    info = (await http_1.get("/model/info")).json()
    assert info["name"] == "iris"
    assert (await http_1.post("/reload-model")).status_code == 202
    reader = await make_key("acme", Scope.SUBMIT)
    refused = await http_1.post("/reload-model", headers=reader)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")


async def test_pointers_name_the_row(http: httpx.AsyncClient, workers: Workers, eventually: Callable[..., Any]) -> None:
    await post(http, workers, "/invocations?model=iris/1", json=split(SETOSA))
    records = FRAME.to_dict(orient="records")
    bad = [records[0], {**records[1], IRIS[2]: "wide"}]
    columns = {**FRAME.to_dict(orient="list"), IRIS[2]: [1.0, "wide"]}

    async def known() -> bool:
        return (await http.post("/v1/jobs", json={"model": IRIS_1, "dataframe_records": bad})).status_code == 422

    await eventually("the API knows the signature", known)
    expected: list[tuple[dict[str, Any], str]] = [
        ({"dataframe_records": bad}, f"/dataframe_records/1/{IRIS[2]}"),
        ({"instances": bad}, f"/instances/1/{IRIS[2]}"),
        ({"inputs": columns}, f"/inputs/{IRIS[2]}/1"),
        ({"dataframe_records": [records[0], {}]}, "/dataframe_records/1"),
        ({"dataframe_split": {"columns": IRIS, "data": [SETOSA, [1.0]]}}, "/dataframe_split/data/1"),
    ]
    for body, pointer in expected:
        answer = await http.post("/invocations?model=iris/1", json=body)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer), answer.text
        assert "wide" not in answer.text
