"""Rows of a call: what workers measured bounds micro-batches and the jobs of new batches."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel

from pyfunq.client import AsyncClient
from pyfunq.entries import ModelTags, ModelVersion
from pyfunq.ledger import Ledger
from tests.conftest import RegisterModel
from tests.integration.conftest import Work, split
from tests.integration.test_ledger import CAPS, living_worker, new_job, submit
from tests.programs import ask, until

URI = "models:/slow_rows/1"


class SlowRows(PythonModel):
    """Takes 0.5 ms a row."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        time.sleep(0.0005 * len(model_input))
        return model_input["x"].to_numpy()


async def test_calls_that_take_long_make_the_next_batchs_jobs_smaller(
    client: AsyncClient, work: Work, database_url: str, register: RegisterModel, tmp_path: Path
) -> None:
    register("slow_rows", SlowRows(), None)
    frame = pd.DataFrame({"x": range(1_000)}, dtype=float)
    first = await client.submit_batch(URI, frame)
    assert first.jobs == 1, "nobody knows yet how long it takes"
    await work.all()
    await client.submit(URI, split([1.0], columns=["x"]))
    for _ in range(2):
        await client.submit_batch(URI, frame, chunk_rows=1_000)
        await work.all()
    measured = "SELECT call_rows FROM resolution WHERE call_rows IS NOT NULL"
    ((rows,),) = await asyncio.to_thread(until, "the pace is noted", lambda: ask(database_url, measured), 10)
    assert rows == 100, "0.05 s, and the fewest that there are"

    frame.to_parquet(path := tmp_path / "rows.parquet")
    batch = await client.submit_batch(URI, path)
    assert batch.jobs == 10
    assert (await client.submit_batch(URI, frame, chunk_rows=500)).jobs == 2, "who asks for a size gets it"
    await work.all()
    pd.testing.assert_series_equal(
        pd.concat([part async for part in client.batch_frames(batch)], ignore_index=True)["prediction"],
        frame["x"],
        check_names=False,
    )


@pytest.mark.parametrize(("tag", "measured", "bound"), [(None, 25, 25), (15, 25, 15), (40, 25, 25), (None, None, None)])
async def test_what_was_measured_bounds_a_claim_as_the_tag_does(
    ledger: Ledger, tag: int | None, measured: int | None, bound: int | None
) -> None:
    uri = "models:/iris/1"
    version = ModelVersion(name="iris", version="1", created_ms=1, source="s", run_id=None, experiment_id=None)
    await ledger.point(uri, version, ModelTags(max_rows=tag))
    if measured is not None:
        await ledger.set_call_rows(uri, measured)
    page = await submit(ledger, *(new_job(uri, rows=10) for _ in range(5)))
    jobs = await ledger.claim(page, await living_worker(ledger), **CAPS)
    assert len(jobs) == (5 if bound is None else -(-bound // 10))
    assert {job.max_rows for job in jobs} == {bound}


async def test_a_new_version_keeps_the_pace_until_it_is_measured(ledger: Ledger) -> None:
    uri = "models:/iris@champion"
    for number in ("1", "2"):
        version = ModelVersion(
            name="iris", version=number, created_ms=1, source=number, run_id=None, experiment_id=None
        )
        await ledger.point(uri, version, ModelTags())
        if number == "1":
            await ledger.set_call_rows(uri, 700)
    known = await ledger.resolution(uri)
    assert known is not None
    assert known.call_rows == 700
    assert [r.call_rows for r in await ledger.resolutions()] == [700]
