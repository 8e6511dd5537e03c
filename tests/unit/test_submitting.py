"""Pages: what shares a message, and group commit as its callers see it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import pytest

from pyfunq.entries import NewJob, Page
from pyfunq.errors import AcceptanceUnknown, IdempotencyConflict, LedgerUnavailable, QueueUnavailable
from pyfunq.ids import new_id
from pyfunq.inputs import EncodedInput
from pyfunq.job import Lane
from pyfunq.submitting import Submitter, paginate


def job(
    model_uri: str = "models:/a/1", queue: str = Lane.BULK, batch: UUID | None = None, key: str | None = None
) -> NewJob:
    encoded = EncodedInput(format="split", payload=b"{}", params=None, rows=1)
    return NewJob(
        id=new_id(),
        model_uri=model_uri,
        input=encoded,
        queue=queue,
        max_attempts=3,
        batch_id=batch,
        idempotency_key=key,
    )


def test_jobs_of_a_model_and_lane_share_a_page() -> None:
    jobs = [job(), job("models:/b/1"), job(), job(queue=Lane.INTERACTIVE)]
    placed, pages = paginate(jobs)
    assert sorted(p.jobs for p in pages) == [1, 1, 2]
    assert {j.id for _, j in placed} == {j.id for j in jobs}
    by_page = {page.id: [j for at, j in placed if at == page.id] for page in pages}
    for page in pages:
        assert {(j.model_uri, j.queue) for j in by_page[page.id]} == {(page.model_uri, page.queue)}
        assert len(by_page[page.id]) == page.jobs


def test_a_page_of_one_has_its_jobs_id_so_that_flower_finds_it() -> None:
    (alone,) = (job(),)
    _, (page,) = paginate([alone])
    assert page.id == alone.id


def test_a_page_of_several_has_a_new_id_or_that_of_its_first_job() -> None:
    jobs = [job(), job()]
    _, (page,) = paginate(jobs)
    assert page.id > jobs[1].id, "so those in a queue grow with time"
    _, (page,) = paginate(jobs, by_first_job=True)
    assert (page.id, page.jobs) == (jobs[0].id, 2)


def test_large_submissions_and_batches_become_several_pages() -> None:
    _, pages = paginate([job() for _ in range(2500)])
    assert [p.jobs for p in pages] == [1000, 1000, 500]
    batch = new_id()
    _, pages = paginate([job(batch=batch) for _ in range(3)])
    assert [p.jobs for p in pages] == [1, 1, 1]


def test_chunks_that_name_a_page_share_it() -> None:
    batch, first, second = new_id(), new_id(), new_id()
    jobs = [job(batch=batch)._replace(page_id=page) for page in (first, first, second, None)]
    placed, pages = paginate([*jobs, job()])
    assert [(p.id, p.jobs) for p in pages[:2]] == [(first, 2), (second, 1)]
    assert [p.jobs for p in pages] == [2, 1, 1, 1]
    assert [page for page, _ in placed[:4]] == [first, first, second, jobs[3].id]


class Recorder:
    """Stands where ledger and publisher stand; the real ones are met in the integration tests."""

    def __init__(self) -> None:
        self.flushes: list[int] = []
        self.published: list[Page] = []
        self.early: list[bool] = []
        self.open = asyncio.Event()
        self.failures: list[Exception] = []
        self.kept: set[UUID] = set()
        self.taken: dict[str | None, UUID | None] = {}

    async def submit(
        self, placed: Sequence[tuple[UUID, NewJob]], *, keys_last_seconds: float
    ) -> dict[UUID, UUID | None]:
        self.flushes.append(len(placed))
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        others = {job.id: self.taken[job.idempotency_key] for _, job in placed if job.idempotency_key in self.taken}
        self.kept |= {job.id for _, job in placed if job.id not in others}
        return others

    submit_again = submit

    async def publish(self, pages: Sequence[Page], *, early: bool = False) -> None:
        self.published.extend(pages)
        self.early.extend(early for _ in pages)
        raise QueueUnavailable


def refused() -> LedgerUnavailable:
    error = LedgerUnavailable()
    error.__cause__ = ConnectionRefusedError()
    return error


async def test_what_comes_during_a_flush_is_committed_with_the_next() -> None:
    recorder = Recorder()
    submitter = Submitter(recorder, recorder)  # type: ignore[arg-type]
    submits = [asyncio.create_task(submitter.submit([job()]))]
    await asyncio.sleep(0)
    submits += [asyncio.create_task(submitter.submit([job()])) for _ in range(9)]
    recorder.open.set()
    await asyncio.gather(*submits)
    assert recorder.flushes == [1, 9], "the first waited for nobody, the others for one commit"
    await submitter.close()
    assert [p.jobs for p in recorder.published] == [1, 9], "and Redis being away was nobody's error"


async def test_after_a_connection_that_broke_during_a_commit_the_same_jobs_are_submitted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyfunq.submitting._TRY_AGAIN_SECONDS", (0.0, 0.01))
    recorder = Recorder()
    recorder.open.set()
    submitter = Submitter(recorder, recorder)  # type: ignore[arg-type]
    recorder.failures = [LedgerUnavailable(), LedgerUnavailable()]
    one = job()
    await submitter.submit([one])
    assert (recorder.flushes, recorder.kept) == ([1, 1, 1], {one.id})
    recorder.failures = [LedgerUnavailable()] * 3
    with pytest.raises(AcceptanceUnknown):
        await submitter.submit([job()])
    recorder.failures = [refused()]
    with pytest.raises(LedgerUnavailable) as caught:
        await submitter.submit([job()])
    assert type(caught.value) is LedgerUnavailable, "nothing was sent"
    await submitter.close()


async def test_a_failed_commit_is_told_to_all_who_wait_for_it_and_to_nobody_later() -> None:
    recorder = Recorder()
    recorder.open.set()
    recorder.failures = [refused()] * 2
    submitter = Submitter(recorder, recorder)  # type: ignore[arg-type]
    ends = await asyncio.gather(*(submitter.submit([job()]) for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [LedgerUnavailable] * 3
    recorder.failures = []
    await submitter.submit([job()])
    recorder.failures = [refused()]
    with pytest.raises(LedgerUnavailable):
        await submitter.submit([job()])


async def test_a_conflict_belongs_to_its_own_caller_and_a_page_without_jobs_is_not_published() -> None:
    recorder = Recorder()
    submitter = Submitter(recorder, recorder)  # type: ignore[arg-type]
    there = new_id()
    recorder.taken = {"same": there, "other": None}
    first = asyncio.create_task(submitter.submit([job()]))
    await asyncio.sleep(0)
    plain, same, other = job(), job("models:/b/1", key="same"), job("models:/c/1", key="other")
    submits = [asyncio.create_task(submitter.submit([one])) for one in (plain, same, other)]
    await asyncio.sleep(0)
    recorder.open.set()
    await first
    ends = await asyncio.gather(*submits, return_exceptions=True)
    assert ends[:2] == [{}, {same.id: there}]
    assert isinstance(ends[2], IdempotencyConflict)
    assert recorder.flushes == [1, 3], "one transaction"
    await submitter.close()
    assert {page.model_uri for page in recorder.published} == {"models:/a/1"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the submitter takes for the time: it stands still unless a test moves it."""
    now = [100.0]
    monkeypatch.setattr("pyfunq.submitting.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
async def quick(clock: list[float]) -> AsyncIterator[tuple[Submitter, Recorder]]:
    """A submitter whose last commit was quick; its ledger waits until `open` is set."""
    recorder = Recorder()
    recorder.open.set()
    submitter = Submitter(recorder, recorder)  # type: ignore[arg-type]
    await submitter.submit([job()])
    assert recorder.early == [False], "nothing is known yet of how quick commits are"
    recorder.open.clear()
    recorder.early.clear()
    yield submitter, recorder
    recorder.open.set()
    await submitter.close()


async def until_it_is_being_committed(submitter: Submitter, jobs: Sequence[NewJob]) -> "asyncio.Task[Any]":
    task = asyncio.create_task(submitter.submit(jobs))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_where_commits_are_quick_the_message_goes_before_and_none_after(
    quick: tuple[Submitter, Recorder], clock: list[float]
) -> None:
    submitter, recorder = quick
    jobs = [job(), job()]
    submits = await until_it_is_being_committed(submitter, jobs)
    assert (recorder.early, recorder.published[-1].id) == ([True], jobs[0].id), "by which the worker looks for it"
    clock[0] += 0.009
    recorder.open.set()
    await submits
    await submitter.close()
    assert recorder.early == [True]


async def test_after_a_slow_commit_the_message_is_sent_again_and_the_next_not_before_its_commit(
    quick: tuple[Submitter, Recorder], clock: list[float]
) -> None:
    submitter, recorder = quick
    submits = await until_it_is_being_committed(submitter, [job()])
    clock[0] += 0.011
    recorder.open.set()
    await submits
    assert recorder.early == [True, False]
    assert recorder.published[-1] == recorder.published[-2]
    recorder.open.clear()
    submits = await until_it_is_being_committed(submitter, [job()])
    assert recorder.early == [True, False]
    recorder.open.set()
    await submits
    await submitter.close()
    assert recorder.early == [True, False, False]


async def test_a_commit_that_failed_does_not_count_as_quick(quick: tuple[Submitter, Recorder]) -> None:
    submitter, recorder = quick
    recorder.failures = [refused()]
    recorder.open.set()
    with pytest.raises(LedgerUnavailable):
        await submitter.submit([job()])
    await submitter.submit([job()])
    await submitter.close()
    assert recorder.early == [True, False]


@pytest.mark.parametrize(
    "jobs",
    [[job(key="a")], [job(batch=new_id())], [job() for _ in range(201)]],
    ids=["may not be needed", "a chunk", "many"],
)
async def test_messages_of_what_may_be_missing_or_take_long_do_not_go_before(
    quick: tuple[Submitter, Recorder], jobs: list[NewJob]
) -> None:
    submitter, recorder = quick
    submits = await until_it_is_being_committed(submitter, jobs)
    assert recorder.early == []
    recorder.open.set()
    await submits
    await submitter.close()
    assert recorder.early == [False]
