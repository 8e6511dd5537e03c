"""The same client over HTTP and without: the same calls, the same values, the same errors."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.pyfunc import PythonModel

from pyfunq import Client
from pyfunq.api_keys import Scope
from pyfunq.client import AsyncClient
from pyfunq.errors import (
    Forbidden,
    IdempotencyConflict,
    InvalidInput,
    InvalidModelURI,
    JobCancelled,
    JobFailed,
    ModelNotAllowed,
    NotOverHttp,
    PyFunQError,
    Unauthenticated,
    UnknownJob,
    WaitTimeout,
    WrongApi,
)
from pyfunq.http_client import HttpAsyncClient
from pyfunq.job import Job, JobStatus
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.conftest import RegisterModel
from tests.integration.api.conftest import MakeKey
from tests.integration.conftest import IRIS, SETOSA, VIRGINICA, Work, split

IRIS_1 = "models:/iris/1"
pytestmark = pytest.mark.usefixtures("iris_model")

BOTH = ("direct", "http")


@pytest.fixture(params=BOTH)
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def asked(how: str, settings: Settings, api_url: str) -> dict[str, Any]:
    """What makes a client of either kind; that over HTTP knows no database."""
    return {"settings": settings} if how == "direct" else {"base_url": api_url, "home": settings.home}


@pytest.fixture
async def client(asked: dict[str, Any]) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(**asked) as opened:
        yield opened


@pytest.fixture
async def working(work: Work) -> AsyncIterator[None]:
    """A worker that takes what is queued while the test runs."""
    ends = asyncio.Event()

    async def go_on() -> None:
        while not ends.is_set():
            await work.all()
            await asyncio.wait([asyncio.ensure_future(ends.wait())], timeout=0.02)

    task = asyncio.create_task(go_on())
    yield
    ends.set()
    await task


class Echo(PythonModel):
    """A frame out: what came in, doubled, and a text."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return pd.DataFrame({"twice": model_input["x"] * 2, "text": [f"row {v}" for v in model_input["x"]]})


@pytest.fixture(scope="session")
def echo_model(register: RegisterModel) -> str:
    register("echo", Echo(), None)
    return "models:/echo/1"


def frame(*rows: list[float], index: Any = None) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=IRIS, index=index)


async def test_the_client_is_of_the_kind_that_was_asked_for(client: AsyncClient, how: str) -> None:
    assert isinstance(client, AsyncClient)
    assert isinstance(client, HttpAsyncClient) == (how == "http")


@pytest.mark.usefixtures("working")
async def test_json_in_json_out(client: AsyncClient) -> None:
    job = await client.submit(IRIS_1, split(SETOSA, VIRGINICA), metadata={"order": "A-1"})
    assert (job.status, job.rows, job.model_uri) == (JobStatus.QUEUED, 2, IRIS_1)
    assert await client.result(job, timeout=60) == [0, 2]
    done = await client.wait(job.id, timeout=60)
    assert done.status is JobStatus.SUCCEEDED
    assert done == await client.get(str(job.id))
    assert (done.metadata, done.model_name, done.model_version) == ({"order": "A-1"}, "iris", "1")
    assert done.finished_at is not None
    assert done.started_at is not None
    assert done.created_at <= done.started_at <= done.finished_at
    assert done.run_id


@pytest.mark.usefixtures("working")
async def test_frames_and_tables_in_series_out(client: AsyncClient) -> None:
    job = await client.submit(IRIS_1, frame(SETOSA, VIRGINICA), retries=2, timeout=30)
    assert (job.retries, job.timeout_seconds) == (2, 30.0)
    result = await client.result(job, timeout=60)
    assert np.asarray(result).tolist() == [0, 2]
    assert np.asarray(result).dtype == np.int64
    table = pa.Table.from_pandas(frame(VIRGINICA), preserve_index=False)
    again = await client.result(await client.submit(IRIS_1, table), timeout=60)
    assert type(again) is type(result)


@pytest.mark.usefixtures("working")
async def test_predict_keeps_the_index(client: AsyncClient, echo_model: str) -> None:
    index = pd.Index(["a", "b", "c"], name="who")
    found = await client.predict(echo_model, pd.DataFrame({"x": [1.5, 2.5, 3.5]}, index=index), timeout=60)
    wanted = pd.DataFrame({"twice": [3.0, 5.0, 7.0], "text": ["row 1.5", "row 2.5", "row 3.5"]}, index=index)
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
    assert found["twice"].dtype == np.float64


