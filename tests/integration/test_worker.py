"""A worker process's steps, in this process, on real servers and models."""

import asyncio
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel
from redis import Redis
from sklearn.linear_model import LinearRegression

from pyfunq.client import AsyncClient
from pyfunq.errors import InvalidInput, JobFailed, LedgerUnavailable
from pyfunq.ids import new_id
from pyfunq.job import Job, JobStatus, Lane
from pyfunq.ledger import Ledger
from pyfunq.publishing import Publisher
from pyfunq.settings import Settings
from tests.conftest import RegisterModel
from tests.integration.conftest import IRIS, SETOSA, VIRGINICA, Work, split
from worker.page_run import run_page
from worker.process import WorkerProcess
from worker.registry_watch import look, write
from worker.rescue import rescue
from worker.run_batch import run_jobs


@pytest.fixture(scope="session")
def counting_model(register: RegisterModel) -> str:
    """Its one column `n` is an integer; answers 2n."""
    x = pd.DataFrame({"n": [1, 2, 3]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of integer columns
        register("counting", LinearRegression().fit(x, [2.0, 4.0, 6.0]), x)
    return "models:/counting/1"


@pytest.mark.parametrize(
    ("uri", "version"),
    [
        ("models:/iris/1", "1"),
        ("models:/iris/2", "2"),
        ("models:/iris/Production", "1"),
        ("models:/iris/production", "1"),
        ("models:/iris@champion", "2"),
        ("models:/iris@first", "1"),
        ("models:/iris/latest", "2"),
    ],
)
async def test_every_kind_of_uri_is_resolved_and_the_version_recorded(
    client: AsyncClient, work: Work, iris_model: str, uri: str, version: str
) -> None:
    job = await client.submit(uri, split(SETOSA, VIRGINICA))
    await work.all()
    done = await client.get(job)
    assert (done.status, done.model_name, done.model_version) == (JobStatus.SUCCEEDED, "iris", version)
    assert done.run_id
    assert done.experiment_id
    assert await client.result(job) == [0, 2]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("models:/nope/1", "no registered model named 'nope'"),
        ("models:/iris/99", "model 'iris' has no version 99; its versions: 2 .None., 1 .Production."),
        (
            "models:/iris@nobody",
            "model 'iris' has no alias 'nobody'; its aliases: champion .2., first .1.; its versions: 2",
        ),
        (
            "models:/iris/Staging",
            r"model 'iris' has no version in stage Staging; its versions: 2 \(None\), 1 \(Production\)",
        ),
    ],
)
async def test_what_the_registry_lacks_fails_the_job_and_is_named(
    client: AsyncClient, work: Work, iris_model: str, uri: str, says: str
) -> None:
    job = await client.submit(uri, split(SETOSA))
    await work.all()
    with pytest.raises(JobFailed, match=says) as caught:
        await client.result(job)
    assert caught.value.error_code == "model_not_found"


async def test_a_model_id_needs_no_registered_name(
    client: AsyncClient, work: Work, servers: Any, iris_model: str
) -> None:
    import mlflow

    source = mlflow.MlflowClient(servers.mlflow).get_model_version("iris", "1").source
    job = await client.submit(source, split(SETOSA))
    await work.all()
    assert await client.result(job) == [0]


async def test_runs_uris_need_the_operators_word(
    settings: Settings, ledger: Ledger, servers: Any, iris_model: str
) -> None:

    import mlflow

    run = mlflow.MlflowClient(servers.mlflow).get_model_version("iris", "1").run_id
    allowing = settings.model_copy(update={"allowed_models": ("runs:/*",)})
    async with AsyncClient(allowing) as client:
        job = await client.submit(f"runs:/{run}/model", split(SETOSA))
        for policy, status in ((settings, JobStatus.FAILED), (allowing, JobStatus.SUCCEEDED)):
            job = await client.submit(f"runs:/{run}/model", split(SETOSA))
            process = WorkerProcess(policy)
            await asyncio.to_thread(run_page, process, job.id)
            process.close()
            assert (await client.get(job)).status is status


