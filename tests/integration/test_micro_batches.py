"""However jobs are put together into micro-batches, each has the ending that it has alone.

Bit for bit, save where the model's own arithmetic depends on how many rows it is given: BLAS adds in another order for
one row than for several, so the last bits of a linear model's numbers may differ.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.pyfunc import PythonModel
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge

from pyfunq.entries import ClaimedJob, ModelTags, Outcome
from pyfunq.ids import new_id
from pyfunq.inputs import encode_input
from pyfunq.results import decode_result
from tests.conftest import RegisterModel
from tests.integration.conftest import IRIS
from worker.process import WorkerProcess
from worker.run_batch import Model, Setback, predict


class Particular(PythonModel):
    """Sums rows; raises on one value, answers one row short on another, with that row's text on a third."""

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        first = model_input.iloc[:, 0]
        if (first == 7.0).any():
            raise ValueError("not seven")
        sums = model_input.sum(axis=1).to_numpy()
        if (first == 6.0).any():
            return sums[:-1]
        return [str(total) if x == 5.0 else total for x, total in zip(first, sums.tolist(), strict=True)]


@pytest.fixture(scope="session")
def various_models(register: RegisterModel) -> list[str]:
    x, y = load_iris(as_frame=True, return_X_y=True)
    x.columns = IRIS
    register("various-logistic", LogisticRegression(max_iter=500).fit(x, y), x)
    register("various-forest", RandomForestClassifier(20, max_depth=5, random_state=0).fit(x, y), x)
    register("various-ridge", Ridge().fit(x, np.sin(y)), x)
    register("various-particular", Particular(), None)
    return [f"models:/various-{kind}/1" for kind in ("logistic", "forest", "ridge", "particular")]


LOGISTIC, RIDGE = "models:/various-logistic/1", "models:/various-ridge/1"
VALUES = st.one_of(st.sampled_from([5.0, 6.0, 7.0]), st.floats(0, 8, width=32), st.integers(0, 8))
ROWS = st.one_of(
    st.lists(st.lists(kind, min_size=4, max_size=4), min_size=1, max_size=5) for kind in (VALUES, st.integers(0, 8))
)
DEFECTS = ["none"] * 6 + ["column missing", "column more", "text", "null", "columns turned round"]
FORMS = ["dataframe_split", "dataframe_records"]
JOBS = st.lists(
    st.tuples(ROWS, st.sampled_from(DEFECTS), st.sampled_from(FORMS), st.booleans()), min_size=2, max_size=12
)


def body(rows: list[list[Any]], defect: str, form: str) -> dict[str, Any]:
    columns, rows = list(IRIS), [list(row) for row in rows]
    match defect:
        case "column missing":
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        case "column more":
            columns, rows = [*columns, "more"], [[*row, 1.0] for row in rows]
        case "text":
            rows[-1][1] = "wide"
        case "null":
            rows[-1][2] = None
        case "columns turned round":
            columns, rows = columns[::-1], [row[::-1] for row in rows]
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    return {form: {"columns": columns, "data": rows} if form == "dataframe_split" else records}


def claimed(uri: str, rows: list[list[Any]], defect: str, form: str, arrow: bool) -> ClaimedJob:
    given: Any = body(rows, defect, form)
    if arrow and defect in ("none", "columns turned round", "column missing"):
        columns = given[form]["columns"] if form == "dataframe_split" else list(given[form][0])
        given = pd.DataFrame([[float(x) for x in row] for row in rows], columns=IRIS)[columns]
    encoded = encode_input(given, None, signature=None, max_bytes=10**6)
    return ClaimedJob(
        id=new_id(),
        attempt=1,
        model_uri=uri,
        queue="bulk",
        rows=encoded.rows,
        input_format=encoded.format,
        input=encoded.payload,
        params=encoded.params,
        version_id=None,
        confidence=True,
    )


@pytest.fixture
def models(process: WorkerProcess, various_models: list[str]) -> Iterator[list[tuple[str, Model]]]:
    with ExitStack() as in_use:
        opened = []
        for uri in various_models:
            job = claimed(uri, [[1.0] * 4], "none", FORMS[0], False)
            version = process.desk.resolve(job)[0].version
            opened.append(
                (
                    uri,
                    Model(in_use.enter_context(process.models.use(version)), version, ModelTags(confidence=True)),
                )
            )
        yield opened


def gist(end: Outcome | Setback) -> Any:
    if isinstance(end, Setback):
        return type(end.error), end.error.message
    return end.status, end.result_format, end.error


def assert_same(uri: str, end: Outcome | Setback, alone: Outcome | Setback) -> None:
    assert gist(end) == gist(alone)
    if not isinstance(end, Outcome) or not isinstance(alone, Outcome) or end.result is None or alone.result is None:
        return
    if uri != RIDGE:
        assert end.result == alone.result
    else:
        together, apart = (decode_result(str(o.result_format), o.result or b"") for o in (end, alone))
        assert list(together) == pytest.approx(list(apart), rel=1e-12)
    if uri != LOGISTIC:
        assert end.confidence == alone.confidence
    else:
        assert end.confidence == pytest.approx(alone.confidence, rel=1e-12)


def test_any_split_of_jobs_gives_each_the_ending_that_it_has_alone(
    models: list[tuple[str, Model]],
) -> None:
    shared = 0

    @settings(
        max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(which=st.integers(0, len(models) - 1), wanted=JOBS, cuts=st.sets(st.integers(1, 11)), order=st.randoms())
    def check(which: int, wanted: list[Any], cuts: set[int], order: Any) -> None:
        nonlocal shared
        uri, model = models[which]
        jobs = [claimed(uri, *one) for one in wanted]
        alone = {job.id: predict(model, [job])[0] for job in jobs}
        order.shuffle(jobs)
        edges = [0, *sorted(cut for cut in cuts if cut < len(jobs)), len(jobs)]
        for start, stop in pairwise(edges):
            part = jobs[start:stop]
            ends = predict(model, part)
            assert {end.job.id for end in ends} == {job.id for job in part}
            assert len(ends) == len(part)
            for end in ends:
                assert_same(uri, end, alone[end.job.id])
            shared += len(part) > 1

    check()
    assert shared > 50, "micro-batches of several jobs were among them"
