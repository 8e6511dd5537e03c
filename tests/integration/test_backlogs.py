"""Backlogs on real servers: by reference and by value, interrupted and resumed, read again in order."""

import asyncio
import os
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
import orjson
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel

from pyfunq.client import AsyncClient, Client
from pyfunq.entries import NewJob
from pyfunq.errors import (
    InputNotAllowed,
    InvalidInput,
    JobFailed,
    LedgerUnavailable,
    SubmissionStopped,
    WaitTimeout,
)
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput
from pyfunq.job import Batch, JobStatus, Lane
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from pyfunq.submitting import Submitter
from tests.conftest import RegisterModel
from tests.integration.conftest import IRIS, Work
from worker.process import WorkerProcess

MODEL = "models:/iris/1"
ANY = "models:/any/1"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "in").mkdir()
    return settings.model_copy(update={"input_roots": (str(tmp_path / "in"),)})


@pytest.fixture
def rows(tmp_path: Path, settings: Settings) -> Path:
    """A thousand rows of iris' columns in groups of 90."""
    values = np.random.default_rng(0).uniform(0.1, 8, (1000, 4))
    path = tmp_path / "in" / "rows.parquet"
    pd.DataFrame(values, columns=IRIS).to_parquet(path, row_group_size=90)
    return path


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(settings) as opened:
        yield opened


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(database_url)
    yield opened
    await opened.close()


async def predictions(client: AsyncClient, batch: Batch) -> pd.DataFrame:
    return pd.concat([frame async for frame in client.batch_frames(batch)], ignore_index=True)


async def indexes(connection: asyncpg.Connection, batch: Any) -> list[int]:
    found = await connection.fetch("SELECT batch_index FROM job WHERE batch_id = $1 ORDER BY 1", batch)
    return [row["batch_index"] for row in found]


@pytest.mark.parametrize("chunk_rows", [40, 200])
async def test_by_reference_gives_what_by_value_gives(
    client: AsyncClient, work: Work, connection: asyncpg.Connection, rows: Path, iris_model: str, chunk_rows: int
) -> None:
    by_value = await client.submit_batch(MODEL, rows, chunk_rows=chunk_rows)
    by_reference = await client.submit_batch(MODEL, rows, chunk_rows=chunk_rows, by_reference=True)
    await work.all()
    for batch in (by_value, by_reference):
        done = await client.wait_batch(batch, 10)
        assert (done.rows, done.source_rows, done.counts) == (1000, 1000, {JobStatus.SUCCEEDED: done.jobs})
    one, other = await predictions(client, by_value), await predictions(client, by_reference)
    pd.testing.assert_frame_equal(one, other)
    assert len(one) == 1000
    assert one["prediction"].nunique() > 1
    kept = await connection.fetch(
        "SELECT result_format, octet_length(input) AS bytes FROM job JOIN job_input USING (id) WHERE batch_id = $1",
        by_reference.id,
    )
    assert {row["result_format"] for row in kept} == {"arrow"}
    assert max(row["bytes"] for row in kept) < 400
    inputs = await connection.fetch("SELECT inputs, prediction FROM model_predictions")
    assert len(inputs) == by_value.jobs + by_reference.jobs
    assert {tuple(row) for row in inputs} == {(None, None)}


async def test_a_folder_goes_by_the_names_of_its_files(
    client: AsyncClient, work: Work, settings: Settings, rows: Path, iris_model: str
) -> None:
    folder = rows.parent / "folder"
    folder.mkdir()
    frame = pd.read_parquet(rows)
    for name, part in {"b": frame[300:], "a": frame[:300]}.items():
        part.assign(more="not the model's").to_parquet(folder / f"{name}.parquet", row_group_size=70)
    one = await client.submit_batch(MODEL, folder, chunk_rows=100, by_reference=True)
    other = await client.submit_batch(MODEL, frame)
    await work.all()
    async with AsyncClient(settings) as another:  # which knows the signature now: by value every column is the model's
        with pytest.raises(InvalidInput, match="more"):
            await another.submit_batch(MODEL, folder / "a.parquet")
    pd.testing.assert_frame_equal(await predictions(client, one), await predictions(client, other))


