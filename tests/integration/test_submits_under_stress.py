"""Submits where something goes wrong beside them: broken commits, stopped producers, purges, a lane that fills."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pandas as pd
import pytest

from pyfunq.client import AsyncClient
from pyfunq.errors import BacklogFull, InvalidInput, LedgerUnavailable
from pyfunq.job import STOPPED, JobStatus, Lane
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.integration.conftest import SETOSA, VIRGINICA, Work, hear_ctrl_c, split

MODEL = "models:/iris/1"


async def break_the_commit_of(submit: Any, database_url: str, eventually: Callable[..., Any]) -> Any:
    """Ends the connection of a submit that has taken its key and not yet written its job."""
    # Within a transaction, pg_stat_activity would stay what it was at first.
    holder, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("LOCK TABLE job IN SHARE MODE")
        task = asyncio.create_task(submit)

        async def ended() -> Any:
            return await watcher.fetchval(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO job%'"
            )

        await eventually("the submit waits for the table", ended)
    await holder.close()
    await watcher.close()
    return await task


@pytest.mark.parametrize("rows", [1, 130_000])  # by a statement, and by COPY
async def test_a_connection_that_breaks_between_a_job_and_its_input_leaves_neither(
    client: AsyncClient, database_url: str, eventually: Callable[..., Any], rows: int
) -> None:
    holder, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'job_input'::regclass AND NOT granted"
    async with holder.transaction():
        await holder.execute("LOCK TABLE job_input IN SHARE MODE")
        submit = asyncio.create_task(client.submit(MODEL, split(*[SETOSA] * rows)))
        await eventually("the submit waits for the inputs' table", lambda: watcher.fetchval(end))
        await eventually("it is tried again", lambda: watcher.fetchval(end))
        assert await watcher.fetchval("SELECT count(*) FROM job") == 0
    job = await submit
    kept = await watcher.fetch("SELECT job.id, job_input.id, job.rows FROM job FULL JOIN job_input USING (id)")
    assert [tuple(row) for row in kept] == [(job.id, job.id, rows)]
    await holder.close()
    await watcher.close()


async def test_a_broken_commit_is_not_taken_for_the_job_that_an_expired_key_had(
    client: AsyncClient, database_url: str, eventually: Callable[..., Any]
) -> None:
    """It is made again, and the key stands for its job from then on."""
    first = await client.submit(MODEL, split(SETOSA), idempotency_key="a")
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE idempotency SET created_at = now() - interval '25 hours'")
    await connection.close()
    submit = client.submit(MODEL, split(VIRGINICA), idempotency_key="a")
    second = await break_the_commit_of(submit, database_url, eventually)
    assert second.id != first.id
    assert {job.id for job in await client.list()} == {first.id, second.id}
    assert (await client.submit(MODEL, split(VIRGINICA), idempotency_key="a")).id == second.id


async def test_a_request_stays_the_same_when_its_models_signature_becomes_known(
    client: AsyncClient, work: Work, iris_model: str
) -> None:
    whole = pd.DataFrame([[5, 3, 1, 0]], columns=["sepal_length", "sepal_width", "petal_length", "petal_width"])
    columns = {"inputs": {name: [1.5] for name in whole.columns}}
    jobs = [await client.submit(MODEL, x, idempotency_key=str(n)) for n, x in enumerate((whole, columns))]
    await work.all()
    assert [(await client.get(job)).status for job in jobs] == [JobStatus.SUCCEEDED] * 2
    client._signatures._known.clear()
    assert (await client._model(MODEL))[1] is not None
    again = [await client.submit(MODEL, x, idempotency_key=str(n)) for n, x in enumerate((whole, columns))]
    assert [job.id for job in again] == [job.id for job in jobs]


async def test_a_purge_and_a_keyed_flush_do_not_wait_for_each_other(
    client: AsyncClient, ledger: Ledger, database_url: str, eventually: Callable[..., Any]
) -> None:
    for key in ("z", "a"):
        await client.submit(MODEL, split(SETOSA), idempotency_key=key)
    holder, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    await holder.execute("UPDATE job SET status = 'dead', finished_at = now()")

    async def waiting(number: int) -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(await watcher.fetchval(query) == number)

    async with holder.transaction():
        await holder.execute("SELECT FROM idempotency WHERE key = 'z' FOR UPDATE")
        purge = asyncio.create_task(ledger.purge_dead(older_than_seconds=0))
        await eventually("the purge waits", lambda: waiting(1))
        submits = [asyncio.create_task(client.submit(MODEL, split(SETOSA), idempotency_key=key)) for key in "az"]
        await eventually("the submits wait", lambda: waiting(2))
    await asyncio.gather(purge, *submits)
    await holder.close()
    await watcher.close()


async def test_a_producer_that_stopped_with_a_key_in_hand_holds_nobody_up(
    client: AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    from pyfunq import ledger as module

    assert int(module._SERVER_SETTINGS["idle_in_transaction_session_timeout"]) <= 10_000
    monkeypatch.setitem(module._SERVER_SETTINGS, "idle_in_transaction_session_timeout", "500")
    async with Ledger.open(settings.database) as stopped, stopped._pool.acquire() as connection:
        await connection.execute("BEGIN")
        await connection.execute("INSERT INTO idempotency VALUES ('k', '', gen_random_uuid())")
        submits = (client.submit(MODEL, split(SETOSA), idempotency_key=key) for key in ("k", None))
        jobs = await asyncio.wait_for(asyncio.gather(*submits), timeout=10)
        assert len({job.id for job in jobs}) == 2
        with pytest.raises(LedgerUnavailable), module.ledger_errors():
            await connection.execute("COMMIT")


@pytest.fixture
def bound_of_five(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_queued_jobs": 5})


async def test_a_repeated_submit_finds_its_job_though_the_lane_is_full(bound_of_five: Settings) -> None:
    async with AsyncClient(bound_of_five) as client:
        job = await client.submit(MODEL, split(SETOSA), idempotency_key="a")
        await client.submit_many(MODEL, [split(SETOSA)] * 4)
        assert (await client.submit(MODEL, split(SETOSA), idempotency_key="a")).id == job.id
        with pytest.raises(BacklogFull):
            await client.submit(MODEL, split(SETOSA), idempotency_key="b")


async def test_nobody_is_refused_by_an_old_count(
    bound_of_five: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has room is not held up by one that is a minute old; who is refused gets a new one."""
    monkeypatch.setattr("pyfunq.admission._FRESH_SECONDS", 60.0)
    async with AsyncClient(bound_of_five) as client:
        jobs = await client.submit_many(MODEL, [split(SETOSA)] * 5)
        with pytest.raises(BacklogFull):
            await client.submit(MODEL, split(SETOSA))
        await ledger.cancel([job.id for job in jobs])
        begun = time.monotonic()
        while True:
            try:
                await client.submit(MODEL, split(SETOSA))
                break
            except BacklogFull:
                await asyncio.sleep(0.01)
        assert time.monotonic() - begun < 30


