"""Jobs over HTTP: submitted, waited for, read, cancelled, tried again, listed."""

import asyncio

import httpx
import pyarrow as pa
import pytest

from tests.integration.api.conftest import Workers
from tests.integration.conftest import IRIS, SETOSA, VIRGINICA, split

IRIS_1 = "models:/iris/1"
pytestmark = pytest.mark.usefixtures("iris_model")


async def test_a_job_that_is_waited_for_comes_with_its_predictions(
    http: httpx.AsyncClient, workers: Workers, iris_model: str
) -> None:
    asked = {"model": IRIS_1, **split(SETOSA, VIRGINICA), "metadata": {"order": "A-1"}}
    answer = await workers.while_(http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=30"}))
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "succeeded"
    assert job["predictions"] == [0, 2]
    assert job["metadata"] == {"order": "A-1"}
    assert answer.headers["preference-applied"] == "wait=30"
    assert (await http.get(answer.headers["location"])).json() == {k: v for k, v in job.items() if k != "predictions"}


async def test_submit_poll_and_read(http: httpx.AsyncClient, workers: Workers) -> None:
    accepted = await http.post("/v1/jobs", json={"model": IRIS_1, **split(SETOSA)})
    assert accepted.status_code == 202
    assert int(accepted.headers["retry-after"]) >= 1
    place = accepted.headers["location"]
    early = await http.get(f"{place}/result")
    assert (early.status_code, early.json()["status"]) == (202, "queued")
    done = await workers.while_(http.get(place, params={"wait": 30}))
    assert done.json()["status"] == "succeeded"
    assert (await http.get(f"{place}/result")).json() == {"predictions": [0]}
    arrow = await http.get(f"{place}/result", headers={"Accept": "application/vnd.apache.arrow.stream"})
    assert pa.ipc.open_stream(arrow.content).read_all().to_pydict() == {"predictions": [0]}


@pytest.mark.parametrize("where", [{"version": 1}, {"stage": "Production"}, {"alias": "live"}, {}])
async def test_a_bare_name_with_what_says_which_version(http: httpx.AsyncClient, where: dict[str, object]) -> None:
    answer = await http.post("/v1/jobs", json={"model": "iris", **where, **split(SETOSA)})
    suffix = {"version": "/1", "stage": "/Production", "alias": "@live"}.get(next(iter(where), ""), "/latest")
    assert answer.json()["model"] == f"models:/iris{suffix}"


async def test_a_failed_job_says_why_and_can_be_tried_again(
    http: httpx.AsyncClient, workers: Workers, moody_model: str
) -> None:
    asked = {"model": moody_model, **split([13.0], columns=["x"])}
    answer = await workers.while_(http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=30"}))
    job = answer.json()
    assert (job["status"], job["error"]["code"]) == ("failed", "model_raised")
    assert "predictions" not in job
    place = answer.headers["location"]
    result = await http.get(f"{place}/result")
    assert (result.status_code, result.json()["code"]) == (409, "model_raised")
    again = await http.post(f"{place}/retry")
    assert (again.status_code, again.json()["status"]) == (202, "queued")
    refused = await http.post(f"{place}/retry")
    assert refused.status_code == 409
    cancelled = await http.post(f"{place}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert (await http.post(f"{place}/cancel")).status_code == 200


async def test_pages_of_jobs_newest_first(http: httpx.AsyncClient) -> None:
    ids = [(await http.post("/v1/jobs", json={"model": IRIS_1, **split(SETOSA)})).json()["id"] for _ in range(5)]
    found, cursor = [], None
    while True:
        page = (await http.get("/v1/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        found += [job["id"] for job in page["data"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == ids[::-1]
    assert (await http.get("/v1/jobs", params={"status": "failed"})).json() == {"data": [], "next_cursor": None}


async def test_a_key_makes_a_submit_repeatable(http: httpx.AsyncClient) -> None:
    asked, headers = {"model": IRIS_1, **split(SETOSA)}, {"Idempotency-Key": "order-1"}
    one, two = [await http.post("/v1/jobs", json=asked, headers=headers) for _ in range(2)]
    assert one.json()["id"] == two.json()["id"]
    other = await http.post("/v1/jobs", json={**asked, **split(VIRGINICA)}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


async def test_what_the_signature_does_not_take_is_refused_with_a_pointer(
    http: httpx.AsyncClient, workers: Workers, iris_model: str
) -> None:
    known = http.post("/v1/jobs", json={"model": IRIS_1, **split(SETOSA)}, headers={"Prefer": "wait=30"})
    assert (await workers.while_(known)).status_code == 200
    answer = await http.post("/v1/jobs", json={"model": IRIS_1, **split(["tall", 3.5, 1.4, 0.2])})
    async with asyncio.timeout(20):  # the API looks for a signature that it has not found every two seconds
        while answer.status_code == 202:
            answer = await http.post("/v1/jobs", json={"model": IRIS_1, **split(["tall", 3.5, 1.4, 0.2])})
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (422, 422, "invalid_input")
    assert problem["errors"][0]["pointer"] == "/dataframe_split/columns/0", IRIS[0]
    assert "tall" not in answer.text
