"""An alias that moves between versions, one of them broken, under a stream of jobs: only the answers change."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel
from sklearn.linear_model import LinearRegression

from pyfunq.client import AsyncClient
from pyfunq.entries import LoadFailure
from pyfunq.job import Job
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from tests.acceptance.conftest import settings_of
from tests.conftest import RegisterModel

RATE = 200
AT_ONCE = 500
BROKEN = 3
Eventually = Callable[..., Awaitable[Any]]


class Broken(PythonModel):
    def load_context(self, context: Any) -> None:
        raise RuntimeError("its weights are gone")

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input["x"]


@dataclass
class Stream:
    """What was promoted and submitted, when, and what came of it."""

    moves: list[tuple[float, float, int]] = field(default_factory=list)
    """When each version was promoted, when the last worker process had followed, and the version."""
    submitted: dict[Any, tuple[float, float]] = field(default_factory=dict)
    """When, and which x."""
    answers: dict[Any, tuple[float, float]] = field(default_factory=dict)
    """When, and what."""
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, client: AsyncClient, uri: str) -> None:
        """So many a second until it is enough, and never more than `AT_ONCE` of them that wait."""
        begun, room = time.monotonic(), asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for n in count():
                await asyncio.sleep(max(0.0, begun + n / RATE - time.monotonic()))
                await room.acquire()
                if self.enough.is_set():
                    break
                tasks.create_task(self._one(client, uri, float(n + 1))).add_done_callback(lambda _: room.release())

    async def _one(self, client: AsyncClient, uri: str, x: float) -> None:
        begun = time.monotonic()
        job = await client.submit(uri, {"dataframe_split": {"columns": ["x"], "data": [[x]]}})
        self.submitted[job] = (begun, x)
        (answer,) = await client.result(job, timeout=120)
        self.answers[job] = (time.monotonic(), answer)

    def answered_since(self, moment: float) -> bool:
        """Whether a job that was submitted after it has its answer."""
        return any(self.submitted[job][0] >= moment for job in list(self.answers))

    def p99_ms(self, since: float, until: float) -> float:
        took = [self.answers[job][0] - at for job, (at, _) in self.submitted.items() if since <= at < until]
        return float(1000 * np.percentile(took, 99))

    def allowed(self, submitted: float, answered: float) -> set[int]:
        """The versions that a job may have: more than one only between a promotion and its arrival."""
        good = [move for move in self.moves if move[2] != BROKEN]
        last = max(n for n, (_, arrived, _) in enumerate(good) if arrived <= submitted)
        return {version for begun, _, version in good[last:] if begun <= answered}


@pytest.fixture(scope="module")
def swapped(up: Path) -> Settings:
    """`swapped`: version v answers v times x, the third cannot be loaded."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers have no tests to import it from
    settings = settings_of(up)
    register = RegisterModel(settings.mlflow)
    x = pd.DataFrame({"x": [0.0, 1.0, 2.0]})
    for factor in (1.0, 2.0):
        register("swapped", LinearRegression().fit(x, x["x"] * factor), x)
    register("swapped", Broken(), x)
    return settings


async def promote(settings: Settings, ledger: Ledger, uri: str, version: int, eventually: Eventually) -> float:
    """Returns when all processes that serve it had followed, or had failed to load what is broken."""
    client = mlflow.MlflowClient(settings.mlflow)
    await asyncio.to_thread(client.set_registered_model_alias, "swapped", "live", str(version))

    async def followed() -> bool:
        if version == BROKEN:
            return any(f.model_uri == uri and f.reason for f in await ledger.load_failures())
        served = [s.version for s in await ledger.serving(stale_seconds=20) if s.model_uri == uri]
        return all(v == str(version) for v in served)

    await eventually(f"workers follow to version {version}", followed)
    return time.monotonic()


async def swaps(
    settings: Settings, eventually: Eventually, *, quiet: float, moves: int, every: float
) -> tuple[Stream, list[LoadFailure]]:
    """A stream of jobs, first without and then with so many promotions."""
    stream, uri = Stream(), "models:/swapped@live"

    async with AsyncClient(settings) as client, Ledger.open(settings.database) as ledger:

        async def move(version: int) -> None:
            begun = time.monotonic()
            arrived = await promote(settings, ledger, uri, version, eventually)
            stream.moves.append((begun, arrived, version))
            if running:
                await eventually("a job came and went since", lambda: stream.answered_since(arrived))

        running: asyncio.Task[None] | None = None
        await move(1)
        await client.result(await client.submit(uri, {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}))
        running = asyncio.create_task(stream.run(client, uri))
        await asyncio.sleep(quiet)
        await eventually("a job came and went", lambda: stream.answers)
        for version in islice(cycle((2, 1, BROKEN, 2, BROKEN, 1)), moves):
            begun = time.monotonic()
            await move(version)
            await asyncio.sleep(max(0.5, begun + every - time.monotonic()))
        stream.enough.set()
        await running
        jobs = {job: await client.get(job) for job in stream.submitted}
        failures = [f for f in await ledger.load_failures() if f.model_uri == uri]
    check(stream, jobs)
    return stream, failures


def check(stream: Stream, jobs: dict[Any, Job]) -> None:
    assert len(stream.answers) == len(jobs), "every job has an answer"
    checked = set()
    for job_id, (at, x) in stream.submitted.items():
        answered, answer = stream.answers[job_id]
        version = int(jobs[job_id].model_version or 0)
        assert answer == pytest.approx(version * x), "the answer is its version's"
        allowed = stream.allowed(at, answered)
        assert version in allowed, f"submitted at {at:.2f}, answered at {answered:.2f}: {stream.moves}"
        if len(allowed) == 1:
            checked.add(version)
    assert checked == {1, 2}, "of each some ran when only it could be"


async def test_promotions_under_a_stream_of_jobs(swapped: Settings, eventually: Eventually) -> None:
    _, failures = await swaps(swapped, eventually, quiet=0.5, moves=4, every=1.5)
    assert {f.version for f in failures} == {str(BROKEN)}
    assert all("its weights are gone" in str(f.reason) for f in failures)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_twenty_promotions_in_a_minute_are_not_felt(
    swapped: Settings, eventually: Eventually, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, _ = await swaps(swapped, eventually, quiet=20, moves=20, every=3)
    first = stream.moves[1][0]
    before, during = stream.p99_ms(0, first), stream.p99_ms(first, float("inf"))
    with capsys.disabled():
        print(f"\n{len(stream.answers)} jobs, p99 {before:.1f} ms before, {during:.1f} ms during 20 promotions")
        print(f"followed within {max(arrived - begun for begun, arrived, _ in stream.moves):.1f} s")
    assert during < 2 * before