async def test_the_worker_has_the_last_word_on_roots_and_changes(
    settings: Settings, ledger: Ledger, rows: Path, iris_model: str
) -> None:
    everywhere = settings.model_copy(update={"input_roots": (str(rows.parent.parent),)})
    elsewhere = rows.parent.parent / "elsewhere.parquet"
    shutil.copyfile(rows, elsewhere)
    changed = rows.with_name("changed.parquet")
    shutil.copyfile(rows, changed)
    async with AsyncClient(everywhere) as client:
        with pytest.raises(InputNotAllowed):
            await client.submit_batch(MODEL, "/etc/passwd", by_reference=True)
        batches = [await client.submit_batch(MODEL, f, by_reference=True) for f in (elsewhere, changed, rows)]
        pd.DataFrame({"x": [1]}).to_parquet(changed)
        process = await asyncio.to_thread(WorkerProcess, settings)
        try:
            await Work(process, ledger).all()
        finally:
            await asyncio.to_thread(process.close)
        codes = []
        for batch in batches:
            jobs = await client.list(batch=batch)
            codes.append({job.error and job.error.code for job in jobs})
        assert codes == [{"input_not_allowed"}, {"input_changed"}, {None}]
        with pytest.raises(JobFailed, match=r"changed\.parquet was changed after it was submitted"):
            await predictions(client, batches[1])


async def test_a_file_that_cannot_be_read_now_lets_its_jobs_wait(
    client: AsyncClient, work: Work, rows: Path, iris_model: str
) -> None:
    batch = await client.submit_batch(MODEL, rows, by_reference=True)
    rows.parent.rename(rows.parent.parent / "unmounted")
    await work.all()
    (job,) = await client.list(batch=batch)
    assert (job.status, job.crashes, job.failures) == (JobStatus.QUEUED, 0, 0)


