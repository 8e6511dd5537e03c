"""Which version serves a model URI: the swap and what holds it back, preloading, and many models in a small cache."""

import asyncio
import gc
import itertools
import os
import random
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import pytest
from mlflow.pyfunc import PythonModel
from sklearn.linear_model import LinearRegression

from pyfunq.client import AsyncClient
from pyfunq.entries import LoadFailure
from pyfunq.errors import InvalidInput, JobFailed
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.conftest import RegisterModel
from tests.integration.conftest import Work, split
from worker.memory import own_memory, trim
from worker.process import WorkerProcess
from worker.upkeep import registry_watch

_names = itertools.count(1)


@pytest.fixture
def patient(settings: Settings) -> Settings:
    return settings.model_copy(update={"load_failure_seconds": 0.5})


@contextmanager
def running(settings: Settings) -> Iterator[WorkerProcess]:
    process = WorkerProcess(settings)
    try:
        yield process
    finally:
        process.close()


def times(register: RegisterModel, name: str, factor: float, columns: tuple[str, ...] = ("x",), **where: Any) -> int:
    """A version that answers so many times its first column."""
    x = pd.DataFrame({column: [0.0, 1.0, 2.0] if column == columns[0] else [0.0] * 3 for column in columns})
    return register(name, LinearRegression().fit(x, x[columns[0]] * factor), x, **where)


class Answering:
    """Submits, works and waits, in one process."""

    def __init__(self, client: AsyncClient, process: WorkerProcess, ledger: Ledger) -> None:
        self.client, self.process, self.ledger = client, process, ledger

    async def __call__(self, uri: str, x: float = 3.0, columns: tuple[str, ...] = ("x",)) -> float:
        job = await self.client.submit(uri, split([x] * len(columns), columns=list(columns)))
        await Work(self.process, self.ledger).all()
        return round(float((await self.client.result(job))[0]), 6)

    async def becomes(self, uri: str, wanted: float) -> bool:
        return await self(uri) == wanted


@asynccontextmanager
async def answering(settings: Settings, ledger: Ledger) -> AsyncIterator[Answering]:
    async with AsyncClient(settings) as client:
        with running(settings) as process:
            yield Answering(client, process, ledger)


async def watch(answer: Answering) -> None:
    await asyncio.to_thread(registry_watch, answer.process)


def alias(settings: Settings, name: str, version: int) -> None:
    mlflow.MlflowClient(settings.mlflow).set_registered_model_alias(name, "live", str(version))


class Broken(PythonModel):
    """Cannot be loaded while the file that its name says does not exist."""

    def __init__(self, path: str) -> None:
        self.path = path

    def load_context(self, context: Any) -> None:
        with open(self.path):
            pass

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input["x"] * 100