async def test_micro_batched_jobs_have_the_answers_that_they_have_alone(
    client: AsyncClient, work: Work, iris_model: str
) -> None:
    rows = np.random.default_rng(3).uniform(0.1, 7.9, size=(64, 4)).round(2).tolist()
    together = await client.submit_many("models:/iris/1", [split(row) for row in rows])
    await work.all()
    answers = [await client.result(job) for job in together]
    started = {job.started_at for job in [await client.get(j) for j in together]}
    assert len(started) == 1, "they were one micro-batch"
    for row, answer in zip(rows[:8], answers[:8], strict=True):
        alone = await client.submit("models:/iris/1", split(row))
        await work.all()
        assert await client.result(alone) == answer
    assert len({a[0] for a in answers}) > 1


async def test_one_bad_job_fails_alone_with_its_reason(client: AsyncClient, work: Work, moody_model: str) -> None:
    jobs = await client.submit_many(moody_model, [split([x], columns=["x"]) for x in range(64) if x != 15])
    await work.all()
    for x, job in zip((x for x in range(64) if x != 15), jobs, strict=True):
        if x == 13:
            with pytest.raises(JobFailed, match="ValueError: unlucky row") as caught:
                await client.result(job)
            assert caught.value.error_code == "model_raised"
            assert "13" not in str(caught.value).split("unlucky row")[1]
        elif x == 14:
            assert await client.result(job) == [], "alone, whatever the model answers is the answer"
        else:
            assert await client.result(job) == [2 * x]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (split([1.0, 2.0, 3.0], columns=IRIS[:3]), "petal_width"),
        (split([1.0, 2.0, 3.0, 4.0, 5.0], columns=[*IRIS, "extra"]), "extra"),
        (split([1.0, 2.0, 3.0, "wide"]), "petal_width"),
    ],
)
async def test_what_a_signature_refuses_fails_at_the_worker_first_and_then_at_submit(
    client: AsyncClient, settings: Settings, work: Work, iris_model: str, inputs: dict[str, Any], says: str
) -> None:
    good, bad = await client.submit_many("models:/iris/1", [split(SETOSA), inputs])
    await work.all()
    assert await client.result(good) == [0]
    with pytest.raises(JobFailed, match=says) as caught:
        await client.result(bad)
    assert caught.value.error_code == "invalid_input"
    async with AsyncClient(settings) as later:
        with pytest.raises(InvalidInput, match=says):
            await later.submit("models:/iris/1", inputs)
        assert len(await later.list()) == 2, "nothing was written"


@pytest.mark.parametrize("bad", [1.5, None, "one", True])
async def test_an_integer_column_takes_integers_alone(
    client: AsyncClient, settings: Settings, work: Work, counting_model: str, bad: Any
) -> None:
    rows = [[3], [2.0], [bad]]
    jobs = await client.submit_many(counting_model, [split(row, columns=["n"]) for row in rows])
    await work.all()
    assert [round((await client.result(job))[0], 6) for job in jobs[:2]] == [6.0, 4.0]
    with pytest.raises(JobFailed, match=r"column '?n'?") as caught:
        await client.result(jobs[2])
    assert caught.value.error_code == "invalid_input"
    async with AsyncClient(settings) as later:
        with pytest.raises(InvalidInput, match=r"column '?n'?"):
            await later.submit(counting_model, split([bad], columns=["n"]))
        with pytest.raises(InvalidInput, match=r"column '?n'?"):
            await later.submit(counting_model, pd.DataFrame({"n": [1, bad]}))


