"""Batches through either client: from frames, files and iterables, waited for, read again in order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pandas as pd
import pytest

from pyfunq import Client
from pyfunq.client import AsyncClient
from pyfunq.errors import FileUnreadable, InvalidInput, JobFailed, PyFunQError, UnknownBatch, WaitTimeout
from pyfunq.http_bodies import batch_body
from pyfunq.http_transport import trusted
from pyfunq.job import Batch
from pyfunq.settings import Settings
from tests.integration.conftest import IRIS, SETOSA, VIRGINICA, Work

IRIS_1 = "models:/iris/1"
pytestmark = pytest.mark.usefixtures("iris_model")


@pytest.fixture(params=["direct", "http"])
async def client(request: pytest.FixtureRequest, settings: Settings, api_url: str) -> AsyncIterator[AsyncClient]:
    if request.param == "http":
        async with httpx.AsyncClient(base_url=api_url, verify=trusted()) as http:
            if "/v1/batches" not in (await http.get("/openapi.json")).json()["paths"]:
                pytest.skip("this API has no batches")
    where: dict[str, Any] = {"settings": settings} if request.param == "direct" else {"base_url": api_url}
    async with AsyncClient(**where) as opened:
        yield opened


@pytest.fixture
async def over_http(api_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(base_url=api_url) as opened:
        yield opened


@pytest.fixture
async def direct(settings: Settings) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(settings) as opened:
        yield opened


def rows(n: int) -> pd.DataFrame:
    return pd.DataFrame([VIRGINICA if i % 3 == 0 else SETOSA for i in range(n)], columns=IRIS)


def written(frame: pd.DataFrame, path: Path) -> Path:
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind.startswith("csv"):
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


def halves(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    yield frame.iloc[: len(frame) // 2]
    yield frame.iloc[len(frame) // 2 :]


SOURCES: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "frame": lambda frame, _: frame,
    "iterable": lambda frame, _: halves(frame),
    **{
        kind: lambda frame, folder, kind=kind: written(frame, folder / f"rows.{kind}")  # type: ignore[misc]
        for kind in ("parquet", "csv", "jsonl", "csv.gz", "jsonl.gz")
    },
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_from_anything(client: AsyncClient, work: Work, tmp_path: Path, kind: str) -> None:
    heard: list[int] = []
    source = SOURCES[kind](rows(250), tmp_path)
    batch = await client.submit_batch(IRIS_1, source, chunk_rows=100, retries=1, on_progress=heard.append)
    assert (batch.rows, batch.jobs, heard[-1], batch.model_uri) == (250, 3, 250, IRIS_1)
    seen: list[Batch] = []
    ended = asyncio.create_task(client.wait_batch(batch, timeout=60, on_progress=seen.append))
    while not ended.done():
        await work.all()
        await asyncio.wait([ended], timeout=0.02)
    assert (await ended).is_final
    assert seen[-1].rows_finished == 250
    frames = [frame async for frame in client.batch_frames(batch)]
    assert pd.concat(frames)["prediction"].tolist() == [2 if i % 3 == 0 else 0 for i in range(250)]
    assert [part.index async for part in client.batch_results(batch)] == [0, 1, 2]


async def test_data_at_fault_are_refused(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "rows.txt").write_text("x")
    for name in ("damaged.parquet", "rows.txt", "none.csv"):
        with pytest.raises(FileUnreadable):
            await client.submit_batch(IRIS_1, tmp_path / name)
    for source in (42, pd.DataFrame({"x": []}), iter(())):
        with pytest.raises(InvalidInput):
            await client.submit_batch(IRIS_1, source)


async def test_wait_and_cancel(client: AsyncClient) -> None:
    batch = await client.submit_batch(IRIS_1, rows(10), chunk_rows=5)
    with pytest.raises(WaitTimeout, match=r"after 0\.3 s"):
        await client.wait_batch(batch, timeout=0.3)
    with pytest.raises(WaitTimeout):
        [frame async for frame in client.batch_frames(batch)]
    assert (await client.cancel_batch(batch)).is_final
    assert (await client.get_batch(str(batch.id))).finished == 2
    for call in (client.get_batch, client.cancel_batch, client.wait_batch):
        with pytest.raises(UnknownBatch):
            await call(uuid4())  # type: ignore[operator]


async def test_without_an_event_loop(client: AsyncClient, settings: Settings, work: Work) -> None:
    url = client._settings.api_url
    where: dict[str, Any] = {"settings": settings} if url is None else {"base_url": url}

    def program() -> list[int]:
        with Client(**where) as sync:
            batch = sync.submit_batch(IRIS_1, rows(20), chunk_rows=10)
            sync.wait_batch(batch, timeout=60, progress=True)
            found: list[int] = pd.concat(batch.results())["prediction"].tolist()
            return found

    ended = asyncio.create_task(asyncio.to_thread(program))
    while not ended.done():
        await work.all()
        await asyncio.wait([ended], timeout=0.02)
    assert sum(await ended) == 14


async def test_parts_are_the_same_over_http(
    direct: AsyncClient, over_http: AsyncClient, work: Work, moody_model: str
) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 13.0, 4.0, 5.0]})
    batch = await direct.submit_batch(moody_model, frame, chunk_rows=2)
    ended = asyncio.create_task(direct.wait_batch(batch, timeout=60))
    while not ended.done():
        await work.all()
        await asyncio.wait([ended], timeout=0.02)
    ours = [part async for part in over_http.batch_results(batch)]
    theirs = [part async for part in direct.batch_results(batch)]
    assert [(part.index, part.rows) for part in ours] == [(0, 2), (1, 2), (2, 1)]
    for our, their in zip(ours, theirs, strict=True):
        assert (our.index, our.rows, type(our.error)) == (their.index, their.rows, type(their.error))
        assert str(our.error) == str(their.error)
        assert type(our.result) is type(their.result)
        if our.error is None:
            assert np.asarray(our.result).tolist() == np.asarray(their.result).tolist()
            assert np.asarray(our.result).dtype == np.asarray(their.result).dtype
    assert isinstance(ours[1].error, JobFailed)
    with pytest.raises(UnknownBatch):
        [part async for part in over_http.batch_results(uuid4())]


async def test_frames_are_streamed_as_they_are_made() -> None:
    made = 0

    def frames() -> Iterator[pd.DataFrame]:
        nonlocal made
        for _ in range(50):
            made += 1
            yield rows(1000)

    stream = batch_body(frames()).stream()
    await anext(stream)
    assert made <= 2
    assert sum([1 async for _ in stream]) >= 50


async def test_frames_that_differ_are_refused() -> None:
    body = batch_body(iter([rows(2), pd.DataFrame({"x": [1]})]))
    with pytest.raises(PyFunQError, match="DataFrame 2"):
        [block async for block in body.stream()]