class Cut(PythonModel):
    """Says how many rows a call has."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return np.full(len(model_input), len(model_input))


async def test_small_jobs_by_reference_share_a_call(
    client: AsyncClient, work: Work, rows: Path, register: RegisterModel
) -> None:
    register("cut", Cut(), None)
    batch = await client.submit_batch("models:/cut/1", rows, chunk_rows=90, by_reference=True)
    await work.all()
    assert set((await predictions(client, batch))["prediction"]) == {1000}


async def test_pages_are_shared_while_much_is_left(
    client: AsyncClient, connection: asyncpg.Connection, rows: Path
) -> None:
    batch = await client.submit_batch(ANY, rows, chunk_rows=2, by_reference=True)
    found = await connection.fetch(
        "SELECT count(*) FROM job WHERE batch_id = $1 GROUP BY page_id ORDER BY min(batch_index)", batch.id
    )
    sizes = [row["count"] for row in found]
    assert (max(sizes), sum(sizes)) == (7, 500)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-60:] == [1] * 60


# Interrupted and resumed.


class Lost(Exception):
    """Stands for what no program expects."""


@pytest.fixture(params=["by value", "by reference", "csv"])
def source(request: pytest.FixtureRequest, rows: Path) -> tuple[Path, bool]:
    if request.param == "csv":
        path = rows.with_suffix(".csv")
        pd.read_parquet(rows).to_csv(path, index=False)
        return path, False
    return rows, request.param == "by reference"


@pytest.mark.parametrize("error", [LedgerUnavailable, Lost])
async def test_what_stopped_half_way_goes_on_without_doubling_a_chunk(
    client: AsyncClient,
    work: Work,
    connection: asyncpg.Connection,
    source: tuple[Path, bool],
    iris_model: str,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
    error: type[Exception],
) -> None:
    path, by_reference = source
    monkeypatch.setattr("pyfunq.feed._REFERENCES_AT_ONCE", 3)
    submit = Submitter.submit

    async def failing(self: Submitter, jobs: Any) -> Any:
        if any(job.batch_index == 9 for job in jobs):
            await eventually("chunks before it are there", lambda: indexes(connection, opened[0]))
            raise error
        return await submit(self, jobs)

    opened: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(Submitter, "submit", failing)
        with pytest.raises(error) as caught:
            await client.submit_batch(MODEL, path, chunk_rows=30, by_reference=by_reference, on_open=opened.append)
    assert any("resume" in note for note in caught.value.__notes__)
    before = await indexes(connection, opened[0])
    assert 0 < len(before) < 34
    stopped = await client.get_batch(opened[0])
    assert stopped.is_stopped
    assert not stopped.is_final
    assert stopped.source_rows == 1000
    await work.all()
    with pytest.raises(SubmissionStopped, match=r"stopped at .* of 1,000 rows; resume with `pyfunq batch resume"):
        await client.wait_batch(stopped, 5)
    with pytest.raises(SubmissionStopped):
        await predictions(client, stopped)
    seen: list[int] = []
    await client.submit_batch(MODEL, path, resume=str(opened[0]), on_progress=seen.append)
    assert max(seen) == 1000
    await work.all()
    done = await client.wait_batch(opened[0], 5)
    found = await indexes(connection, opened[0])
    assert found == list(range(len(found)))
    assert (done.rows, done.error) == (1000, None)
    whole = await client.submit_batch(MODEL, pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path))
    await work.all()
    pd.testing.assert_frame_equal(await predictions(client, done), await predictions(client, whole))
    assert (await client.submit_batch(MODEL, path, resume=done)).jobs == done.jobs, "nothing is missing"


async def stopped_batch(client: AsyncClient, connection: asyncpg.Connection, path: Path, **options: Any) -> Batch:
    batch = await client.submit_batch(ANY, path, chunk_rows=100, **options)
    await connection.execute("DELETE FROM job WHERE batch_id = $1 AND batch_index IN (3, 4, 9)", batch.id)
    await connection.execute(
        "UPDATE batch SET submitted_at = NULL, error_code = 'submission_stopped', error_message = 'x' WHERE id = $1",
        batch.id,
    )
    return await client.get_batch(batch)


@pytest.mark.parametrize("by_reference", [False, True])
async def test_another_file_is_not_taken_for_the_batchs(
    client: AsyncClient, connection: asyncpg.Connection, rows: Path, by_reference: bool
) -> None:
    batch = await stopped_batch(client, connection, rows, by_reference=by_reference)
    stat = os.stat(rows)
    os.utime(rows, ns=(stat.st_mtime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(InvalidInput, match="is not the file that the batch is from"):
        await client.submit_batch(ANY, rows, resume=batch)
    os.utime(rows, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    for wrong in ({"chunk_rows": 99}, {"model": "models:/other/1"}, {"params": {"t": 1}}):
        with pytest.raises(InvalidInput, match=r"rows a job|is for models:/any/1|other params"):
            await client.submit_batch(**{"model": ANY, "source": rows, "resume": batch, **wrong})
    with pytest.raises(InvalidInput, match="the file that it is from"):
        await client.submit_batch(ANY, pd.read_parquet(rows), resume=batch)
    assert len(await indexes(connection, batch.id)) == batch.jobs
    done = await client.submit_batch(ANY, rows, resume=batch)
    assert (done.rows, done.jobs) == (1000, batch.jobs + 3)


async def test_chunks_that_would_be_cut_otherwise_are_not_mixed(
    client: AsyncClient, connection: asyncpg.Connection, rows: Path
) -> None:
    batch = await stopped_batch(client, connection, rows)
    await connection.execute("UPDATE job SET rows = 50 WHERE batch_id = $1 AND batch_index = 5", batch.id)
    with pytest.raises(InvalidInput, match=r"chunk 5 .* has 50 rows and would now have 100"):
        await client.submit_batch(ANY, rows, resume=batch)
    assert (await client.get_batch(batch)).is_stopped


async def test_a_commit_that_is_still_under_way_is_not_doubled(
    client: AsyncClient,
    ledger: Ledger,
    connection: asyncpg.Connection,
    database_url: str,
    rows: Path,
    eventually: Callable[..., Any],
) -> None:
    """A producer was killed while Postgres had its commit; another resumes."""
    batch = await stopped_batch(client, connection, rows)
    watch = await asyncpg.connect(database_url)
    async with connection.transaction():
        await connection.execute(
            """INSERT INTO job (id, page_id, batch_id, batch_index, rows, max_attempts, queue, model_uri, input_format,
                                input_bytes)
               SELECT $2, $2, batch_id, 3, rows, max_attempts, queue, model_uri, input_format, input_bytes
               FROM job WHERE batch_id = $1 AND batch_index = 2""",
            batch.id,
            new_id(),
        )
        resumed = asyncio.create_task(client.submit_batch(ANY, rows, resume=batch))
        locked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

        async def waits() -> bool:
            return await watch.fetchval(locked) > 0

        await eventually("the other commit waits for this one", waits)
    done = await resumed
    assert await indexes(watch, batch.id) == list(range(10))
    assert done.rows == 1000
    await watch.close()


async def test_two_that_resume_at_once_submit_each_chunk_once(
    client: AsyncClient, settings: Settings, connection: asyncpg.Connection, rows: Path
) -> None:
    batch = await stopped_batch(client, connection, rows)
    await connection.execute("DELETE FROM job WHERE batch_id = $1 AND batch_index > 0", batch.id)
    async with AsyncClient(settings) as other:
        await asyncio.gather(*(c.submit_batch(ANY, rows, resume=batch) for c in (client, other, client)))
    assert await indexes(connection, batch.id) == list(range(10))


async def test_what_another_submitted_while_the_file_was_read_is_submitted(
    client: AsyncClient,
    settings: Settings,
    connection: asyncpg.Connection,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = await stopped_batch(client, connection, rows)
    resume_batch = Ledger.resume_batch
    async with AsyncClient(settings) as other:

        async def after_the_other(ledger: Ledger, batch_id: UUID) -> bool:
            monkeypatch.setattr(Ledger, "resume_batch", resume_batch)
            await other.submit_batch(ANY, rows, resume=batch)
            return await ledger.resume_batch(batch_id)

        monkeypatch.setattr(Ledger, "resume_batch", after_the_other)
        done = await client.submit_batch(ANY, rows, resume=batch)
    assert (done.jobs, done.rows, done.is_stopped) == (10, 1000, False)
    assert await indexes(connection, batch.id) == list(range(10))


async def test_a_producer_that_was_killed_keeps_nobody_waiting(
    client: AsyncClient,
    settings: Settings,
    connection: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> None:
    path = tmp_path / "rows.csv"
    pd.DataFrame({"x": range(9)}).to_csv(path, index=False)
    program = (
        "import sys; from pyfunq import Client\n"
        "with Client(database_url=sys.argv[1], redis_url=sys.argv[2], max_queued_jobs=3) as client:\n"
        "    client.submit_batch('models:/any/1', sys.argv[3], chunk_rows=1)"
    )
    arguments = [settings.database, settings.redis, str(path)]
    running = await asyncio.create_subprocess_exec(sys.executable, "-c", program, *arguments)

    async def accepted() -> bool:
        return len(await client.list()) == 3

    await eventually("three are accepted", accepted)
    running.send_signal(signal.SIGKILL)
    await asyncio.wait_for(running.wait(), 10)
    (job, *_) = await client.list()
    batch = job.batch_id or ""
    await connection.execute("UPDATE job SET status = 'succeeded', finished_at = now()")
    with pytest.raises(WaitTimeout):
        await client.wait_batch(batch, 0.5)
    monkeypatch.setattr("pyfunq.job.GONE_SECONDS", 1.0)
    with pytest.raises(SubmissionStopped, match=r"stopped at 3 of 9 rows; resume with .* rows\.csv"):
        await client.wait_batch(batch, 20)
    done = await client.submit_batch("models:/any/1", path, resume=batch)
    assert (done.jobs, done.rows, done.is_stopped) == (9, 9, False)


async def test_a_producer_gives_a_sign_of_life_and_hears_of_a_cancellation(
    settings: Settings,
    connection: asyncpg.Connection,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> None:
    monkeypatch.setattr("pyfunq.feed._BEAT_SECONDS", 0.05)
    async with AsyncClient(settings.model_copy(update={"max_queued_jobs": 3})) as client:
        opened: list[Any] = []
        submit = asyncio.create_task(client.submit_batch(ANY, rows, chunk_rows=10, on_open=opened.append))

        async def full() -> bool:
            return bool(opened) and len(await indexes(connection, opened[0])) == 3

        await eventually("the lane is full", full)
        first = await connection.fetchval("SELECT seen_at FROM batch")

        async def seen() -> bool:
            return await connection.fetchval("SELECT seen_at FROM batch") > first

        await eventually("its producer is heard", seen)
        cancelled = await client.cancel_batch(opened[0])
        assert cancelled.error is not None
        with pytest.raises(SubmissionStopped, match="cancelled"):
            await asyncio.wait_for(submit, 20)
        done = await client.wait_batch(opened[0], 5)
        assert set(done.counts) == {JobStatus.CANCELLED}
        with pytest.raises(InvalidInput, match="cannot be resumed"):
            await client.submit_batch(ANY, rows, resume=done)


@pytest.mark.parametrize("resumed", [False, True])
async def test_nothing_is_left_queued_of_a_batch_that_was_cancelled_while_chunks_were_on_their_way(
    settings: Settings,
    connection: asyncpg.Connection,
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
    resumed: bool,
) -> None:
    may_hear, keep_alive = asyncio.Event(), Ledger.keep_batch_alive

    async def heard_later(self: Ledger, batch_id: UUID) -> bool:
        await may_hear.wait()
        return await keep_alive(self, batch_id)

    monkeypatch.setattr("pyfunq.feed._BEAT_SECONDS", 0.05)
    monkeypatch.setattr("pyfunq.admission._FIRST_HINT_SECONDS", 0.05)
    monkeypatch.setattr(Ledger, "keep_batch_alive", heard_later)
    async with AsyncClient(settings.model_copy(update={"max_queued_jobs": 3})) as client:
        opened: list[Any] = []
        begun = asyncio.create_task(client.submit_batch(ANY, rows, chunk_rows=10, on_open=opened.append))

        async def full() -> bool:
            queued = "SELECT count(*) FROM job WHERE batch_id = $1 AND status = 'queued'"
            return bool(opened) and await connection.fetchval(queued, opened[0]) == 3

        await eventually("the lane is full", full)
        submit = begun
        if resumed:
            begun.cancel()
            await asyncio.wait([begun])
            submit = asyncio.create_task(client.submit_batch(ANY, rows, resume=opened[0]))
            await eventually("it goes on", lambda: is_open(client, opened[0]))
        await client.cancel_batch(opened[0])
        await eventually("more has come in", full)
        may_hear.set()
        with pytest.raises(SubmissionStopped, match="cancelled"):
            await submit
        done = await client.wait_batch(opened[0], 5)
        assert set(done.counts) == {JobStatus.CANCELLED}
        assert done.error is not None
        assert done.error.code == "job_cancelled"


async def is_open(client: AsyncClient, batch: UUID) -> bool:
    return (await client.get_batch(batch)).error is None


async def test_a_producer_that_is_interrupted_does_not_end_what_another_one_submits(
    settings: Settings, rows: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    monkeypatch.setattr("pyfunq.feed._BEAT_SECONDS", 0.05)
    async with AsyncClient(settings.model_copy(update={"max_queued_jobs": 3})) as client:
        opened: list[Any] = []
        first = asyncio.create_task(client.submit_batch(ANY, rows, chunk_rows=10, on_open=opened.append))
        await eventually("it is open", lambda: opened)
        heard: list[Any] = []
        second = asyncio.create_task(client.submit_batch(ANY, rows, resume=opened[0], on_open=heard.append))
        await eventually("another one submits it as well", lambda: heard)
        second.cancel()
        await asyncio.wait([second])
        await eventually("the first one is heard again", lambda: is_open(client, opened[0]))
        assert not first.done()
        await client.cancel_batch(opened[0])
        with pytest.raises(SubmissionStopped):
            await first


async def test_what_fails_by_its_data_is_withdrawn(client: AsyncClient) -> None:
    def frames() -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"x": range(10)})
        raise Lost

    opened: list[Any] = []
    with pytest.raises(Lost):
        await client.submit_batch(ANY, frames(), chunk_rows=5, on_open=opened.append)
    batch = await client.get_batch(opened[0])
    assert batch.is_final
    assert not batch.is_resumable
    assert set(batch.counts) <= {JobStatus.CANCELLED}
    with pytest.raises(InvalidInput, match="from no file"):
        await client.submit_batch(ANY, frames(), resume=batch)


@pytest.mark.parametrize("how", ["source", "cancelled"])
async def test_what_is_being_committed_at_the_failure_is_withdrawn_too(
    client: AsyncClient, connection: asyncpg.Connection, eventually: Callable[..., Any], how: str
) -> None:
    fail = threading.Event()

    def frames() -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"x": range(10)})
        assert fail.wait(30)
        raise Lost

    async def commits() -> bool:
        waits = "SELECT count(*) FROM pg_locks WHERE relation = 'job'::regclass AND NOT granted"
        return bool(await connection.fetchval(waits))

    opened: list[Any] = []
    async with connection.transaction():
        await connection.execute("LOCK TABLE job IN EXCLUSIVE MODE")
        submitting = asyncio.create_task(client.submit_batch(ANY, frames(), chunk_rows=10, on_open=opened.append))
        await eventually("a commit waits", commits)
        if how == "cancelled":
            submitting.cancel()
        fail.set()
        assert not (await asyncio.wait([submitting], timeout=0.3))[0]
    with pytest.raises((Lost, asyncio.CancelledError)):
        await submitting
    assert (await client.get_batch(opened[0])).counts == {JobStatus.CANCELLED: 1}


# Read again.


async def test_frames_come_in_order_and_missing_rows_are_told_of(
    client: AsyncClient, work: Work, moody_model: str
) -> None:
    x = [13.0, 13.0, 1.0, 2.0, 13.0, 13.0, 3.0]
    batch = await client.submit_batch(moody_model, pd.DataFrame({"x": x}), chunk_rows=2)
    with pytest.raises(WaitTimeout, match="not finished"):
        await predictions(client, batch)
    await work.all()
    with pytest.raises(JobFailed):
        await predictions(client, batch)
    missing: list[int] = []
    frames = [f async for f in client.batch_frames(batch, on_missing=lambda part: missing.append(part.index))]
    assert missing == [0, 2]
    assert [len(frame) for frame in frames] == [2, 2, 2, 1]
    values = pd.concat(frames)["prediction"]
    assert values.fillna(-1).tolist() == [-1, -1, 2, 4, -1, -1, 6]


def test_a_batch_of_a_client_has_results(
    settings: Settings, process: WorkerProcess, iris_model: str, rows: Path
) -> None:
    with Client(settings) as client:
        batch = client.submit_batch(MODEL, rows, chunk_rows=300)

        async def run() -> None:
            async with Ledger.open(settings.database) as ledger:
                await Work(process, ledger).all()

        asyncio.run(run())
        for found in (batch, client.get_batch(batch), client.wait_batch(batch, 5)):
            assert sum(len(frame) for frame in found.results()) == 1000
        assert b"_frames" not in orjson.dumps(str(batch))
    with pytest.raises(TypeError, match="AsyncClient"):
        next(Batch.results(Batch(**{**vars_of(batch), "_frames": None})))


def vars_of(batch: Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in Batch.__slots__}


async def test_results_are_read_by_bytes(
    client: AsyncClient, ledger: Ledger, connection: asyncpg.Connection, rows: Path
) -> None:
    batch = await client.submit_batch(ANY, rows, chunk_rows=10)
    await connection.execute(
        """UPDATE job SET status = 'succeeded', result_format = 'json',
                          result = decode(repeat('20', 1000 * batch_index), 'hex')"""
    )
    first = await ledger.batch_results(batch.id, start=0, max_jobs=50, max_bytes=10_000)
    assert [index for index, _, _ in first] == [0, 1, 2, 3, 4]
    many = await ledger.batch_results(batch.id, start=7, max_jobs=5, max_bytes=10**9)
    assert [index for index, _, _ in many] == [7, 8, 9, 10, 11]
    huge = await ledger.batch_results(batch.id, start=90, max_jobs=5, max_bytes=1)
    assert [index for index, _, _ in huge] == [90], "at least one"


async def test_chunks_of_one_place_are_one_job_whoever_submits_them(
    client: AsyncClient, ledger: Ledger, rows: Path, connection: asyncpg.Connection
) -> None:
    batch = await client.submit_batch(ANY, rows, chunk_rows=500)
    row = await connection.fetchrow("SELECT input, rows FROM job JOIN job_input USING (id) WHERE batch_index = 0")
    for payload in (row["input"], bytes(3_000_000)):  # by a statement, and by COPY
        chunks = [
            NewJob(
                id=new_id(),
                model_uri=ANY,
                input=EncodedInput("arrow", payload, None, row["rows"]),
                queue=Lane.BULK,
                max_attempts=3,
                batch_id=batch.id,
                batch_index=index,
            )
            for index in (0, len(payload))
        ]
        await ledger.submit([(chunk.id, chunk) for chunk in chunks])
        assert await ledger.input(chunks[1].id) == ("arrow", payload, None)
    assert await indexes(connection, batch.id) == [0, 1, len(row["input"]), 3_000_000]
    assert await connection.fetchval("SELECT count(*) FROM job_input") == 4, "nothing of what was left out"