async def test_when_what_a_model_asks_is_away_its_jobs_wait_and_then_only_those_that_need_it(
    client: AsyncClient, work: Work, ledger: Ledger, database_url: str, moody_model: str
) -> None:
    import asyncpg

    good, needy = await client.submit_many(moody_model, [split([x], columns=["x"]) for x in (1, 15)])
    await work.all()
    assert {(await client.get(job)).status for job in (good, needy)} == {JobStatus.QUEUED}
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE job SET not_before = now()")
    await connection.close()
    for page in await ledger.due_pages():
        await asyncio.to_thread(run_page, work.process, page)
    assert await client.result(good) == [2]
    waiting = await client.get(needy)
    assert (waiting.status, waiting.attempt, waiting.crashes, waiting.failures) == (JobStatus.QUEUED, 2, 0, 0)


async def test_a_job_that_waited_too_long_for_a_dependency_fails_with_its_reason(
    client: AsyncClient, settings: Settings, moody_model: str
) -> None:
    process = WorkerProcess(settings.model_copy(update={"dependency_wait_seconds": 0.0, "longest_pause_seconds": 0.01}))
    job = await client.submit(moody_model, split([15], columns=["x"]))
    for _ in range(2):
        await asyncio.to_thread(run_page, process, job.id)
        await asyncio.sleep(0.02)
    process.close()
    with pytest.raises(JobFailed, match="what the model asks is away: ConnectionError") as caught:
        await client.result(job)
    assert caught.value.error_code == "model_dependency_unavailable"
    assert "features" not in str(caught.value)


async def test_a_models_tag_limits_its_calls_and_is_followed(
    client: AsyncClient, work: Work, process: WorkerProcess, ledger: Ledger, servers: Any, register: RegisterModel
) -> None:
    import mlflow

    x = pd.DataFrame({"x": [0.0, 1.0]})
    register("limited", LinearRegression().fit(x, [0.0, 1.0]), x)
    registry = mlflow.MlflowClient(servers.mlflow)
    uri = "models:/limited/latest"

    async def limit() -> float | None:
        await write(ledger, await asyncio.to_thread(look, process.registry, await ledger.resolutions(), False))
        job = await client.submit(uri, split([3.0], columns=["x"]))
        ((claimed,), _) = await asyncio.to_thread(lambda: process.claimed(process.start_claim(job.id)))
        await asyncio.to_thread(run_jobs, process, [claimed])
        return claimed.timeout_seconds

    await client.submit(uri, split([3.0], columns=["x"]))
    await work.all()
    assert await limit() is None
    registry.set_registered_model_tag("limited", "pyfunq.timeout", "0.1")
    assert await limit() == 0.1
    registry.set_registered_model_tag("limited", "pyfunq.timeout", "soon")
    assert await limit() is None