class Failing(PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        raise ValueError("never")


async def failures(ledger: Ledger) -> list[LoadFailure]:
    return [f for f in await ledger.load_failures() if f.reason is not None]


async def test_what_cannot_be_loaded_is_held_back_until_it_can(
    patient: Settings, ledger: Ledger, register: RegisterModel, tmp_path: Path, eventually: Any
) -> None:
    name, uri = "held-back", "models:/held-back@live"
    times(register, name, 1.0, alias="live")
    async with answering(patient, ledger) as answer:
        assert await answer(uri) == 3.0
        register(name, Broken(str(tmp_path / "there")), pd.DataFrame({"x": [1.0]}), alias="live")
        await watch(answer)
        assert await answer(uri) == 3.0
        (failure,) = await eventually("the failure is told", lambda: failures(ledger))
        assert (failure.version, failure.tries) == ("2", 1)
        assert "cannot be loaded: FileNotFoundError" in str(failure.reason)
        assert await answer(uri) == 3.0
    async with answering(patient, ledger) as answer:
        assert await answer(uri) == 3.0, "a process that starts now has nothing in memory, and does not begin with it"
        (tmp_path / "there").touch()
        await eventually("it can be loaded now", lambda: answer.becomes(uri, 300.0))
        await eventually("it says so", lambda: serves(ledger, uri, "2"))
        await ledger.prune_models()
        assert await serves(ledger, uri, "2"), "of processes that live nothing is forgotten"


async def serves(ledger: Ledger, uri: str, version: str) -> bool:
    return {s.version for s in await ledger.serving(stale_seconds=60) if s.model_uri == uri} == {version}


async def test_what_fails_where_the_one_before_does_not_is_held_back(
    patient: Settings, ledger: Ledger, register: RegisterModel, eventually: Any
) -> None:
    name, uri = "failing", "models:/failing@live"
    times(register, name, 1.0, alias="live")
    async with answering(patient, ledger) as answer:
        assert await answer(uri) == 3.0
        register(name, Failing(), pd.DataFrame({"x": [1.0]}), alias="live")
        await watch(answer)
        (failure, *_) = await eventually("the failure is told", lambda: failures(ledger))
        assert failure.reason == "it fails on a row that failing/1 takes: ValueError"
        assert await answer(uri) == 3.0
        alias(patient, name, 1)
        await watch(answer)
        assert await answer(uri) == 3.0


async def test_a_signature_that_does_not_take_what_is_queued_waits_for_its_end(
    patient: Settings, ledger: Ledger, register: RegisterModel, eventually: Any
) -> None:
    name, uri = "other-columns", "models:/other-columns@live"
    times(register, name, 1.0, alias="live")
    async with answering(patient, ledger) as answer:
        assert await answer(uri) == 3.0
        queued = await answer.client.submit(uri, split([5.0], columns=["x"]))
        times(register, name, 2.0, ("x", "y"), alias="live")
        await watch(answer)
        (failure, *_) = await eventually("the failure is told", lambda: failures(ledger))
        assert (
            failure.reason
            == "column 'y' is required and may be missing; 1 of 1 jobs looked at, which are queued, would fail"
        )
        await Work(answer.process, ledger).all()
        assert await answer.client.result(queued) == [pytest.approx(5.0)]
        await eventually("nothing is queued that it does not take", lambda: serves(ledger, uri, "2"))

        async def takes_both() -> bool:
            with suppress(InvalidInput):  # the client keeps what it knows of a signature for a moment
                return await answer(uri, 3.0, ("x", "y")) == 6.0
            return False

        await eventually("clients know its columns", takes_both)


async def test_going_back_loads_nothing(
    patient: Settings, ledger: Ledger, register: RegisterModel, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, uri = "back", "models:/back@live"
    times(register, name, 1.0, alias="live")
    async with answering(patient, ledger) as answer:
        assert await answer(uri) == 3.0
        times(register, name, 2.0, alias="live")
        await watch(answer)
        await eventually("version 2 serves", lambda: answer.becomes(uri, 6.0))
        monkeypatch.setattr("worker.loading.load", lambda *_: pytest.fail("nothing is to be loaded"))
        alias(patient, name, 1)
        await watch(answer)
        await eventually("version 1 serves again", lambda: answer.becomes(uri, 3.0))


async def test_what_ended_a_process_is_not_tried_again_at_once(
    patient: Settings, ledger: Ledger, register: RegisterModel, eventually: Any
) -> None:
    """A version whose load kills: the processes that come after go on with the one before."""
    name, uri = "deadly", "models:/deadly@live"
    times(register, name, 1.0, alias="live")
    async with answering(patient, ledger) as answer:
        assert await answer(uri) == 3.0
        times(register, name, 2.0, alias="live")
        dead = WorkerProcess(patient)
        await watch(answer)
        version = (await ledger.asked_models([uri], await ledger.clock()))[0].wanted
        assert version is not None
        await ledger.begin_load(dead.id, uri, version[0], pause_seconds=300.0)
        dead.close()
    async with answering(patient, ledger) as answer:
        assert await answer(uri) == 3.0
        assert await ledger.ended_in_load(os.uname().nodename, version[0])
        assert await answer(uri) == 3.0
        await ledger.begin_load(dead.id, uri, version[0], pause_seconds=0.0)
        await eventually("after a while it is tried", lambda: answer.becomes(uri, 6.0))


async def test_preloaded_models_are_there_before_the_first_job_and_stay(
    patient: Settings, ledger: Ledger, register: RegisterModel, eventually: Any
) -> None:
    for n in range(1, 6):
        times(register, f"early{n}", float(n))
    settings = patient.model_copy(
        update={"preload": ("models:/early1/1", "models:/early2/latest"), "model_cache_count": 3}
    )
    async with answering(settings, ledger) as answer:
        early = {str(v) for v in answer.process.models.versions()}
        assert early == {"early1/1", "early2/1"}
        for n in (3, 4, 5):
            assert await answer(f"models:/early{n}/1") == 3.0 * n
        assert early <= {str(v) for v in answer.process.models.versions()}, "pinned"
        await ledger.ask_to_warm("models:/early3/latest")
        await eventually("it was asked for", lambda: serves(ledger, "models:/early3/latest", "1"))


async def test_models_load_at_the_same_time_but_each_only_once(
    patient: Settings, ledger: Ledger, register: RegisterModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("together1", "together2")
    for name in names:
        times(register, name, 1.0)
    both = threading.Barrier(2, timeout=20)
    real = __import__("worker.loading").loading.load

    def load(*args: Any) -> Any:
        both.wait()
        return real(*args)

    monkeypatch.setattr("worker.loading.load", load)
    with running(patient) as process:
        wanted = [await asyncio.to_thread(process.desk.look_up, f"models:/{name}/1") for name in names]

        def use(n: int) -> str:
            with process.serving.use(f"models:/{names[n % 2]}/1", wanted[n % 2]) as model:
                return str(model.version)

        used = await asyncio.gather(*(asyncio.to_thread(use, n) for n in range(8)))
        assert set(used) == {"together1/1", "together2/1"}


@contextmanager
def frozen() -> Iterator[None]:
    """What is there is left alone by the garbage collector, as in a worker."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


async def many_models(
    settings: Settings, register: RegisterModel, *, models: int, room: int, loads: int, measure: Callable[[int], None]
) -> None:
    """Models in random order through a cache that has room for a few of them."""
    prefix = f"many{next(_names)}-"
    for n in range(models):
        times(register, f"{prefix}{n}", float(n))
    with frozen(), running(settings.model_copy(update={"model_cache_count": room})) as process:
        loaded, chance = 0, random.Random(1)  # noqa: S311
        uris = [f"models:/{prefix}{n}/1" for n in range(models)]
        wanted = [await asyncio.to_thread(process.desk.look_up, uri) for uri in uris]

        def use(n: int) -> None:
            nonlocal loaded
            loaded += not process.models.holds(wanted[n].version)
            with process.serving.use(uris[n], wanted[n]) as model:
                assert model.predict(pd.DataFrame({"x": [2.0]}), None)[0] == pytest.approx(2.0 * n)
                assert len(process.models.versions()) <= room

        while loaded < loads:
            await asyncio.to_thread(use, chance.randrange(models))
            measure(loaded)


async def test_many_models_in_a_small_cache(patient: Settings, register: RegisterModel) -> None:
    await many_models(patient, register, models=5, room=2, loads=20, measure=lambda _: None)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_two_thousand_loads_leak_nothing(
    patient: Settings, register: RegisterModel, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[int, tuple[int, int, int, int]] = {}

    def measure(loaded: int) -> None:
        if loaded % 500 == 0 and loaded not in seen:
            trim()
            process = psutil.Process()
            temporary = len(os.listdir(tempfile.gettempdir()))
            seen[loaded] = (own_memory(), process.num_fds(), process.num_threads(), temporary)

    await many_models(patient, register, models=40, room=10, loads=2000, measure=measure)
    with capsys.disabled():
        for loaded, (memory, fds, threads, temporary) in sorted(seen.items()):
            print(
                f"\n{loaded} loads: {memory / 2**20:.1f} MiB, {fds} fds, {threads} threads, {temporary} temp files",
                end="",
            )
    first, last = seen[500], seen[2000]
    assert last[0] - first[0] < 20 * 2**20
    assert all(now <= before + 3 for before, now in zip(first[1:], last[1:], strict=True))


async def test_a_first_version_that_cannot_be_loaded_fails_its_jobs_and_is_told(
    patient: Settings, ledger: Ledger, register: RegisterModel, tmp_path: Path, eventually: Any
) -> None:
    register("never", Broken(str(tmp_path / "nowhere")), pd.DataFrame({"x": [1.0]}))
    async with answering(patient, ledger) as answer:
        for _ in range(3):
            with pytest.raises(JobFailed, match="FileNotFoundError"):
                await answer("models:/never/1")
        (failure,) = await failures(ledger)
        assert failure.tries == 1, "for a while it is not tried again"