@pytest.mark.usefixtures("working")
async def test_many_are_accepted_in_order(client: AsyncClient, ledger: Ledger) -> None:
    mixed = [split(SETOSA), frame(VIRGINICA, SETOSA), split(VIRGINICA)]
    jobs = await client.submit_many(IRIS_1, mixed, retries=1, expires_in=600)
    assert [job.rows for job in jobs] == [1, 2, 1]
    assert [np.asarray(await client.result(job, timeout=60)).tolist() for job in jobs] == [[0], [2, 0], [2]]
    stored = await ledger.get(jobs[0].id)
    assert (stored.retries, stored.created_at.timestamp()) == (1, pytest.approx(jobs[0].created_at.timestamp(), abs=1))
    assert stored.expires_at is not None
    assert list(await client.submit_many(IRIS_1, [])) == []


async def test_of_many_either_all_are_accepted_or_none(client: AsyncClient, ledger: Ledger) -> None:
    bad = [split(SETOSA), {"dataframe_split": {"columns": IRIS, "data": [[1.0]]}}]
    with pytest.raises(InvalidInput, match=r"inputs\[1\]: .*row 1") as raised:
        await client.submit_many(IRIS_1, bad)
    assert raised.value.field == "data"
    assert await ledger.list_jobs() == []


@pytest.mark.parametrize(
    ("model", "inputs", "options", "kind"),
    [
        ("iris", split(SETOSA), {}, ModelNotAllowed),
        ("file:///etc/passwd", split(SETOSA), {}, ModelNotAllowed),
        ("models:/iris", split(SETOSA), {}, InvalidModelURI),
        ("runs:/0123456789abcdef0123456789abcdef/model", split(SETOSA), {}, ModelNotAllowed),
        (IRIS_1, split([float("nan"), 1, 1, 1]), {}, InvalidInput),
        (IRIS_1, {"rows": []}, {}, InvalidInput),
        (IRIS_1, {"lane": "bulk", **split(SETOSA)}, {}, InvalidInput),
        (IRIS_1, pd.DataFrame({"x": []}), {}, InvalidInput),
        (IRIS_1, split(SETOSA), {"retries": 21}, InvalidInput),
        (IRIS_1, split(SETOSA), {"lane": "fast"}, InvalidInput),
        (IRIS_1, split(SETOSA), {"metadata": {"x": "y" * 20_000}}, InvalidInput),
        (IRIS_1, {**split(SETOSA), "params": {"a": 1}}, {"params": {"a": 2}}, InvalidInput),
        (IRIS_1, b"bytes", {}, InvalidInput),
    ],
)
async def test_what_cannot_be_is_refused_alike(
    client: AsyncClient, ledger: Ledger, model: str, inputs: Any, options: dict[str, Any], kind: type[PyFunQError]
) -> None:
    with pytest.raises(kind) as raised:
        await client.submit(model, inputs, **options)
    assert type(raised.value) is kind
    assert await ledger.list_jobs() == []


@pytest.mark.usefixtures("working")
async def test_the_column_at_fault_is_named(client: AsyncClient, eventually: Any) -> None:
    await client.result(await client.submit(IRIS_1, split(SETOSA)), timeout=60)

    async def field() -> str | None:
        try:
            await client.submit(IRIS_1, split(["tall", 3.5, 1.4, 0.2]))
        except InvalidInput as exc:
            return exc.field
        return None

    # A signature that was not found is looked for every two seconds.
    assert await eventually("the signature is known", field, 20) == IRIS[0]


@pytest.mark.usefixtures("working")
async def test_a_failed_job_raises_what_happened(client: AsyncClient, moody_model: str) -> None:
    job = await client.submit(moody_model, pd.DataFrame({"x": [13.0]}))
    with pytest.raises(JobFailed, match="ValueError") as raised:
        await client.result(job, timeout=60)
    assert type(raised.value) is JobFailed
    assert raised.value.error_code == "model_raised"
    done = await client.wait(job)
    assert done.error is not None
    assert done.error.code == "model_raised"
    assert str(raised.value) == f"job {job.id} failed: {done.error.message}"


