"""Concurrent questions share statements; each gets its own answer, or the error."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from pyfunq.gathered import Gathered


class Oracle:
    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, keys: Sequence[int]) -> Mapping[int, str]:
        self.asked.append(list(keys))
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return {key: str(key) for key in keys if key >= 0}


async def test_what_comes_during_a_statement_is_asked_with_the_next() -> None:
    oracle = Oracle()
    gathered = Gathered(oracle, at_most=3)
    first = asyncio.create_task(gathered.get(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert oracle.asked == [[1]], "one alone is asked at once"
    others = [asyncio.create_task(gathered.get(key)) for key in (1, 2, 2, -3, 4, 5)]
    await asyncio.sleep(0)
    oracle.go_on.set()
    assert await first == "1"
    assert await asyncio.gather(*others) == ["1", "2", "2", None, "4", "5"]
    assert oracle.asked == [[1], [1, 2, -3], [4, 5]]
    assert await gathered.get(6) == "6"
    await gathered.close()


async def test_an_error_is_for_those_who_asked_then() -> None:
    oracle = Oracle()
    oracle.go_on.set()
    oracle.error = OSError("away")
    gathered = Gathered(oracle)
    failed = await asyncio.gather(gathered.get(1), gathered.get(2), return_exceptions=True)
    assert [str(error) for error in failed] == ["away", "away"]
    oracle.error = None
    assert await gathered.get(1) == "1"


async def test_one_who_gave_up_takes_nobody_along() -> None:
    oracle = Oracle()
    gathered = Gathered(oracle)
    impatient, patient = (asyncio.create_task(gathered.get(1)) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    oracle.go_on.set()
    assert await patient == "1"
    with pytest.raises(asyncio.CancelledError):
        await impatient
