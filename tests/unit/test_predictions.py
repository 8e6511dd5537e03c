"""Predictions: sliced by job, and encoded as JSON that a strict parser takes or as Arrow."""

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import json
import random
import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pyfunq.errors import InvalidOutput
from worker.predictions import encode_each, encode_output, split_output

UTC_PLUS_2 = dt.timezone(dt.timedelta(hours=2))


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not strict JSON")


def encoded(output: Any) -> Any:
    format, payload = encode_output(output, arrow=False)
    assert format == "json"
    return json.loads(payload, parse_constant=_refuse)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Found(BaseModel):
    """What a model of type hints may return."""

    label: str
    at: dt.date | None = None
    scores: list[float] = []


NAN, INF = float("nan"), float("inf")
ID = uuid.UUID(int=7)

OUTPUTS: list[tuple[Any, Any]] = [
    (np.array([1.5, NAN, INF, -INF]), [1.5, None, None, None]),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (np.array([0.5, NAN], dtype=np.float16), [0.5, None]),
    (np.array([0.5], dtype=np.longdouble), [0.5]),
    (np.array([2**64 - 1], dtype=np.uint64), [2**64 - 1]),
    (np.array([True, False]), [True, False]),
    (np.array(["a", "é"]), ["a", "é"]),
    (np.array([b"\xff"]), ["/w=="]),
    (np.array(3.5), 3.5),
    (np.array([1, "a", None, np.float64(NAN)], dtype=object), [1, "a", None, None]),
    (np.ma.masked_array([1, 2], mask=[False, True]), [1, None]),
    (np.array(["2024-05-06T07:08:09.123456789", "NaT"], "datetime64[ns]"), ["2024-05-06T07:08:09.123456789", None]),
    (np.array([["2024-05-06"]], "datetime64[D]"), [["2024-05-06T00:00:00"]]),
    (np.array([90, "NaT"], "timedelta64[s]"), ["P0DT0H1M30S", None]),
    (np.datetime64("2024-05-06T07:08:09"), "2024-05-06T07:08:09"),
    (np.datetime64("NaT"), None),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.str_("a"), "a"),
    (np.bytes_(b"a"), "YQ=="),
    (pd.Series([1.0, NAN], name="p", index=[5, 6]), [1.0, None]),
    (pd.Series([1, None], dtype="Int64"), [1, None]),
    (pd.Series([True, None], dtype="boolean"), [True, None]),
    (pd.Series(["a", None]), ["a", None]),
    (pd.Series(["a", None], dtype="string"), ["a", None]),
    (pd.Series(["a", "b", None], dtype="category"), ["a", "b", None]),
    (pd.Series(pd.to_datetime(["2024-05-06", None])), ["2024-05-06T00:00:00", None]),
    (pd.Series(pd.to_datetime(["2024-05-06"]).tz_localize("Europe/Berlin")), ["2024-05-06T00:00:00+02:00"]),
    (pd.Series([pd.Timedelta("1s"), pd.NaT]), ["P0DT0H0M1S", None]),
    (pd.Series([[1, NAN], {"a": np.int8(1)}]), [[1, None], {"a": 1}]),
    (pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=[8, 9]), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
    (pd.DataFrame([[0.5, 0.5]], columns=[0, 1]), [{"0": 0.5, "1": 0.5}]),
    (pd.DataFrame([[0.5]], columns=[1.0]), [{"1.0": 0.5}]),
    (pd.DataFrame({"a": []}), []),
    (pd.Categorical(["a", None]), ["a", None]),
    (["a", 1, 1.5, True, None, NAN], ["a", 1, 1.5, True, None, None]),
    ([], []),
    ((1, 2), [1, 2]),
    (
        {"labels": np.array([1]), 0: "a", True: 1, dt.date(2024, 5, 6): 2},
        {"labels": [1], "0": "a", "true": 1, "2024-05-06": 2},
    ),
    ("text", "text"),
    (None, None),
    (NAN, None),
    ([pd.NA, pd.NaT, None], [None, None, None]),
    (pd.Timestamp("2024-05-06T07:08:09.000000001"), "2024-05-06T07:08:09.000000001"),
    (dt.datetime(2024, 5, 6, 7, tzinfo=UTC_PLUS_2), "2024-05-06T07:00:00+02:00"),
    ([dt.date(2024, 5, 6), dt.time(7, 8)], ["2024-05-06", "07:08:00"]),
    (dt.timedelta(days=1, seconds=1), "P1DT0H0M1S"),
    (b"\x00" * 60, base64.b64encode(b"\x00" * 60).decode()),
    (bytearray(b"a"), "YQ=="),
    ([decimal.Decimal("0.10000000000000000000001"), decimal.Decimal("NaN")], ["0.10000000000000000000001", None]),
    (ID, str(ID)),
    ([Colour.RED, Level.HIGH], ["red", 3]),
    (
        [Found(label="a", at=dt.date(2024, 5, 6), scores=[0.5, NAN])],
        [{"label": "a", "at": "2024-05-06", "scores": [0.5, None]}],
    ),
]