async def test_cancelled_unknown_and_unfinished(client: AsyncClient) -> None:
    job = await client.submit(IRIS_1, split(SETOSA))
    with pytest.raises(WaitTimeout, match="after 0"):
        await client.wait(job, timeout=0.2)
    with pytest.raises(WaitTimeout):
        await client.result(job, timeout=0.0)
    assert (await client.cancel(job)).status is JobStatus.CANCELLED
    with pytest.raises(JobCancelled):
        await client.result(job, timeout=10)
    for call in (client.get, client.wait, client.result, client.cancel):
        for unknown in (uuid4(), "nothing"):
            with pytest.raises(UnknownJob):
                await call(unknown)  # type: ignore[operator]


async def test_a_key_of_ones_own(client: AsyncClient) -> None:
    one, two = [await client.submit(IRIS_1, frame(SETOSA), idempotency_key="order-1") for _ in range(2)]
    assert one.id == two.id
    with pytest.raises(IdempotencyConflict):
        await client.submit(IRIS_1, frame(VIRGINICA), idempotency_key="order-1")


async def test_lists_newest_first(client: AsyncClient) -> None:
    jobs = list(await client.submit_many(IRIS_1, [split(SETOSA)] * 5))
    newest = await client.list(limit=2, status="queued", model=IRIS_1)
    rest = await client.list(before=newest[-1], limit=100)
    assert [job.id for job in [*newest, *rest]] == [job.id for job in reversed(jobs)]
    assert await client.list(status=JobStatus.DEAD) == []


@pytest.mark.usefixtures("working")
async def test_jobs_as_they_end(client: AsyncClient, moody_model: str) -> None:
    first = await client.submit(moody_model, split([1.0], columns=["x"]))
    await client.wait(first, timeout=60)
    jobs = [first, *await client.submit_many(moody_model, [split([float(x)], columns=["x"]) for x in (2, 13, 3)])]
    ended = [job async for job in client.as_completed([*jobs, jobs[0]], timeout=60)]
    assert {job.id: job.status for job in ended} == {
        job.id: JobStatus.FAILED if number == 2 else JobStatus.SUCCEEDED for number, job in enumerate(jobs)
    }
    assert len(ended) == 4
    with pytest.raises(UnknownJob):
        [job async for job in client.as_completed([uuid4()], timeout=0.1)]


async def test_those_that_do_not_end_time_out(client: AsyncClient) -> None:
    jobs = await client.submit_many(IRIS_1, [split(SETOSA)] * 2)
    with pytest.raises(WaitTimeout, match="2 jobs were not finished after 1 s"):
        await anext(aiter(client.as_completed(jobs, timeout=1)))


@pytest.mark.usefixtures("working")
async def test_map_yields_results_in_order_and_reads_ahead_by_so_many(client: AsyncClient, echo_model: str) -> None:
    taken = 0

    def inputs() -> Iterator[Any]:
        nonlocal taken
        for n in range(40):
            taken += 1
            yield pd.DataFrame({"x": [float(n)]}, index=[f"r{n}"])

    seen = 0
    async for result in client.map(echo_model, inputs(), in_flight=8, timeout=60):
        assert (result.index.tolist(), result["twice"].tolist()) == ([f"r{seen}"], [2.0 * seen])
        seen += 1
        assert taken <= seen + 8 + 1
    assert (seen, taken) == (40, 40)


@pytest.mark.usefixtures("working")
async def test_map_ends_at_the_first_that_has_no_result(
    client: AsyncClient, moody_model: str, ledger: Ledger, eventually: Any
) -> None:
    async def inputs() -> AsyncIterator[Any]:
        for x in (1.0, 2.0, 13.0, *range(50)):
            yield split([float(x)], columns=["x"])

    results = client.map(moody_model, inputs(), timeout=60)
    assert [await anext(results), await anext(results)] == [[2.0], [4.0]]
    with pytest.raises(JobFailed):
        await anext(results)
    assert [one async for one in results] == []

    async def all_final() -> bool:
        return all(job.is_final for job in await ledger.list_jobs(limit=100))

    await eventually("what was submitted ahead is final", all_final)


