"""What submits promise beyond acceptance: idempotency keys, a bound on what waits, limits and retries."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel
from redis import Redis

from pyfunq.client import AsyncClient, Client
from pyfunq.errors import BacklogFull, IdempotencyConflict, InvalidInput, JobFailed
from pyfunq.ids import new_id
from pyfunq.job import JobStatus, Lane
from pyfunq.lanes import queues_of
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.conftest import RegisterModel
from tests.integration.conftest import SETOSA, VIRGINICA, Work, hear_ctrl_c, split
from tests.programs import until
from worker.page_run import run_page
from worker.process import WorkerProcess

MODEL = "models:/iris/1"


class FailsTwice(PythonModel):
    """Counts its calls in the file that `params` name."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        path = Path(str(model_input["path"].iloc[0]))
        calls = len(path.read_text()) if path.exists() else 0
        path.write_text("x" * (calls + 1))
        if calls < 2:
            raise ValueError("not yet")
        return [calls]


async def test_a_message_is_on_its_way_before_its_caller_goes_on(client: AsyncClient, settings: Settings) -> None:
    """However much the callers have to do then: here one keeps the event loop for itself."""
    await client.submit(MODEL, split(SETOSA))
    await client._submitter.close()  # connected to Redis, and written
    with Redis.from_url(settings.redis) as redis:

        def waiting() -> int:
            return sum(int(redis.llen(queue)) for queue in queues_of(Lane.INTERACTIVE))

        assert waiting() == 1
        await client.submit(MODEL, split(SETOSA))
        until("it arrives without another turn of the loop", lambda: waiting() == 2, 5)


async def test_a_hundred_concurrent_submits_with_one_key_are_one_job(settings: Settings, ledger: Ledger) -> None:
    async with AsyncClient(settings) as one, AsyncClient(settings) as two, AsyncClient(settings) as three:
        clients = [one, two, three]
        submits = [clients[n % 3].submit(MODEL, split(SETOSA), idempotency_key="order-7") for n in range(100)]
        others = [clients[n % 3].submit(MODEL, split(VIRGINICA)) for n in range(20)]
        jobs = await asyncio.gather(*submits, *others)
    assert len({job.id for job in jobs[:100]}) == 1
    assert len({job.id for job in jobs}) == 21
    assert len(await ledger.list_jobs(limit=1000)) == 21