@pytest.mark.parametrize(("output", "expected"), OUTPUTS, ids=lambda value: type(value).__name__)
def test_json(output: Any, expected: Any) -> None:
    assert encoded(output) == expected


@dataclasses.dataclass
class Unknown:
    secret: str = "secret-value"


def _generator() -> Any:
    yield 1


def _cycle() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: 1j, "complex at predictions"),
    (lambda: np.array([1j]), "complex128 at predictions"),
    (lambda: [1, {"a": 2j}], "complex at predictions[1].a"),
    (lambda: {"secret-value"}, "set at predictions"),
    (lambda: [{"a": {1}}], "set at predictions[0].a"),
    (_generator, "generator at predictions"),
    (lambda: [Unknown()], "test_predictions.Unknown at predictions[0]"),
    (lambda: scipy.sparse.csr_matrix([[1]]), "csr_matrix at predictions"),
    (lambda: pd.Series(pd.arrays.SparseArray([1, 0])), "sparse values at predictions"),
    (lambda: pd.DataFrame({"a": pd.arrays.SparseArray([1, 0])}), "sparse values at predictions.a"),
    (lambda: pd.arrays.SparseArray([1, 0]), "SparseArray at predictions"),
    (lambda: pd.DataFrame({"a": [1, pd.DataFrame()]}), "DataFrame at predictions[1].a"),
    (lambda: pd.DataFrame({"a": [[0, pd.Series([1])]]}), "Series at predictions[0].a[1]"),
    (lambda: {"a": pd.Series([1])}, "Series at predictions.a"),
    (lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns of one name"),
    (lambda: pd.DataFrame([[1, 2]], columns=[1, "1"]), "two columns of one name"),
    (lambda: {1: 0, "1": 0}, "two keys with one text"),
    (lambda: {(1, 2): 0}, "a key of type tuple"),
    (lambda: {None: 0}, "a key of type NoneType"),
    (lambda: [2**64], "an integer beyond 64 bits at predictions[0]"),
    (lambda: [0, -(2**63) - 1], "an integer beyond 64 bits at predictions[1]"),
    (lambda: pd.Series([2**70]), "an integer beyond 64 bits at predictions[0]"),
    (lambda: ["\ud800"], "not valid Unicode"),
    (_cycle, "nested deeper"),
    (lambda: pd.Series(pd.period_range("2024", periods=1)), "Period at predictions[0]"),
    (lambda: np.array([(1, 2)], dtype=[("a", int), ("b", int)]), "at predictions"),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
@pytest.mark.parametrize("arrow", [False, True])
def test_what_json_cannot_hold_is_named_without_its_value(make: Callable[[], Any], said: str, arrow: bool) -> None:
    with pytest.raises(InvalidOutput) as caught:
        encode_output(make(), arrow=arrow)
    assert said in caught.value.message
    assert "secret-value" not in caught.value.message


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.decimals(),
    st.datetimes(),
    st.timedeltas(),
    st.uuids(),
    st.complex_numbers(),
    st.sampled_from([pd.NA, pd.NaT, np.float32(NAN), np.float64(INF), np.datetime64("NaT"), np.int8(1), Colour.RED]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers() | st.floats(), inner, max_size=3)
        | st.lists(inner, max_size=3).map(lambda items: pd.Series(items, dtype=object))
        | st.lists(inner, max_size=3).map(lambda items: pd.DataFrame({"a": pd.Series(items, dtype=object)}))
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(VALUES, st.booleans())
def test_any_output_is_strict_json_or_an_invalid_output(output: Any, arrow: bool) -> None:
    try:
        format, payload = encode_output(output, arrow=arrow)
    except InvalidOutput:
        return
    if format == "json":
        json.loads(payload.decode(), parse_constant=_refuse)


# Slices.


def test_slices_keep_their_type_and_start_at_zero() -> None:
    array = split_output(np.arange(6).reshape(3, 2), [1, 2])
    assert array is not None
    assert [part.tolist() for part in array] == [[[0, 1]], [[2, 3], [4, 5]]]
    series = split_output(pd.Series([1, 2, 3], index=[7, 8, 9], name="p"), [2, 1])
    assert series is not None
    pd.testing.assert_series_equal(series[1], pd.Series([3], name="p"))
    frame = split_output(pd.DataFrame({"a": [1, 2, 3]}, index=list("xyz")), [2, 1])
    assert frame is not None
    pd.testing.assert_frame_equal(frame[0], pd.DataFrame({"a": [1, 2]}))
    assert split_output(["a", "b", "c"], [1, 1, 1]) == [["a"], ["b"], ["c"]]
    vectors = split_output([np.zeros(4), np.ones(4)], [1, 1])
    assert vectors is not None
    assert vectors[1][0].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "output",
    [
        np.arange(3),
        np.array(5.0),
        5.0,
        None,
        "ab",
        (1, 2),
        {"a": 1, "b": 2},
        _generator(),
        [1],
        scipy.sparse.csr_matrix((2, 2)),
        # predict_proba of a classifier with two outputs
        [np.zeros((2, 3)), np.zeros((2, 4))],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_entry_per_row_is_not_sliced(output: Any) -> None:
    assert split_output(output, [1, 1]) is None


def test_a_dict_of_arrays_is_sliced_where_they_are_known_to_hold_rows() -> None:
    output = {"label": np.array([1, 2, 3]), "proba": np.eye(3)}
    assert split_output(output, [2, 1]) is None
    parts = split_output(output, [2, 1], by_name=True)
    assert parts is not None
    assert [part["label"].tolist() for part in parts] == [[1, 2], [3]]
    assert [part["proba"].shape for part in parts] == [(2, 3), (1, 3)]
    assert split_output({**output, "names": np.array(["a"])}, [2, 1], by_name=True) is None
    assert split_output({**output, "names": ["a", "b", "c"]}, [2, 1], by_name=True) is None
    assert split_output({}, [0], by_name=True) is None


def test_an_object_that_cannot_be_read_fails_only_its_own_job() -> None:
    class Broken(list[Any]):
        def __iter__(self) -> NoReturn:
            raise ZeroDivisionError

    with pytest.raises(InvalidOutput, match="cannot be read"):
        encode_output(Broken([1]), arrow=True)


COLUMNS = st.one_of(
    st.lists(st.floats(), min_size=1, max_size=6),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6),
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.lists(st.text(max_size=3), min_size=1, max_size=6),
    st.lists(st.one_of(st.text(max_size=2), st.none(), st.integers(0, 3)), min_size=1, max_size=6),
)


@settings(deadline=None)
@given(COLUMNS, st.sampled_from([None, "float32", "float16", "object"]), st.booleans(), st.randoms())
def test_encoded_at_once_each_job_has_the_result_that_it_has_alone(
    values: list[Any], dtype: str | None, series: bool, chance: random.Random
) -> None:
    if dtype in ("float32", "float16") and not all(type(value) is float for value in values):
        dtype = None
    with np.errstate(over="ignore"):
        array = np.array(values, dtype=dtype)
    output = pd.Series(array) if series else array
    cuts = sorted(chance.sample(range(1, len(values)), chance.randrange(len(values)))) if len(values) > 1 else []
    rows = [stop - start for start, stop in pairwise([0, *cuts, len(values)])]
    parts = split_output(output, rows)
    assert parts is not None
    together = encode_each(output, rows)
    if together is not None:
        assert together == [encode_output(part, arrow=False)[1] for part in parts]
    assert together is not None or array.dtype.kind in "OU"


@pytest.mark.parametrize("output", [output for output, _ in OUTPUTS])
def test_what_is_not_plain_is_encoded_one_by_one(output: Any) -> None:
    at_once = encode_each(output, [1, 1])
    if at_once is not None:
        parts = split_output(output, [1, 1])
        assert parts is not None
        assert at_once == [encode_output(part, arrow=False)[1] for part in parts]
