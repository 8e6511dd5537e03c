"""An alias that moves between versions, one of them broken, under a stream of jobs: only the answers change."""

import asyncio
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle, islice
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
WATCH_SECONDS = 0.5  # of the fixture `up`
BROKEN = 3


class Broken(PythonModel):
    def load_context(self, context: Any) -> None:
        raise RuntimeError("its weights are gone")

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input["x"]


@dataclass
class Stream:
    """What was promoted and submitted, when, and what came of it."""

    promoted: list[tuple[float, int]] = field(default_factory=list)
    submitted: dict[Any, tuple[float, float]] = field(default_factory=dict)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    answers: dict[Any, float] = field(default_factory=dict)

    async def run(self, client: AsyncClient, uri: str, seconds: float) -> None:
        begun = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for n in range(int(RATE * seconds)):
                await asyncio.sleep(max(0.0, begun + n / RATE - time.monotonic()))
                tasks.create_task(self._one(client, uri, float(n + 1)))

    async def _one(self, client: AsyncClient, uri: str, x: float) -> None:
        begun = time.monotonic()
        job = await client.submit(uri, {"dataframe_split": {"columns": ["x"], "data": [[x]]}})
        self.submitted[job] = (begun, x)
        self.answers[job] = (await client.result(job, timeout=60))[0]
        self.seconds.append((begun, time.monotonic() - begun))

    def p99_ms(self, since: float, until: float) -> float:
        return float(np.percentile([1000 * s for at, s in self.seconds if since <= at < until], 99))

    def expected(self, at: float, patience: float) -> int | None:
        """The version that a job submitted then must have; None shortly after a promotion."""
        before = [(when, version) for when, version in self.promoted if when <= at]
        if at <= before[-1][0] + patience:
            return None
        return next(version for _, version in reversed(before) if version != BROKEN)


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


async def promote(settings: Settings, stream: Stream, version: int) -> None:
    client = mlflow.MlflowClient(settings.mlflow)
    await asyncio.to_thread(client.set_registered_model_alias, "swapped", "live", str(version))
    stream.promoted.append((time.monotonic(), version))


async def swaps(settings: Settings, *, quiet: float, moves: int, every: float) -> tuple[Stream, list[LoadFailure]]:
    """A stream of jobs, first without and then with so many promotions."""
    stream, uri = Stream(), "models:/swapped@live"
    await promote(settings, stream, 1)
    async with AsyncClient(settings) as client:
        await client.result(await client.submit(uri, {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}))
        running = asyncio.create_task(stream.run(client, uri, quiet + moves * every))
        await asyncio.sleep(quiet)
        for version in islice(cycle((2, 1, BROKEN, 2, BROKEN, 1)), moves):
            await promote(settings, stream, version)
            await asyncio.sleep(every)
        await running
        jobs: dict[Any, Job] = {}
        for job in stream.submitted:
            jobs[job] = await client.get(job)
    async with Ledger.open(settings.database) as ledger:
        failures = [f for f in await ledger.load_failures() if f.model_uri == uri]
        load = max(s.load_seconds for s in await ledger.serving(stale_seconds=20) if s.model_uri == uri)
    check(stream, jobs, WATCH_SECONDS + load + 1)
    return stream, failures


def check(stream: Stream, jobs: dict[Any, Job], patience: float) -> None:
    assert len(stream.answers) == len(jobs), "every job has an answer"
    checked = set()
    for job_id, (at, x) in stream.submitted.items():
        version = int(jobs[job_id].model_version or 0)
        assert stream.answers[job_id] == pytest.approx(version * x), "the answer is its version's"
        if (expected := stream.expected(at, patience)) is not None:
            assert version == expected, f"{at - stream.promoted[0][0]:.2f} s: {stream.promoted}"
            checked.add(version)
    assert checked == {1, 2}


async def test_promotions_under_a_stream_of_jobs(swapped: Settings) -> None:
    _, failures = await swaps(swapped, quiet=0.5, moves=4, every=2.5)
    assert {f.version for f in failures} == {str(BROKEN)}
    assert all("its weights are gone" in str(f.reason) for f in failures)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_twenty_promotions_in_a_minute_are_not_felt(
    swapped: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, _ = await swaps(swapped, quiet=20, moves=20, every=3)
    first = stream.promoted[1][0]
    before, during = stream.p99_ms(0, first), stream.p99_ms(first, float("inf"))
    with capsys.disabled():
        print(f"\n{len(stream.answers)} jobs, p99 {before:.1f} ms before, {during:.1f} ms during 20 promotions")
    assert during < 2 * before
