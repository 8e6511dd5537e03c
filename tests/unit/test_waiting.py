"""Who waits for a job is told once, in the moment in which it is known to be final."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import pytest

from pyfunq import waiting
from pyfunq.batches import pause_seconds
from pyfunq.errors import LedgerUnavailable
from pyfunq.ids import new_id
from pyfunq.waiting import FinishedJobs


class Ledger:
    def __init__(self) -> None:
        self.final: set[UUID] = set()
        self.asked = 0
        self.was_asked = asyncio.Event()

    async def final_among(self, ids: Sequence[UUID]) -> set[UUID]:
        self.asked += 1
        self.was_asked.set()
        return self.final & set(ids)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
async def finished(ledger: Ledger) -> AsyncIterator[FinishedJobs]:
    """Without a Redis that announces anything; `_wake` is what an announcement does."""
    finished = FinishedJobs(ledger, "redis://127.0.0.1:1/0")  # type: ignore[arg-type]
    finished._listening.set()
    finished._tasks = [asyncio.create_task(finished._poll())]
    yield finished
    await finished.close()


Asked = list[tuple[UUID, "asyncio.Future[str]"]]


async def test_what_is_wanted_is_asked_when_the_end_is_announced(finished: FinishedJobs, ledger: Ledger) -> None:
    asked: Asked = []
    job_id = new_id()
    finished.expect([job_id])
    waiter = asyncio.create_task(finished.then(job_id, lambda *ask: asked.append(ask)))
    await asyncio.sleep(0)
    assert (asked, ledger.asked) == ([], 0)
    finished._wake([job_id])
    finished._wake([job_id])
    assert [one for one, _ in asked] == [job_id], "once, and before the waiter has its turn"
    await asyncio.sleep(0)
    assert not waiter.done()
    asked[0][1].set_result("its result")
    assert await waiter == "its result"
    assert not finished._waiters


async def test_jobs_that_nobody_waits_for_cost_the_same_however_many_went_before(finished: FinishedJobs) -> None:
    """Each page of a thousand once took 0.1 s, when 100,000 had gone before."""
    jobs = [UUID(int=number) for number in range(400_000)]
    begun = time.process_time()
    for at in range(0, len(jobs), 1_000):
        finished.expect(jobs[at : at + 1_000])
    assert time.process_time() - begun < 5
    known = [finished.expects(job) for job in jobs]
    assert all(known[-50_000:]), "the newest"
    assert 50_000 <= sum(known) <= 100_000


async def test_an_end_that_was_announced_before_is_not_waited_for(finished: FinishedJobs, ledger: Ledger) -> None:
    job_id = new_id()
    finished.expect([job_id])
    finished._wake([job_id])
    await asyncio.wait_for(finished.wait(job_id), 1)
    assert ledger.asked == 0


async def test_of_a_job_of_others_the_ledger_is_asked(finished: FinishedJobs, ledger: Ledger) -> None:
    ledger.final.add(job_id := new_id())
    await asyncio.wait_for(finished.wait(job_id), 1)
    assert ledger.asked == 1


async def test_what_nobody_announces_is_found_by_polling(
    finished: FinishedJobs, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.01)
    finished._tasks.append(asyncio.create_task(finished._poll()))
    finished.expect([job_id := new_id()])
    waiter = asyncio.create_task(finished.wait(job_id))
    await asyncio.sleep(0)
    ledger.final.add(job_id)
    await asyncio.wait_for(waiter, 5)


async def test_an_error_of_what_is_asked_is_the_waiters(finished: FinishedJobs) -> None:
    finished.expect([job_id := new_id()])
    away = LedgerUnavailable("away")
    waiter = asyncio.create_task(finished.then(job_id, lambda _, future: future.set_exception(away)))
    other = asyncio.create_task(finished.wait(job_id))
    await asyncio.sleep(0)
    finished._wake([job_id])
    with pytest.raises(LedgerUnavailable, match="away"):
        await waiter
    await other


async def test_who_gave_up_is_not_asked_for(finished: FinishedJobs) -> None:
    asked: Asked = []
    finished.expect([job_id := new_id()])
    impatient = asyncio.create_task(finished.then(job_id, lambda *ask: asked.append(ask)))
    patient = asyncio.create_task(finished.wait(job_id))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.wait([impatient])
    finished._wake([job_id])
    await patient
    assert asked == []
    assert not finished._waiters


async def test_any_of_several(finished: FinishedJobs, ledger: Ledger) -> None:
    ids = [new_id() for _ in range(3)]
    waiter = asyncio.create_task(finished.any_of(ids, 5))
    await ledger.was_asked.wait()
    ledger.final.update(ids[1:])
    finished._wake(ids[1:])
    assert await waiter == set(ids[1:])
    assert not finished._waiters
    assert await finished.any_of([new_id()], 0.01) == set()


@pytest.mark.parametrize(
    ("waited", "asking", "pause"),
    [
        (0.0, 0.001, 0.02),  # a small batch is known to have ended almost at once
        (1.0, 0.001, 0.05),
        (60.0, 0.001, 0.2),
        (0.0, 0.05, 0.5),  # one that takes long to count is not counted all the time
        (60.0, 0.05, 0.5),
    ],
)
def test_a_batch_is_asked_for_the_more_rarely_the_longer_it_takes(waited: float, asking: float, pause: float) -> None:
    assert pause_seconds(waited, asking) == pytest.approx(pause)
