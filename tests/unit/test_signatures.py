"""What is known of signatures: asked for once by many, and kept while it is asked for anew."""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pyfunq import signatures as module
from pyfunq.entries import ModelTags, ModelVersion, Resolution
from pyfunq.signatures import Signatures

URI = "models:/a@champion"
Begin = Callable[..., Awaitable["asyncio.Task[Any]"]]
ONE, OTHER = (json.dumps([{"name": name, "type": "double", "required": True}]) for name in "xy")


class Ledger:
    """Answers once it may go on."""

    def __init__(self, signature: str | None = ONE) -> None:
        self.signature = signature
        self.asked: list[str] = []
        self.under_way = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.error: Exception | None = None
        self.knows_it = True
        self.tags = ModelTags()

    async def resolution(self, model_uri: str) -> Resolution | None:
        self.asked.append(model_uri)
        self.under_way += 1
        try:
            await self.go_on.wait()
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        version = ModelVersion(
            name="a",
            version=str(len(self.asked)),
            created_ms=0,
            source="",
            run_id=None,
            experiment_id=None,
            signature=self.signature,
        )
        return Resolution(model_uri=model_uri, version=version, tags=self.tags) if self.knows_it else None


@pytest.fixture
def stale_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH_SECONDS", 0.0)


@pytest.fixture
async def reports() -> list[dict[str, Any]]:
    """What asyncio reports: nobody asked for it."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


@pytest.fixture
def begun(eventually: Callable[..., Any]) -> Begin:
    """Somebody who waits for the ledger's answer, which is under way."""

    async def begin(ledger: Ledger, signatures: Signatures, model_uri: str = URI) -> "asyncio.Task[Any]":
        before = len(ledger.asked)
        asking = asyncio.create_task(signatures.get(model_uri))
        await eventually("the ledger is asked", lambda: len(ledger.asked) > before)
        return asking

    return begin


async def test_many_at_once_ask_once_and_so_do_those_who_come_soon_after() -> None:
    ledger = Ledger()
    signatures = Signatures(ledger.resolution)
    found = await asyncio.gather(*(signatures.get(URI) for _ in range(50)))
    assert found[0] is not None
    assert [column.name for column in found[0].columns] == ["x"]
    assert {id(one) for one in found} == {id(found[0])}
    assert await signatures.get(URI) is found[0]
    assert ledger.asked == [URI]
    await signatures.get("models:/b/1")
    assert ledger.asked == [URI, "models:/b/1"]


@pytest.mark.parametrize(("knows_it", "signature"), [(False, ONE), (True, None), (True, "")])
async def test_that_there_is_none_is_an_answer_too(knows_it: bool, signature: str | None) -> None:
    ledger = Ledger(signature)
    ledger.knows_it = knows_it
    signatures = Signatures(ledger.resolution)
    assert [await signatures.get(URI) for _ in range(3)] == [None] * 3
    assert ledger.asked == [URI]


async def test_while_one_asks_anew_the_others_go_on_with_what_was_known(begun: Begin, stale_at_once: None) -> None:
    ledger = Ledger()
    signatures = Signatures(ledger.resolution)
    old = await signatures.get(URI)
    assert old is not None
    ledger.signature = OTHER
    ledger.go_on.clear()
    asking = await begun(ledger, signatures)
    async with asyncio.timeout(5):
        for _ in range(10):
            assert await signatures.get(URI) is old
    assert not asking.done()
    assert ledger.asked == [URI] * 2
    ledger.go_on.set()
    new = await asking
    assert new is not None
    assert [column.name for column in new.columns] == ["y"]


async def test_the_same_signature_stays_the_same_object(stale_at_once: None) -> None:
    ledger = Ledger()
    signatures = Signatures(ledger.resolution)
    first = await signatures.get(URI)
    assert await signatures.get(URI) is first, "of another version"
    ledger.signature = OTHER
    assert await signatures.get(URI) not in (None, first)
    ledger.knows_it = False
    assert await signatures.get(URI) is None
    assert len(ledger.asked) == 4


async def test_an_error_is_for_those_who_wait_and_the_next_one_asks_again() -> None:
    ledger = Ledger()
    ledger.error = OSError("away")
    signatures = Signatures(ledger.resolution)
    failed = await asyncio.gather(*(signatures.get(URI) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in failed] == ["away"] * 3
    assert ledger.asked == [URI]
    ledger.error = None
    assert await signatures.get(URI) is not None


async def test_an_error_takes_nothing_from_what_was_known(stale_at_once: None) -> None:
    ledger = Ledger()
    signatures = Signatures(ledger.resolution)
    old = await signatures.get(URI)
    ledger.error = OSError("away")
    with pytest.raises(OSError, match="away"):
        await signatures.get(URI)
    ledger.error = None
    assert await signatures.get(URI) is old


async def test_one_who_gave_up_takes_nobody_along(begun: Begin) -> None:
    ledger = Ledger()
    ledger.go_on.clear()
    signatures = Signatures(ledger.resolution)
    impatient, patient = await begun(ledger, signatures), asyncio.create_task(signatures.get(URI))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    ledger.go_on.set()
    assert await patient is not None
    assert ledger.asked == [URI]


async def test_an_error_that_nobody_waits_for_any_more_is_not_reported(
    begun: Begin, eventually: Callable[..., Any], reports: list[dict[str, Any]]
) -> None:
    ledger = Ledger()
    ledger.error = OSError("away")
    ledger.go_on.clear()
    signatures = Signatures(ledger.resolution)
    impatient = await begun(ledger, signatures)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    ledger.go_on.set()
    await eventually("the answer is there", lambda: not signatures._asking)
    gc.collect()
    assert reports == []


async def test_it_closes_while_it_asks(begun: Begin, reports: list[dict[str, Any]]) -> None:
    ledger = Ledger()
    ledger.go_on.clear()
    signatures = Signatures(ledger.resolution)
    waiting = [await begun(ledger, signatures, uri) for uri in (URI, "models:/b/1")]
    assert ledger.under_way == 2
    async with asyncio.timeout(10):
        await signatures.close()
    assert ledger.under_way == 0
    assert [type(end) for end in await asyncio.gather(*waiting, return_exceptions=True)] == [asyncio.CancelledError] * 2
    del waiting
    gc.collect()
    assert reports == []
    await signatures.close()


async def test_the_models_queue_comes_with_its_signature(stale_at_once: None) -> None:
    ledger = Ledger()
    signatures = Signatures(ledger.resolution)
    assert signatures.queue(URI) is None
    for queue in ("model.gpu", None, "model.other"):
        ledger.tags = ModelTags(queue=queue)
        await signatures.get(URI)
        assert signatures.queue(URI) == queue
    ledger.knows_it = False
    await signatures.get(URI)
    assert signatures.queue(URI) is None
    assert len(ledger.asked) == 4
    await signatures.close()
