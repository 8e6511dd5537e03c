"""The bound on a lane's queued jobs, as one producer keeps it."""

import asyncio

import pytest

from pyfunq import admission
from pyfunq.admission import Admission
from pyfunq.errors import BacklogFull, InvalidInput, LedgerUnavailable
from pyfunq.job import Lane


class Lanes:
    """What a count would find; `gate` holds counts up."""

    def __init__(self) -> None:
        self.queued = {Lane.INTERACTIVE: 0, Lane.BULK: 0}
        self.counts = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = False

    async def count(self, lane: Lane, at_most: int) -> int:
        self.counts += 1
        await self.gate.wait()
        if self.away:
            raise LedgerUnavailable
        return min(self.queued[lane], at_most)


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> Lanes:
    monkeypatch.setattr(admission, "_FRESH_SECONDS", 0.05)
    return Lanes()


async def test_beyond_the_bound_a_submit_is_refused_with_a_hint(lanes: Lanes) -> None:
    gate = Admission(lanes.count, 10)
    await gate.admit(Lane.BULK, 10)
    with pytest.raises(BacklogFull, match=r"lane bulk holds .* 10 .*try again in 5 s") as caught:
        await gate.admit(Lane.BULK, 1)
    assert (caught.value.retry_after_seconds, caught.value.retryable) == (5.0, True)
    await gate.admit(Lane.INTERACTIVE, 1)
    await gate.close()


async def test_what_drained_makes_room_and_the_hint_follows_its_rate(lanes: Lanes) -> None:
    gate = Admission(lanes.count, 100)
    lanes.queued[Lane.BULK] = 100
    with pytest.raises(BacklogFull):
        await gate.admit(Lane.BULK, 1)
    lanes.queued[Lane.BULK] = 99
    await asyncio.sleep(0.1)
    await gate.admit(Lane.BULK, 1)
    with pytest.raises(BacklogFull) as caught:
        await gate.admit(Lane.BULK, 60)
    assert 3 < caught.value.retry_after_seconds <= 60, "about 10 jobs a second"
    await gate.close()


async def test_far_from_the_bound_no_submit_waits_for_a_count(lanes: Lanes) -> None:
    gate = Admission(lanes.count, 1000)
    await gate.admit(Lane.BULK, 1)
    await asyncio.sleep(0.06)
    lanes.gate.clear()
    async with asyncio.timeout(0.5):
        for _ in range(100):
            await gate.admit(Lane.BULK, 1)
            await asyncio.sleep(0)
    assert lanes.counts == 2, "the first, and one that is under way"
    lanes.gate.set()
    await gate.close()


async def test_near_the_bound_a_stale_count_is_made_anew(lanes: Lanes) -> None:
    gate = Admission(lanes.count, 100)
    lanes.queued[Lane.BULK] = 90
    with pytest.raises(BacklogFull):
        await gate.admit(Lane.BULK, 60)
    lanes.queued[Lane.BULK] = 0
    with pytest.raises(BacklogFull):
        await gate.admit(Lane.BULK, 60)
    assert lanes.counts == 1, "the count was fresh"
    await asyncio.sleep(0.06)
    await gate.admit(Lane.BULK, 60)
    await gate.close()


async def test_what_can_never_be_held_is_said_at_once(lanes: Lanes) -> None:
    gate = Admission(lanes.count, 10)
    with pytest.raises(InvalidInput, match="more jobs at once than lane bulk may hold, 10"):
        await gate.admit(Lane.BULK, 11)
    await gate.close()


async def test_a_batch_waits_for_room(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_SHORTEST_HINT_SECONDS", 0.05)
    monkeypatch.setattr(admission, "_FIRST_HINT_SECONDS", 0.05)
    gate = Admission(lanes.count, 10)
    lanes.queued[Lane.BULK] = 10
    waiting = asyncio.create_task(gate.admit_when_there_is_room(Lane.BULK, 1))
    await asyncio.sleep(0.15)
    assert not waiting.done()
    lanes.queued[Lane.BULK] = 9
    async with asyncio.timeout(2):
        await waiting
    await gate.close()


async def test_a_count_that_fails_is_told_only_to_who_waits_for_it(lanes: Lanes) -> None:
    gate = Admission(lanes.count, 100)
    await gate.admit(Lane.BULK, 1)
    await asyncio.sleep(0.06)
    lanes.away = True
    await gate.admit(Lane.BULK, 1)
    await asyncio.sleep(0.01)
    with pytest.raises(LedgerUnavailable):
        await gate.admit(Lane.BULK, 60)
    await gate.close()