def test_of_many_processes_one_key_makes_one_job(settings: Settings) -> None:
    program = (
        "import sys; from pyfunq import Client\n"
        "with Client(database_url=sys.argv[1], redis_url=sys.argv[2]) as client:\n"
        "    print(client.submit(sys.argv[3], {'instances': [[1.0]]}, idempotency_key='k').id)"
    )
    arguments = [settings.database, settings.redis, "models:/any/1"]
    running = [
        subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1
    with Client(settings) as client:
        assert len(client.list()) == 1


async def test_the_same_key_returns_the_job_as_it_is_now_and_refuses_another_request(
    client: AsyncClient, work: Work, iris_model: str
) -> None:
    job = await client.submit(MODEL, split(SETOSA), idempotency_key="a")
    await work.all()
    again = await client.submit(MODEL, split(SETOSA), idempotency_key="a", expires_in=60)
    assert (again.id, again.status) == (job.id, JobStatus.SUCCEEDED)
    assert await client.result(again) == [0]
    for other in (
        client.submit(MODEL, split(VIRGINICA), idempotency_key="a"),
        client.submit("models:/iris/2", split(SETOSA), idempotency_key="a"),
        client.submit(MODEL, split(SETOSA), idempotency_key="a", lane="bulk"),
    ):
        with pytest.raises(IdempotencyConflict):
            await other
    assert len(await client.list()) == 1
    assert (await client.submit(MODEL, split(SETOSA), idempotency_key="b")).id != job.id


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", 7, b"a"])
async def test_a_key_that_cannot_be_one_is_refused(client: AsyncClient, key: Any) -> None:
    with pytest.raises(InvalidInput, match="idempotency key"):
        await client.submit(MODEL, split(SETOSA), idempotency_key=key)


async def test_a_key_is_free_again_after_its_time_and_after_its_job_was_purged(
    settings: Settings, ledger: Ledger, database_url: str
) -> None:
    async with AsyncClient(settings) as client:
        first = await client.submit(MODEL, split(SETOSA), idempotency_key="a")
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE idempotency SET created_at = now() - interval '25 hours'")
        second = await client.submit(MODEL, split(VIRGINICA), idempotency_key="a")
        assert second.id != first.id
        await connection.execute("UPDATE job SET status = 'dead', finished_at = now() WHERE id = $1", second.id)
        assert await client.purge_dead() == 1
        assert await connection.fetchval("SELECT count(*) FROM idempotency") == 0
        third = await client.submit(MODEL, split(SETOSA), idempotency_key="a")
        assert third.id not in (first.id, second.id)
        await ledger.drop_old_keys(older_than_seconds=3600)
        assert await connection.fetchval("SELECT count(*) FROM idempotency") == 1
        await ledger.drop_old_keys(older_than_seconds=0)
        assert await connection.fetchval("SELECT count(*) FROM idempotency") == 0
        await connection.close()


async def waiting_for_locks(connection: asyncpg.Connection, sessions: int) -> bool:
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return await connection.fetchval(count) >= sessions


async def test_a_key_that_is_taken_again_is_not_forgotten(
    ledger: Ledger, client: AsyncClient, database_url: str
) -> None:
    """A submit holds an old key and wants the next; rescue forgets old keys at the same time."""
    connection = await asyncpg.connect(database_url)
    for key in "ab":
        await client.submit(MODEL, split(SETOSA), idempotency_key=key)
    await connection.execute("UPDATE idempotency SET created_at = now() - interval '2 days'")
    async with connection.transaction():
        await connection.execute("UPDATE idempotency SET created_at = now() WHERE key = 'a'")
        async with asyncio.timeout(5):
            await ledger.drop_old_keys(older_than_seconds=86_400)
    assert [row["key"] for row in await connection.fetch("SELECT key FROM idempotency")] == ["a"]
    await connection.close()


async def test_a_dead_job_that_is_being_put_back_is_not_purged(
    ledger: Ledger, client: AsyncClient, database_url: str
) -> None:
    job = await client.submit(MODEL, split(SETOSA))
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE job SET status = 'dead', finished_at = now()")
    async with connection.transaction():
        await connection.execute("UPDATE job SET status = 'queued', finished_at = NULL")
        async with asyncio.timeout(5):
            assert await ledger.purge_dead(older_than_seconds=0) == 0
    assert (await client.get(job)).status is JobStatus.QUEUED
    await connection.close()


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_commit_that_outlives_its_connection_is_waited_for(
    settings: Settings, ledger: Ledger, database_url: str, eventually: Callable[..., Any], key: str | None
) -> None:
    connection, watch = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    async with AsyncClient(settings) as client:
        async with connection.transaction():
            await connection.execute("LOCK TABLE job IN SHARE MODE")
            submit = asyncio.create_task(client.submit(MODEL, split(SETOSA), idempotency_key=key))
            await eventually("the commit is under way", lambda: waiting_for_locks(watch, 1))
            for holder in client._ledger._pool._holders:
                if holder._in_use:
                    holder._con.terminate()
            await eventually("it is submitted again", lambda: waiting_for_locks(watch, 2))
        job = await submit
        assert [found.id for found in await ledger.list_jobs()] == [job.id]
        if key is not None:
            assert (await client.submit(MODEL, split(SETOSA), idempotency_key=key)).id == job.id
    await connection.close()
    await watch.close()


async def test_a_full_lane_refuses_submits_and_a_batch_waits_for_room(
    settings: Settings, process: WorkerProcess, ledger: Ledger, iris_model: str, eventually: Callable[..., Any]
) -> None:
    frame = pd.DataFrame([SETOSA] * 12, columns=["sepal_length", "sepal_width", "petal_length", "petal_width"])
    async with AsyncClient(settings.model_copy(update={"max_queued_jobs": 5})) as client:
        await client.submit_many(MODEL, [split(SETOSA)] * 5)
        with pytest.raises(BacklogFull) as caught:
            await client.submit(MODEL, split(SETOSA))
        assert caught.value.retry_after_seconds >= 1
        with pytest.raises(InvalidInput, match="PYFUNQ_MAX_QUEUED_JOBS"):
            await client.submit_many(MODEL, [split(SETOSA)] * 6)
        assert len(await client.list()) == 5, "nothing of what was refused is there"
        seen: list[int] = []
        batch = asyncio.create_task(client.submit_batch(MODEL, frame, chunk_rows=1, on_progress=seen.append))
        await eventually("the bulk lane is full", lambda: max(seen, default=0) == 5)
        while not batch.done():
            depth = await ledger.count_queued("bulk", at_most=100)  # type: ignore[arg-type]
            assert depth <= 5 + 8, "no further than what was under way"
            await Work(process, ledger).all()
            await asyncio.sleep(0.05)
        done = await batch
    assert (done.jobs, done.rows) == (12, 12)


async def test_ctrl_c_stops_a_batch_that_waits_for_room_and_keeps_what_is_there(
    settings: Settings, database_url: str, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    pd.DataFrame({"x": range(9)}).to_csv(tmp_path / "rows.csv", index=False)
    program = (
        "import sys; from pyfunq import Client\n"
        "with Client(database_url=sys.argv[1], redis_url=sys.argv[2], max_queued_jobs=3) as client:\n"
        "    client.submit_batch('models:/any/1', sys.argv[3], chunk_rows=1)"
    )
    arguments = [settings.database, settings.redis, str(tmp_path / "rows.csv")]
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, stderr=asyncio.subprocess.PIPE, preexec_fn=hear_ctrl_c
    )
    async with AsyncClient(settings) as client:
        await eventually("the lane is full", lambda: has_jobs(client, 3))
        connection, watch = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE batch IN SHARE MODE")
            running.send_signal(signal.SIGINT)
            await eventually("the batch is being ended", lambda: waiting_for_locks(watch, 1))
            await asyncio.sleep(0.5)  # during which the client must not close
        await connection.close()
        await watch.close()
        async with asyncio.timeout(30):
            _, said = await running.communicate()
        assert b"LedgerUnavailable" not in said
        jobs = await client.list()
        assert [job.status for job in jobs] == [JobStatus.QUEUED] * 3
        batch = await client.get_batch(jobs[0].batch_id or "")
        assert batch.is_stopped
        assert not batch.is_final
        done = await client.submit_batch("models:/any/1", tmp_path / "rows.csv", resume=batch)
        assert (done.jobs, done.rows, done.error) == (9, 9, None)


async def has_jobs(client: AsyncClient, count: int) -> bool:
    return len(await client.list()) == count


async def test_retries_are_made_as_often_as_was_asked(
    client: AsyncClient,
    process: WorkerProcess,
    ledger: Ledger,
    database_url: str,
    register: RegisterModel,
    tmp_path: Path,
) -> None:
    register("fails_twice", FailsTwice(), None)
    connection = await asyncpg.connect(database_url)

    async def end(retries: int, name: str) -> Any:
        inputs = {"dataframe_split": {"columns": ["path"], "data": [[str(tmp_path / name)]]}}
        job = await client.submit("models:/fails_twice/1", inputs, retries=retries)
        await asyncio.to_thread(run_page, process, job.id)
        while not (now := await client.get(job)).is_final:
            await connection.execute("UPDATE job SET not_before = now() WHERE id = $1", job.id)
            for page in await ledger.repage(await ledger.due_pages(), [new_id()]):
                await asyncio.to_thread(run_page, process, page.id)
        return now

    done = await end(2, "a")
    assert (done.status, done.failures, done.crashes, done.attempt) == (JobStatus.SUCCEEDED, 2, 0, 3)
    failed = await end(1, "b")
    assert (failed.status, failed.failures) == (JobStatus.FAILED, 1)
    with pytest.raises(JobFailed, match="not yet"):
        await client.result(failed)
    assert (await end(0, "c")).failures == 0
    await connection.close()


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"timeout": -1}, {"timeout": 1e9}, {"retries": -1}, {"retries": 21}])
async def test_limits_that_cannot_be_are_refused(client: AsyncClient, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        await client.submit(MODEL, split(SETOSA), **wrong)