async def test_map_left_early_cancels_what_is_queued(client: AsyncClient, ledger: Ledger, work: Work) -> None:
    results = client.map(IRIS_1, (split(SETOSA) for _ in range(100)), in_flight=10)
    first = asyncio.ensure_future(anext(results))
    while not first.done():
        await work.all()
    assert await first == [0]
    await results.aclose()  # type: ignore[attr-defined]
    jobs = await ledger.list_jobs(limit=200)
    assert 10 <= len(jobs) <= 22
    assert all(job.is_final for job in jobs)


@pytest.mark.usefixtures("working")
async def test_for_programs_without_an_event_loop(asked: dict[str, Any], echo_model: str) -> None:
    def program() -> None:
        with Client(**asked) as client:
            job = client.submit(IRIS_1, split(SETOSA))
            assert client.result(job, timeout=60) == [0]
            assert client.wait(job).status is JobStatus.SUCCEEDED
            assert [job.id for job in client.as_completed([job], timeout=60)] == [job.id]
            assert list(client.map(IRIS_1, [split(SETOSA), split(VIRGINICA)], timeout=60)) == [[0], [2]]
            found = client.predict(echo_model, pd.DataFrame({"x": [1.0]}, index=["k"]), timeout=60, progress=True)
            assert found["twice"].to_dict() == {"k": 2.0}
            for result in client.map(IRIS_1, (split(SETOSA) for _ in range(50)), in_flight=5):
                assert result == [0]
                break

    await asyncio.to_thread(program)


async def test_one_client_serves_many_threads(asked: dict[str, Any], ledger: Ledger) -> None:
    with await asyncio.to_thread(Client, **asked) as client:
        jobs: list[Job] = await asyncio.gather(
            *(asyncio.to_thread(client.submit, IRIS_1, split(SETOSA)) for _ in range(40))
        )
        await asyncio.to_thread(client.close)
    assert {job.id for job in jobs} == {job.id for job in await ledger.list_jobs(limit=100)}


async def test_keys_and_scopes(api_url: str, make_key: MakeKey, eventually: Any) -> None:
    key = (await make_key("acme"))["Authorization"].removeprefix("Bearer ")
    reads = (await make_key("acme", Scope.READ))["Authorization"].removeprefix("Bearer ")
    other = (await make_key("other"))["Authorization"].removeprefix("Bearer ")
    async with (
        AsyncClient(base_url=api_url, api_key=key) as client,
        AsyncClient(base_url=api_url, api_key=reads) as reader,
        AsyncClient(base_url=api_url, api_key=other) as stranger,
    ):
        job = await client.submit(IRIS_1, split(SETOSA))
        assert (job.tenant, await reader.get(job)) == ("acme", await client.get(job))
        with pytest.raises(Forbidden, match="scope submit"):
            await reader.submit(IRIS_1, split(SETOSA))
        with pytest.raises(Forbidden):
            await reader.submit_many(IRIS_1, [split(SETOSA)])
        for call in (stranger.get, stranger.result, stranger.cancel):
            with pytest.raises(UnknownJob):
                await call(job)  # type: ignore[operator]
        with pytest.raises(UnknownJob):
            [one async for one in stranger.as_completed([job], timeout=1)]
    for wrong in (None, "nonsense"):
        async with AsyncClient(base_url=api_url, api_key=wrong) as client:
            await eventually("a key is wanted", lambda: _refused(client), 10)


async def _refused(client: AsyncClient) -> bool:
    try:
        await client.list()
    except Unauthenticated:
        return True
    return False


async def test_what_only_the_database_gives(api_url: str) -> None:
    async with AsyncClient(base_url=api_url) as client:
        with pytest.raises(NotOverHttp):
            await client.purge_dead()
        with pytest.raises(NotOverHttp):
            await client.submit_batch(IRIS_1, "x.parquet", by_reference=True)


async def test_what_is_no_pyfunq_api(api_url: str, servers: Any) -> None:
    for url in (servers.mlflow, f"{api_url}/elsewhere"):
        async with AsyncClient(base_url=url) as client:
            with pytest.raises((WrongApi, PyFunQError), match=r"no PyFunQ API|Not Found|is no") as raised:
                await client.get(uuid4())
            assert not raised.value.retryable


async def test_the_environment_says_which_api(api_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFUNQ_API_URL", api_url)
    async with AsyncClient() as client:
        assert isinstance(client, HttpAsyncClient)
        assert await client.list() == []
    monkeypatch.setenv("PYFUNQ_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert not isinstance(AsyncClient(), HttpAsyncClient)