class Sizes(PythonModel):
    """Answers with the number of rows that it was called with: it is not row-wise."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return [len(model_input)] * len(model_input)


async def test_a_models_tags_bound_the_rows_of_its_calls(
    client: AsyncClient, work: Work, process: WorkerProcess, ledger: Ledger, servers: Any, register: RegisterModel
) -> None:
    import mlflow

    register("sizes", Sizes(), None)
    registry = mlflow.MlflowClient(servers.mlflow)

    async def sizes() -> list[int]:
        await write(ledger, await asyncio.to_thread(look, process.registry, await ledger.resolutions(), False))
        rows = [1, 1, 1, 3, 1]
        jobs = await client.submit_many("models:/sizes/latest", [split(*[[0.0]] * n, columns=["x"]) for n in rows])
        await work.all()
        return [(await client.result(job))[0] for job in jobs]

    assert await sizes() == [7] * 5
    for tag, value, expected in (
        ("pyfunq.max_rows", "2", [2, 2, 1, 3, 1]),
        ("pyfunq.max_rows", "4", [3, 3, 3, 3, 1]),
        ("pyfunq.max_rows", "-3", [7] * 5),
        ("pyfunq.batching", "off", [1, 1, 1, 3, 1]),
        ("pyfunq.batching", "on", [7] * 5),
    ):
        registry.set_registered_model_tag("sizes", tag, value)
        assert await sizes() == expected


async def test_frames_keep_their_index_and_large_ones_become_several_jobs(
    settings: Settings, process: WorkerProcess, ledger: Ledger, iris_model: str
) -> None:

    small = settings.model_copy(update={"chunk_rows": 4})
    df = pd.DataFrame([SETOSA, VIRGINICA] * 5, columns=IRIS, index=list("abcdefghij"))
    async with AsyncClient(small) as client:
        asked = asyncio.create_task(client.predict("models:/iris/1", df, timeout=30))
        while not asked.done():
            await Work(process, ledger).all()
            await asyncio.sleep(0.02)
        answer = asked.result()
    assert answer.tolist() == [0, 2] * 5
    assert answer.index.tolist() == list("abcdefghij")
    assert len(await ledger.list_jobs()) == 3


async def test_confidence_is_recorded_where_it_is_asked_for(
    settings: Settings, client: AsyncClient, ledger: Ledger, database_url: str, iris_model: str
) -> None:

    import asyncpg

    process = WorkerProcess(settings.model_copy(update={"confidence": True}))
    job = await client.submit("models:/iris/1", split(SETOSA, VIRGINICA))
    await asyncio.to_thread(run_page, process, job.id)
    process.close()
    connection = await asyncpg.connect(database_url)
    scores = await connection.fetchval("SELECT confidence_scores FROM model_predictions WHERE job_id = $1", job.id)
    await connection.close()
    assert len(scores) == 2
    assert all(0.5 < score <= 1 for score in scores)


async def test_the_watch_follows_an_alias_and_a_stage(
    client: AsyncClient,
    work: Work,
    process: WorkerProcess,
    ledger: Ledger,
    register: RegisterModel,
    servers: Any,
    eventually: Any,
) -> None:
    import mlflow

    x = pd.DataFrame({"x": [0.0, 1.0, 2.0]})
    register("moving", LinearRegression().fit(x, [0.0, 1.0, 2.0]), x, alias="live", stage="Production")
    uris = ("models:/moving@live", "models:/moving/Production", "models:/moving/latest")

    async def answers() -> list[float]:
        jobs = [await client.submit(uri, split([3.0], columns=["x"])) for uri in uris]
        await work.all()
        return [round((await client.result(job))[0], 6) for job in jobs]

    async def become(wanted: list[float]) -> bool:
        return await answers() == wanted

    async def watch() -> int:

        known = await ledger.resolutions()
        found = await asyncio.to_thread(look, process.registry, known, False)
        await write(ledger, found)
        return len(found.changed)

    assert await answers() == [3.0, 3.0, 3.0]
    assert await watch() == 0
    register("moving", LinearRegression().fit(x, [0.0, 2.0, 4.0]), x)
    assert await watch() == 1, "only `latest` moved"
    await eventually("latest is version 2", lambda: become([3.0, 3.0, 6.0]))
    registry = mlflow.MlflowClient(servers.mlflow)
    registry.set_registered_model_alias("moving", "live", "2")
    with pytest.warns(FutureWarning):
        registry.transition_model_version_stage("moving", "2", "Production", archive_existing_versions=True)
    assert await watch() == 2
    await eventually("all are version 2", lambda: become([6.0, 6.0, 6.0]))
    registry.delete_registered_model_alias("moving", "live")
    assert await watch() == 1
    job = await client.submit(uris[0], split([3.0], columns=["x"]))
    await work.all()
    with pytest.raises(JobFailed, match="has no alias 'live'"):
        await client.result(job)


async def test_with_mlflow_away_loaded_models_go_on_and_others_wait(
    settings: Settings, client: AsyncClient, ledger: Ledger, iris_model: str
) -> None:

    async def run(process: WorkerProcess, uri: str) -> Job:
        job = await client.submit(uri, split(SETOSA))
        await asyncio.to_thread(run_page, process, job.id)
        return await client.get(job)

    seen = WorkerProcess(settings)
    assert (await run(seen, "models:/iris@champion")).status is JobStatus.SUCCEEDED
    seen.close()
    # A restarted worker: nothing in memory, the files on the host, the registry not answering.
    process = WorkerProcess(settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"}))
    assert (await run(process, "models:/iris@champion")).status is JobStatus.SUCCEEDED
    waiting = await run(process, "models:/iris@first")
    process.close()
    assert (waiting.status, waiting.crashes, waiting.failures) == (JobStatus.QUEUED, 0, 0)


async def test_a_process_that_starts_before_postgres_waits_for_it(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    import worker.process

    refusals = iter([LedgerUnavailable(), LedgerUnavailable()])
    real = worker.process.require_current

    async def away_at_first(database_url: str) -> None:
        for refusal in refusals:
            raise refusal
        await real(database_url)

    monkeypatch.setattr(worker.process, "require_current", away_at_first)
    process = await asyncio.to_thread(WorkerProcess, settings)
    assert len(await ledger.live_workers(60)) == 1
    await asyncio.to_thread(process.close)
    assert await ledger.live_workers(60) == []


async def test_rescue_publishes_what_lost_its_message_and_nothing_else(
    settings: Settings,
    client: AsyncClient,
    process: WorkerProcess,
    ledger: Ledger,
    redis_url: str,
    iris_model: str,
    eventually: Callable[..., Any],
) -> None:

    eager = settings.model_copy(update={"publish_grace_seconds": 0.001})
    process.settings = eager
    publisher = Publisher(settings.redis)
    jobs = await client.submit_many("models:/iris/1", [split(SETOSA) for _ in range(3)])
    with Redis.from_url(redis_url) as redis:
        await eventually("the message is sent", lambda: redis.llen("interactive"))
        assert (await asyncio.to_thread(rescue, process, redis, publisher)).published == 0, "the message is there"
        # A worker takes it and is killed: Redis holds it for a consumer that is no more.
        message = orjson.loads(redis.rpop("interactive"))
        tag = message["properties"]["delivery_tag"]
        redis.hset("unacked", tag, orjson.dumps([message, "", "interactive"]))
        redis.zadd("unacked_index", {tag: time.time()})
        assert (await asyncio.to_thread(rescue, process, redis, publisher)).published == 3
        assert redis.llen("interactive") == 1
        assert (await asyncio.to_thread(rescue, process, redis, publisher)).published == 0, "no storm"
    publisher.close()
    await Work(process, ledger).all()
    assert [await client.result(job) for job in jobs] == [[0]] * 3


async def test_a_defect_of_ours_fails_jobs_instead_of_leaving_them_running(
    client: AsyncClient,
    process: WorkerProcess,
    iris_model: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:

    import worker.run_batch

    def broken(*_: Any) -> Any:
        raise RuntimeError(" ".join(["secret", "value"]))

    monkeypatch.setattr(worker.run_batch, "read_inputs", broken)
    job = await client.submit("models:/iris/1", split(SETOSA))
    await asyncio.to_thread(run_page, process, job.id)
    now = await client.get(job)
    assert now.error is not None
    assert (now.status, now.error.code, now.error.message) == (
        *(JobStatus.FAILED, "internal", "internal error: RuntimeError"),
    )
    assert "failed with RuntimeError" in caplog.text
    assert "secret value" not in caplog.text


async def test_jobs_of_one_claim_end_even_if_some_were_cancelled_meanwhile(
    client: AsyncClient, process: WorkerProcess, ledger: Ledger, iris_model: str
) -> None:

    jobs = await client.submit_many("models:/iris/1", [split(SETOSA), split(VIRGINICA)])
    (page,) = await ledger.pages_without_message({Lane.INTERACTIVE: new_id()})
    claimed, _ = await asyncio.to_thread(lambda: process.claimed(process.start_claim(page)))
    await client.cancel(jobs[0])
    assert sorted(await asyncio.to_thread(run_jobs, process, claimed)) == ["not kept", "succeeded"]
    assert (await client.get(jobs[0])).status is JobStatus.CANCELLED
    assert await client.result(jobs[1]) == [2]