async def test_more_jobs_than_a_lane_holds_are_refused_before_they_are_read(bound_of_five: Settings) -> None:
    read: list[int] = []

    def inputs() -> Iterator[Any]:
        while len(read) < 1000:
            read.append(len(read))
            yield split(SETOSA)

    async with AsyncClient(bound_of_five) as client:
        with pytest.raises(InvalidInput, match="PYFUNQ_MAX_QUEUED_JOBS"):
            await client.submit_many(MODEL, inputs())
    assert len(read) <= 6


async def test_ctrl_c_ends_a_batch_that_waits_for_room(
    bound_of_five: Settings, ledger: Ledger, database_url: str, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    pd.DataFrame({"x": range(10)}).to_parquet(tmp_path / "x.parquet")
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from producer.cli import main; main()"),
        *("batch", "submit", "models:/any/1", str(tmp_path / "x.parquet"), "--chunk-rows", "1"),
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYFUNQ_DATABASE_URL": bound_of_five.database,
            "PYFUNQ_REDIS_URL": bound_of_five.redis,
            "PYFUNQ_MAX_QUEUED_JOBS": "5",
        },
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=hear_ctrl_c,
    )

    async def full() -> bool:
        return await ledger.count_queued(Lane.BULK, at_most=10) >= 5

    await eventually("the lane is full", full, 60)
    holder = await asyncpg.connect(database_url)
    async with holder.transaction():
        # What the program has to write before it ends takes a while.
        await holder.execute("SELECT FROM batch FOR UPDATE")
        program.send_signal(signal.SIGINT)
        late = time.monotonic() + 1
        await eventually("a second has passed", lambda: time.monotonic() > late)
    await holder.close()
    _, said = await asyncio.wait_for(program.communicate(), timeout=40)
    assert (program.returncode, b"Traceback" in said) == (130, False), said.decode()
    jobs = await ledger.list_jobs()
    assert {job.status for job in jobs} == {JobStatus.QUEUED}
    batch = await ledger.batch(jobs[0].batch_id)  # type: ignore[arg-type]
    assert batch.error is not None
    assert batch.error.code == STOPPED
    assert f"pyfunq batch resume {batch.id}".encode() in said


async def test_a_cancelled_job_can_still_be_terminated(client: AsyncClient, ledger: Ledger) -> None:
    from tests.integration.test_ledger import CAPS, living_worker

    job = await client.submit(MODEL, split(SETOSA))
    await ledger.claim(job.id, await living_worker(ledger), **CAPS)
    cancelled = await client.cancel(job)
    assert await ledger.withdrawn([job.id]) == set()
    again = await client.cancel(job, terminate=True)
    assert await ledger.withdrawn([job.id]) == {job.id}
    assert again.finished_at == cancelled.finished_at
