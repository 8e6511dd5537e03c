"""Who waits for whom on one worker of two processes: backlogs, models and lanes."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import PythonModel

from pyfunq.client import Client
from pyfunq.job import Batch, Lane
from tests.acceptance.conftest import settings_of
from tests.conftest import RegisterModel

CHUNK_SECONDS = 0.1
LARGE, SMALL = 150, 6


class Steady(PythonModel):
    """As many seconds for a chunk as for a single row."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        import time

        time.sleep(0.1)
        return model_input["x"]


@pytest.fixture(scope="module")
def steady(up: Path) -> list[str]:
    """Two models."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers have no tests to import it from
    uri = json.loads((up / "endpoints.json").read_text())["endpoints"]["mlflow_tracking_uri"]
    for name in ("steady", "other"):
        RegisterModel(uri)(name, Steady(), pd.DataFrame({"x": [1.0]}))
    return ["models:/steady/1", "models:/other/1"]


@pytest.fixture
def client(up: Path) -> Iterator[Client]:
    with Client(settings_of(up)) as opened:
        yield opened


def rows(chunks: int) -> pd.DataFrame:
    """Chunks of the default size: what is smaller goes in company."""
    return pd.DataFrame({"x": np.arange(chunks * 10_000, dtype=float)})


@pytest.fixture
def large(client: Client, steady: list[str]) -> Iterator[Batch]:
    """A backlog that takes some seconds."""
    batch = client.submit_batch(steady[0], rows(LARGE))
    yield batch
    client.cancel_batch(batch)


@pytest.mark.parametrize("model", [0, 1])
def test_a_small_batch_does_not_wait_for_a_large_one(
    client: Client, steady: list[str], large: Batch, model: int
) -> None:
    small = client.submit_batch(steady[model], rows(SMALL))
    client.wait_batch(small, timeout=60)
    done = client.get_batch(large).finished
    assert done < LARGE / 2, "they share the worker"


def test_two_batches_share_the_worker_evenly(client: Client, steady: list[str], large: Batch) -> None:
    begun = client.get_batch(large).finished
    second = client.submit_batch(steady[1], rows(30))
    client.wait_batch(second, timeout=60)
    meanwhile = client.get_batch(large).finished - begun
    assert 15 <= meanwhile <= 60, "about as many as the other's 30"


def test_an_interactive_job_waits_for_one_running_chunk_at_most(
    client: Client, steady: list[str], large: Batch
) -> None:
    waits = []
    for _ in range(10):
        begun = time.monotonic()
        client.result(client.submit(steady[1], {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}), timeout=60)
        waits.append(time.monotonic() - begun)
    assert client.get_batch(large).finished < LARGE
    # Its own prediction takes as long as a chunk's.
    assert sorted(waits)[len(waits) // 2] < 4 * CHUNK_SECONDS


def test_a_backlog_moves_on_under_a_flood_of_interactive_jobs(client: Client, steady: list[str], large: Batch) -> None:
    one = {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}
    begun = client.get_batch(large).finished
    deadline = time.monotonic() + 30
    waiting: list[Any] = []
    while client.get_batch(large).finished < begun + 3:
        assert time.monotonic() < deadline, "it starves"
        # Of models that cannot share a call: each is a message of its own.
        waiting += [client.submit(uri, one, lane=Lane.INTERACTIVE) for uri in steady]
    for job in waiting:
        client.cancel(job)
