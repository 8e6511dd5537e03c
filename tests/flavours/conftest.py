"""Models of many kinds, logged as users log them, and asked through client, ledger and worker process."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import mlflow
import pandas as pd
import pytest

from pyfunq.client import AsyncClient
from pyfunq.errors import InvalidInput, JobFailed
from tests.conftest import Servers, logging_to
from tests.integration.conftest import Work, client, process, work
from worker import run_batch

__all__ = ["client", "process", "work"]


@contextmanager
def quiet() -> Iterator[None]:
    """For what libraries warn of while a model is made, logged or asked beside the product."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class LogModel:
    """`log(name, mlflow.sklearn.log_model, sk_model=...)` registers a model; gives `models:/name/version`."""

    tracking_uri: str

    def __call__(self, name: str, log_model: Callable[..., Any], /, *, scores: bool = False, **how: Any) -> str:
        with quiet(), logging_to(self.tracking_uri, "flavours"), mlflow.start_run():
            logged = log_model(name="model", registered_model_name=name, pip_requirements=[], **how)
        if scores:
            mlflow.MlflowClient(self.tracking_uri).set_registered_model_tag(name, "pyfunq.confidence", "on")
        return f"models:/{name}/{logged.registered_model_version}"


@pytest.fixture(scope="session")
def log(servers: Servers) -> LogModel:
    return LogModel(servers.mlflow)


@dataclass
class Trial:
    """Asks a model by all of a job's steps; `calls` has the number of jobs of each call since it was last asked."""

    client: AsyncClient
    work: Work
    database: str
    calls: list[int]

    async def one(self, uri: str, inputs: Any, params: dict[str, Any] | None = None) -> Any:
        (answer,) = await self._ask(uri, [inputs], params)
        return answer

    async def _ask(self, uri: str, inputs: Sequence[Any], params: dict[str, Any] | None) -> list[Any]:
        self.calls.clear()
        jobs = await self.client.submit_many(uri, inputs, params=params)
        await self.work.all()
        return [await self.client.result(job) for job in jobs]

    async def together(
        self, uri: str, inputs: Sequence[Any], params: dict[str, Any] | None = None, *, one_call: bool = True
    ) -> list[Any]:
        """The answers of jobs that are submitted together, once it was seen that each has them alone too."""
        answers = await self._ask(uri, inputs, params)
        assert (self.calls == [len(inputs)]) is one_call, self.calls
        for input_, answer in list(zip(inputs, answers, strict=True))[:4]:
            assert_same(await self.one(uri, input_, params), answer)
        return answers

    async def rows(
        self, uri: str, frame: pd.DataFrame, params: dict[str, Any] | None = None, *, one_call: bool = True
    ) -> list[Any]:
        """`together` of the frame's rows, each a job: one answer a row."""
        answers = await self.together(
            uri, [split(frame.iloc[[i]]) for i in range(len(frame))], params, one_call=one_call
        )
        assert {len(answer) for answer in answers} == {1}
        return [answer for (answer,) in answers]

    async def batch(self, uri: str, frame: pd.DataFrame) -> pd.DataFrame:
        """What a backlog of the frame gives, cut in two or three."""
        batch = await self.client.submit_batch(uri, frame, chunk_rows=-(-len(frame) // 3))
        await self.work.all()
        parts = [part async for part in self.client.batch_frames(batch)]
        assert len(parts) > 1
        return pd.concat(parts, ignore_index=True)

    async def refusal(self, uri: str, inputs: Any, params: dict[str, Any] | None = None) -> str:
        """What the worker says of an input that it refuses; what the client knows of the model later says no less."""
        self.calls.clear()
        try:
            job = await self.client.submit(uri, inputs, params=params)
        except InvalidInput as error:
            return error.message
        await self.work.all()
        with pytest.raises(JobFailed) as caught:
            await self.client.result(job)
        return f"{caught.value.error_code}: {caught.value}"

    async def scores(self, uri: str, frame: pd.DataFrame) -> list[float]:
        """The confidence score of each of the frame's rows, each a job."""
        jobs = await self.client.submit_many(uri, [split(frame.iloc[[i]]) for i in range(len(frame))])
        await self.work.all()
        connection = await asyncpg.connect(self.database)
        try:
            query = "SELECT job_id, confidence_scores FROM model_predictions"
            found = {row["job_id"]: row["confidence_scores"] for row in await connection.fetch(query)}
        finally:
            await connection.close()
        return [score for job in jobs for score in found[job.id]]


@pytest.fixture
def trial(client: AsyncClient, work: Work, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Trial:
    calls: list[int] = []
    call = run_batch._call

    def counted(model: Any, group: Sequence[Any], frame: Any) -> Any:
        calls.append(len(group))
        return call(model, group, frame)

    monkeypatch.setattr(run_batch, "_call", counted)
    return Trial(client, work, database_url, calls)


def split(frame: pd.DataFrame) -> dict[str, Any]:
    """The frame as a caller writes it in JSON."""
    return {
        "dataframe_split": {
            "columns": list(frame.columns),
            "data": [list(map(_json, r)) for r in frame.to_numpy(object)],
        }
    }


def _json(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def assert_same(one: Any, other: Any) -> None:
    """Equal but for the last bits of floats."""
    if isinstance(one, list):
        assert isinstance(other, list)
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
    else:
        assert (type(one), one) == (type(other), other)
