"""The ledger's statements against a real PostgreSQL."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from pyfunq.entries import ClaimedJob, ModelTags, ModelVersion, NewJob, Outcome
from pyfunq.errors import LedgerUnavailable, MigrationNeeded, UnknownJob
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput
from pyfunq.job import JobError, JobStatus, Lane
from pyfunq.ledger import _SERVER_SETTINGS, Ledger
from pyfunq.sql import queries

CAPS = {"max_jobs": 100, "max_rows": 1000, "max_bytes": 1_000_000}
MODEL = "models:/iris/1"


def new_job(model_uri: str = MODEL, *, rows: int = 1, queue: str = Lane.BULK, **more: Any) -> NewJob:
    encoded = EncodedInput(format="split", payload=b'{"columns":["a"],"data":[[1]]}', params=None, rows=rows)
    return NewJob(id=new_id(), model_uri=model_uri, input=encoded, queue=queue, max_attempts=3, **more)


async def submit(ledger: Ledger, *jobs: NewJob) -> UUID:
    page = new_id()
    await ledger.submit([(page, job) for job in jobs])
    return page


async def living_worker(ledger: Ledger) -> UUID:
    worker = new_id()
    await ledger.beat(worker, "host", 1)
    return worker


def succeeded(job: ClaimedJob) -> Outcome:
    return Outcome(job=job, status=JobStatus.SUCCEEDED, result_format="json", result=b"[1]")


async def test_a_submission_is_all_or_nothing(ledger: Ledger) -> None:
    good, twin = new_job(), new_job()
    with pytest.raises(asyncpg.UniqueViolationError):
        await submit(ledger, good, twin, twin)
    with pytest.raises(UnknownJob):
        await ledger.get(good.id)


async def test_claim_takes_the_page_then_jobs_of_the_same_model_and_lane(ledger: Ledger) -> None:
    mine, along = new_job(), new_job()
    await submit(ledger, along)
    await submit(ledger, new_job("models:/other/1"))
    await submit(ledger, new_job(queue=Lane.INTERACTIVE))
    page = await submit(ledger, mine)
    claimed = await ledger.claim(page, await living_worker(ledger), **CAPS)
    assert [job.id for job in claimed] == sorted([mine.id, along.id])
    assert {job.attempt for job in claimed} == {1}
    assert (await ledger.get(mine.id)).status is JobStatus.RUNNING


async def test_claim_of_a_page_that_is_done_takes_nothing_along(ledger: Ledger) -> None:
    worker = await living_worker(ledger)
    page = await submit(ledger, new_job())
    await ledger.claim(page, worker, **CAPS)
    await submit(ledger, new_job())
    assert await ledger.claim(page, worker, **CAPS) == []


@pytest.mark.parametrize(
    ("caps", "taken"),
    [
        ({"max_jobs": 2}, 2),
        ({"max_rows": 25}, 3),  # 10 + 10 are below 25, so a third is begun
        ({"max_rows": 1}, 1),
        ({"max_bytes": 1}, 1),
        ({}, 5),
    ],
)
async def test_caps_end_a_micro_batch_but_never_leave_it_empty(
    ledger: Ledger, caps: dict[str, int], taken: int
) -> None:
    page = await submit(ledger, *(new_job(rows=10) for _ in range(5)))
    assert len(await ledger.claim(page, await living_worker(ledger), **{**CAPS, **caps})) == taken


async def test_two_workers_never_claim_the_same_job(ledger: Ledger) -> None:
    pages = [await submit(ledger, *(new_job() for _ in range(20))) for _ in range(10)]
    workers = [await living_worker(ledger) for _ in range(4)]
    caps = {**CAPS, "max_jobs": 7}

    async def drain(worker: UUID) -> list[UUID]:
        taken = []
        for page in pages:
            while claimed := await ledger.claim(page, worker, **caps):
                taken += [job.id for job in claimed]
        return taken

    taken = [job for part in await asyncio.gather(*map(drain, workers)) for job in part]
    assert len(taken) == len(set(taken)) == 200


async def test_a_result_is_recorded_once_and_only_by_the_attempt_that_holds_the_job(ledger: Ledger) -> None:
    slow, fast = await living_worker(ledger), await living_worker(ledger)
    page = await submit(ledger, new_job())
    (held,) = await ledger.claim(page, slow, **CAPS)
    await ledger.stop_beating(slow)
    assert {i: end.status for i, end in (await ledger.rescue_crashed(60)).items()} == {held.id: JobStatus.QUEUED}
    (again,) = await ledger.claim(held.id, fast, **CAPS)
    assert again.attempt == 2
    assert await ledger.finish(slow, [succeeded(held)]) == set()
    assert await ledger.finish(slow, [succeeded(again)]) == set(), "another worker's claim is not mine to finish"
    assert await ledger.finish(fast, [succeeded(again)]) == {held.id}
    assert await ledger.finish(fast, [succeeded(again)]) == set()


async def test_a_job_taken_before_is_claimed_without_company(ledger: Ledger) -> None:
    worker = await living_worker(ledger)
    page = await submit(ledger, new_job())
    (first,) = await ledger.claim(page, worker, **CAPS)
    await ledger.stop_beating(worker)
    await ledger.rescue_crashed(60)
    await submit(ledger, new_job())
    assert [job.id for job in await ledger.claim(first.id, await living_worker(ledger), **CAPS)] == [first.id]


async def test_jobs_of_dead_workers_come_back_until_their_attempts_are_used_up(ledger: Ledger) -> None:
    job = new_job()
    page = await submit(ledger, job)
    for attempt in (1, 2, 3):
        (claimed,) = await ledger.claim(page, new_id(), **CAPS)  # this worker never beat: it is taken for dead
        assert claimed.attempt == attempt
        ended = await ledger.rescue_crashed(60)
        page = job.id
    assert {i: (end.status, end.crashes) for i, end in ended.items()} == {job.id: (JobStatus.DEAD, 3)}
    now = await ledger.get(job.id)
    assert now.error == JobError(code="job_dead", message="its worker process ended while predicting, 3 times")


async def test_rescue_leaves_the_jobs_of_living_workers_alone(ledger: Ledger) -> None:
    worker = await living_worker(ledger)
    page = await submit(ledger, new_job())
    await ledger.claim(page, worker, **CAPS)
    assert await ledger.rescue_crashed(60) == {}


async def test_delayed_jobs_wait_longer_each_time_and_count_no_attempt(ledger: Ledger, database_url: str) -> None:
    worker = await living_worker(ledger)
    page = await submit(ledger, new_job(), new_job())
    claimed = await ledger.claim(page, worker, **CAPS)
    away = JobError(code="registry_unavailable", message="away")
    limits = {"longest_seconds": 60.0, "give_up_seconds": 3600.0}
    connection = await asyncpg.connect(database_url)
    pauses = []
    for waited in (0, 10, 1000):
        await connection.execute("UPDATE job SET delayed_since = now() - $1 * interval '1 s' WHERE $1 > 0", waited)
        assert await ledger.delay(worker, claimed, away, **limits) == set()
        assert await ledger.claim(page, worker, **CAPS) == [], "not before its time"
        rows = await connection.fetch("SELECT extract(epoch FROM not_before - now())::float AS pause, crashes FROM job")
        assert {row["crashes"] for row in rows} == {0}
        pauses.append(max(row["pause"] for row in rows))
        assert len({row["pause"] for row in rows}) == 1, "a page stays together"
        assert await ledger.due_pages() == []
        await connection.execute("UPDATE job SET not_before = now()")
        assert await ledger.due_pages() == [page]
        claimed = await ledger.claim(page, worker, **CAPS)
        assert all(job.delayed for job in claimed)
    assert 0.3 < pauses[0] <= 1
    assert 4.8 < pauses[1] <= 10.1
    assert 29.8 < pauses[2] <= 60
    await connection.execute("UPDATE job SET delayed_since = now() - interval '2 hours'")
    await connection.close()
    ids = {job.id for job in claimed}
    assert await ledger.delay(worker, claimed, away, **limits) == ids
    assert {job.error for job in (await ledger.get_many(list(ids))).values()} == {away}


async def test_retried_jobs_wait_twice_as_long_each_time(ledger: Ledger, database_url: str) -> None:
    worker = await living_worker(ledger)
    page = await submit(ledger, new_job())
    connection = await asyncpg.connect(database_url)
    for failures in range(3):
        (claimed,) = await ledger.claim(page, worker, **CAPS)
        assert (claimed.failures, claimed.crashes) == (failures, 0)
        await ledger.retry(worker, [claimed], longest_seconds=60.0)
        pause = await connection.fetchval("SELECT extract(epoch FROM not_before - now())::float FROM job")
        assert 2**failures * 0.5 - 0.3 < pause <= 2**failures
        await connection.execute("UPDATE job SET not_before = NULL")
    await connection.close()


async def test_jobs_given_back_are_another_workers_at_once(ledger: Ledger) -> None:
    worker, other = await living_worker(ledger), await living_worker(ledger)
    page = await submit(ledger, new_job(), new_job())
    claimed = await ledger.claim(page, worker, **CAPS)
    again = new_id()
    assert await ledger.give_back(other, claimed, again) == set(), "not its to give"
    assert await ledger.give_back(worker, claimed, again) == {job.id for job in claimed}
    assert await ledger.finish(worker, [succeeded(claimed[0])]) == set()
    taken = await ledger.claim(again, other, **CAPS)
    assert {(job.id, job.attempt, job.crashes) for job in taken} == {(job.id, 2, 0) for job in claimed}


async def test_jobs_that_cost_a_process_come_back_alone_until_they_are_dead(ledger: Ledger) -> None:
    worker = await living_worker(ledger)
    page = await submit(ledger, new_job(), new_job())
    claimed = await ledger.claim(page, worker, **CAPS)
    pages = [new_id(), new_id()]
    ends = await ledger.crash(worker, claimed, pages, "timed out after 30 s")
    assert {(end.status, end.page_id, end.goes_first) for end in ends.values()} == {
        (JobStatus.QUEUED, page, True) for page in pages
    }
    for crashes in (1, 2):
        (alone,) = await ledger.claim(pages[0], worker, **CAPS)
        assert alone.crashes == crashes
        ends = await ledger.crash(worker, [alone], [pages[0]], "timed out after 30 s")
    assert [end.status for end in ends.values()] == [JobStatus.DEAD]
    assert (await ledger.get(alone.id)).error == JobError(code="job_dead", message="timed out after 30 s, 3 times")


async def test_cancelled_jobs_are_not_claimed_and_their_results_not_kept(ledger: Ledger) -> None:
    worker = await living_worker(ledger)
    queued, running = new_job(), new_job()
    page = await submit(ledger, running)
    claimed = await ledger.claim(page, worker, **CAPS)
    page = await submit(ledger, queued)
    assert set(await ledger.cancel([queued.id, running.id])) == {queued.id, running.id}
    assert await ledger.claim(page, worker, **CAPS) == []
    assert await ledger.finish(worker, [succeeded(claimed[0])]) == set()
    assert (await ledger.get(running.id)).status is JobStatus.CANCELLED
    assert await ledger.cancel([queued.id]) == [], "a final job stays as it is"


async def test_a_job_past_its_deadline_is_expired_and_never_claimed(ledger: Ledger) -> None:
    job = new_job(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    page = await submit(ledger, job)
    assert await ledger.claim(page, await living_worker(ledger), **CAPS) == []
    assert await ledger.expire() == [job.id]
    assert (await ledger.get(job.id)).status is JobStatus.EXPIRED


async def test_pages_without_message_move_to_new_pages(ledger: Ledger) -> None:
    page = await submit(ledger, new_job(), new_job())
    later = new_id()
    young = await submit(ledger, new_job())
    assert young > later
    assert await ledger.pages_without_message({Lane.BULK: later}) == [page]
    assert await ledger.pages_without_message({Lane.INTERACTIVE: later}) == []
    (moved,) = await ledger.repage([page], [new_id()])
    assert (moved.jobs, moved.model_uri, moved.queue) == (2, MODEL, "bulk")
    worker = await living_worker(ledger)
    caps = {**CAPS, "max_jobs": 2}
    assert await ledger.claim(page, worker, **caps) == [], "the old message finds nothing"
    assert len(await ledger.claim(moved.id, worker, **caps)) == 2


async def test_pages_without_message_are_found_of_every_model_and_of_what_crashed(ledger: Ledger) -> None:
    pages = [await submit(ledger, new_job(f"models:/m{n}/1")) for n in range(3)]
    crashing = await submit(ledger, new_job("models:/m3/1"))
    boundaries = {Lane.INTERACTIVE: new_id(), Lane.BULK: new_id()}
    worker = await living_worker(ledger)

    async def crash(page: UUID) -> UUID:
        (ends,) = (await ledger.crash(worker, await ledger.claim(page, worker, **CAPS), [new_id()], "hung")).values()
        return ends.page_id

    once = await crash(crashing)
    assert await ledger.pages_without_message(boundaries) == pages
    later = {**boundaries, Lane.BULK: new_id()}
    assert await ledger.pages_without_message(later, first=True) == [once]
    assert await ledger.pages_without_message(boundaries, first=True) == [], "its new page is younger"
    twice = await crash(once)
    later = {**boundaries, Lane.BULK: new_id()}
    assert await ledger.pages_without_message(later) == [*pages, twice]
    assert await ledger.pages_without_message(later, first=True) == []


async def test_a_uri_comes_to_stand_for_another_version(ledger: Ledger) -> None:
    uri = "models:/iris@champion"
    one = ModelVersion(name="iris", version="1", created_ms=1, source="models:/m-1", run_id="r1", experiment_id="e1")
    two = ModelVersion(name="iris", version="2", created_ms=2, source="models:/m-2", run_id="r2", experiment_id="e1")
    first = await ledger.point(uri, one, ModelTags())
    before = await ledger.resolution(uri)
    assert (await ledger.point(uri, one, ModelTags())).id == first.id
    same = await ledger.resolution(uri)
    assert before is not None
    assert same is not None
    assert same.resolved_at == before.resolved_at, "confirmed, not moved"
    await ledger.point(uri, two, ModelTags(confidence=True, max_rows=7))
    page = await submit(ledger, new_job(uri))
    (job,) = await ledger.claim(page, await living_worker(ledger), **CAPS)
    assert job.version_id is not None
    assert (await ledger.version(job.version_id)).version == "2"
    assert (job.confidence, job.max_rows) == (True, 7)
    await ledger.forget(uri)
    assert await ledger.resolution(uri) is None


async def test_the_view_shows_succeeded_jobs_flat(ledger: Ledger, database_url: str) -> None:
    version = await ledger.point(
        MODEL,
        ModelVersion(name="iris", version="1", created_ms=1, source="models:/m-1", run_id="run", experiment_id="7"),
        ModelTags(confidence=True),
    )
    worker = await living_worker(ledger)
    page = await submit(ledger, new_job(), new_job())
    good, bad = await ledger.claim(page, worker, **CAPS)
    await ledger.finish(
        worker,
        [
            Outcome(
                job=good,
                status=JobStatus.SUCCEEDED,
                version_id=version.id,
                result_format="json",
                result=b'["setosa"]',
                confidence=[0.75],
            ),
            Outcome(job=bad, status=JobStatus.FAILED, error=JobError(code="model_raised", message="x")),
        ],
    )
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT * FROM model_predictions")
    await connection.close()
    assert len(rows) == 1
    row = rows[0]
    assert (row["job_id"], row["model_name"], row["model_version"], row["run_id"], row["experiment_id"]) == (
        *(good.id, "iris", "1", "run", "7"),
    )
    assert (row["prediction"], row["confidence_score"], row["worker"]) == ('["setosa"]', 0.75, "host:1")
    assert row["total_ms"] >= row["run_ms"] > 0


async def test_however_jobs_are_submitted_their_inputs_are_theirs(ledger: Ledger) -> None:
    """In one statement or by COPY, jobs that are alike or not."""
    worker = await living_worker(ledger)

    def one(number: int, params: bytes | None, size: int = 0) -> NewJob:
        payload = b'{"columns":["a"],"data":[[%d]]}' % number
        encoded = EncodedInput("split", payload + b" " * size, params, rows=number + 1)
        return new_job()._replace(input=encoded)

    for jobs in (
        [one(0, None)],
        [one(n, b'{"k":1}') for n in range(3)],
        [one(n, b'{"k":%d}' % n if n else None) for n in range(3)],
        [one(n, b'{"k":%d}' % n if n else None, 1_500_000) for n in range(3)],
    ):
        page = await submit(ledger, *jobs)
        claimed = await ledger.claim(page, worker, **CAPS | {"max_bytes": 10**9})
        wanted = [(job.id, job.input.payload, job.input.params, job.input.rows) for job in jobs]
        assert [(c.id, c.input, c.params, c.rows) for c in claimed] == wanted
        for job in jobs:
            assert await ledger.input(job.id) == ("split", job.input.payload, job.input.params)


async def test_a_character_that_jsonb_lacks_does_not_break_the_view(ledger: Ledger, database_url: str) -> None:
    worker = await living_worker(ledger)
    page = await submit(ledger, new_job(), new_job())
    first, second = await ledger.claim(page, worker, **CAPS)
    odd = Outcome(job=first, status=JobStatus.SUCCEEDED, result_format="json", result=b'["a\\u0000b"]')
    await ledger.finish(worker, [odd, succeeded(second)])
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT prediction FROM model_predictions ORDER BY job_id")
    await connection.close()
    assert [row["prediction"] for row in rows] == [None, "[1]"]


@pytest.mark.parametrize(
    ("query", "arguments", "must", "must_not"),
    [
        (
            "claim",
            "NULL, NULL, 9, 9, 9",
            r"(?s)Scan using job_queued_page.*Scan using job_queued_model",
            r"Filter: \(\(page_id =",
        ),
        (
            "finish",
            "NULL, " * 10 + "NULL",
            r"Index Scan using job_pkey .*\n.*Index Cond: \(id = ANY \(ARRAY\[d.id\]\)\)",
            "job_running",
        ),
        (
            "finish_alike",
            "NULL, " * 7 + "NULL",
            r"Index Scan using job_pkey .*\n.*Index Cond: \(id = ANY \(ARRAY\[d.id\]\)\)",
            "job_running",
        ),
        ("delay", "NULL, NULL, NULL, NULL, 5, 1, 5, '', ''", r"Index Scan using job_pkey", "job_running"),
        ("retry", "NULL, NULL, NULL, NULL, 5, 1", r"Index Scan using job_pkey", "job_running"),
        ("give_back", "NULL, NULL, NULL, NULL, NULL, NULL", r"Index Scan using job_pkey", "job_running"),
        ("crash", "NULL, NULL, NULL, NULL, NULL, ''", r"Index Scan using job_pkey", "job_running"),
        ("withdrawn", "NULL", r"Index Cond: \(id = ANY", "job_queued"),
        ("due_pages", "", r"Index Scan (using|on) job_queued_later", "job_queued_page"),
        ("chunks_there", "NULL, 1, 2", r"Index Cond: \(\(batch_id = .*batch_index >= ", "Sort"),
        ("count_batches", "NULL", r"job_batch.*\n.*Index Cond: \(batch_id = ", "job_pkey"),
        ("batch_jobs", "NULL, 1, 10", r"Index Scan using job_batch", "Sort"),
        ("unfinished_in_batch", "NULL", r"job_batch.*\n.*Index Cond: \(batch_id = ", "job_pkey"),
        ("batch_results", "NULL, 1, 10, 10", r"Index Scan using job_batch", "Sort"),
        ("get_jobs", "NULL", r"Index Cond: \(id = ANY", "Hash Cond: .*job"),
    ],
)
async def test_hot_statements_find_their_rows_by_index_in_a_generic_plan(
    ledger: Ledger, database_url: str, query: str, arguments: str, must: str, must_not: str
) -> None:
    """PostgreSQL takes to generic plans after a connection's fifth execution."""
    connection = await asyncpg.connect(database_url, server_settings=_SERVER_SETTINGS)
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE hot AS {queries()[query]}")
    for rows in (0, 5000):
        for _ in range(rows // 1000):
            await submit(ledger, *(new_job() for _ in range(1000)))
        plan = "\n".join(
            row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE hot{arguments and f'({arguments})'}")
        )
        assert "Seq Scan on job" not in plan
        assert re.search(must, plan), plan
        assert not re.search(must_not, plan), plan
        await connection.execute("ANALYZE job")
    await connection.close()


async def test_results_are_written_by_key_also_where_few_jobs_are_running(ledger: Ledger, database_url: str) -> None:
    """A statement's first plans know their arguments; the index on running jobs looks small to them."""
    jobs = [new_job() for _ in range(64)]
    await submit(ledger, *jobs)
    ids = [job.id for job in jobs]
    connection = await asyncpg.connect(database_url, server_settings=_SERVER_SETTINGS)
    await connection.execute("ANALYZE job")
    alike = (new_id(), "running", "succeeded", None, "json", ids, [1] * 64, [b"[1]"] * 64)
    nothing: list[Any] = [None] * 64
    differing = (new_id(), "running", ids, [1] * 64, ["failed"] * 64, *[nothing] * 6)
    for query, arguments in (("finish_alike", alike), ("finish", differing)):
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {queries()[query]}", *arguments))
        assert "job_pkey" in plan, plan
        assert "job_running" not in plan
    await connection.close()


@pytest.mark.parametrize("rows", [0, 1, 20, 50])
async def test_a_claim_looks_up_each_input_however_few_there_were_when_it_was_planned(
    ledger: Ledger, database_url: str, rows: int
) -> None:
    """PostgreSQL would rather read a small table whole, and goes on with its plan when the table has grown."""
    connection = await asyncpg.connect(database_url, server_settings=_SERVER_SETTINGS)
    if rows:
        await submit(ledger, *(new_job() for _ in range(rows)))
    await connection.execute("ANALYZE job; ANALYZE job_input")
    await connection.execute(f"SET plan_cache_mode = force_generic_plan; PREPARE hot AS {queries()['claim']}")
    plan = "\n".join(row[0] for row in await connection.fetch("EXPLAIN EXECUTE hot(NULL, NULL, 9, 9, 9)"))
    assert re.search(r"Index Scan using job_input_pkey on job_input .*\n *Index Cond: \(id = taken.id\)", plan), plan
    await connection.close()


async def test_listing_pages_from_newest_to_oldest(ledger: Ledger) -> None:
    jobs = [new_job() for _ in range(5)]
    await submit(ledger, *jobs)
    first = await ledger.list_jobs(limit=3)
    rest = await ledger.list_jobs(limit=3, before=first[-1].id)
    assert [job.id for job in first + rest] == [job.id for job in reversed(jobs)]
    assert await ledger.list_jobs(status=JobStatus.FAILED) == []


async def test_an_empty_database_says_what_to_do(servers: Any) -> None:
    empty = servers.database.replace("/pyfunq?", "/postgres?")
    async with Ledger.open(empty) as ledger:
        with pytest.raises(MigrationNeeded, match="pyfunq migrate"):
            await ledger.list_jobs()


async def test_postgres_that_is_away_is_named(tmp_path: Any) -> None:
    with pytest.raises(LedgerUnavailable, match="Postgres cannot be reached"):
        async with Ledger.open(f"postgresql://postgres@/pyfunq?host={tmp_path}"):
            pass
