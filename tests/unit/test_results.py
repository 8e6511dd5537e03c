"""Results: what the worker encoded comes back equal, and takes the caller's index."""

from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from pyfunq.errors import InvalidOutput
from pyfunq.results import decode_result, with_index
from worker.predictions import encode_output

TIMES = np.array(["2024-05-06T07:08:09.123456789", "NaT"], "datetime64[ns]")

ARROW_OUTPUTS: list[Any] = [
    np.array([1.5, np.nan, np.inf]),
    np.array([0.5], dtype=np.float32),
    np.array([0.5], dtype=np.float16),
    np.array([1, -1], dtype=np.int8),
    np.array([True, False]),
    np.array(["a", "bcd"]),
    np.array([], dtype=np.int64),
    TIMES,
    np.array(["2024-05-06"], "datetime64[D]"),
    np.arange(6.0).reshape(3, 2),
    np.asfortranarray(np.arange(6).reshape(3, 2)),
    np.array([[True], [False]]),
    np.empty((0, 3)),
    pd.Series([1.5, None], name="p"),
    pd.Series([1, 2], name=3),
    pd.Series([1, 2]),
    pd.Series(["a", None]),
    pd.Series([True, None]),
    pd.Series([1, None], dtype="Int64"),
    pd.Series(["a", "b"], dtype="category"),
    pd.Series(TIMES),
    pd.DataFrame({"label": ["x", "y"], "p": [0.5, np.nan], "raw": [b"\x00", None]}),
    pd.DataFrame(np.eye(2)),
    [1, 2, None],
    ["a", None],
    [1.5, float("inf")],
    [True],
]


def assert_equal(result: Any, expected: Any) -> None:
    assert type(result) is type(expected)
    if isinstance(expected, pd.Series):
        pd.testing.assert_series_equal(result, expected)
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(result, expected)
    elif isinstance(expected, np.ndarray):
        assert result.dtype == expected.dtype
        assert result.flags.writeable
        np.testing.assert_array_equal(result, expected)
    else:
        assert result == expected


@pytest.mark.parametrize("output", ARROW_OUTPUTS, ids=lambda value: type(value).__name__)
def test_arrow_round_trip(output: Any) -> None:
    format, payload = encode_output(output, arrow=True)
    assert format == "arrow"
    assert_equal(decode_result(format, payload), output)


@pytest.mark.parametrize(
    "output",
    [
        np.array([1, "a"], dtype=object),
        np.ma.masked_array([1.0], mask=[True]),
        np.zeros((2, 2, 2)),
        np.zeros((2, 0)),
        np.array([1], dtype=">i4"),
        pd.DataFrame({"a": [[1], {"b": 2}]}),
        pd.DataFrame([[1, 2]], columns=["1", 2]),
        pd.Series([1, "a"]),
        pd.Series(pd.to_datetime(["2024-05-06"]).tz_localize("Europe/Berlin")),
        [1, 2.5],
        [1, True],
        [],
        [[1]],
        {"a": 1},
        "text",
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_arrow_cannot_hold_or_would_change_stays_json(output: Any) -> None:
    format, payload = encode_output(output, arrow=True)
    assert (format, payload) == encode_output(output, arrow=False)
    assert decode_result(format, payload) == orjson.loads(payload)


def test_large_results_are_compressed_where_it_pays() -> None:
    _, repetitive = encode_output(np.zeros(10_000), arrow=True)
    assert len(repetitive) < 5_000
    _, small = encode_output(np.zeros(10), arrow=True)
    noise = np.random.default_rng(0).random(10_000)
    format, stored = encode_output(noise, arrow=True)
    assert len(stored) < noise.nbytes + len(small)
    assert_equal(decode_result(format, stored), noise)


def test_json_results_are_python_values() -> None:
    frame = pd.DataFrame({"a": [1.5, None]})
    assert decode_result(*encode_output(frame, arrow=False)) == [{"a": 1.5}, {"a": None}]


@pytest.mark.parametrize(
    ("format", "payload"),
    [("json", b"{"), ("arrow", b""), ("arrow", b"junk" * 10), ("pickle", b"")],
)
def test_damaged_results(format: str, payload: bytes) -> None:
    with pytest.raises(InvalidOutput):
        decode_result(format, payload)


def test_arrow_without_its_kind_is_refused() -> None:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    table = pa.table({"a": [1]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InvalidOutput, match=r"pyfunq\.kind"):
        decode_result("arrow", sink.getvalue().to_pybytes())


LABELS = pd.Index(["x", "y"], name="key")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (np.array([1, 2]), pd.Series([1, 2], index=LABELS)),
        (np.array([[1, 2], [3, 4]]), pd.DataFrame([[1, 2], [3, 4]], index=LABELS)),
        ([1.5, None], pd.Series([1.5, None], index=LABELS)),
        ([[1, 2], [3, 4]], pd.DataFrame([[1, 2], [3, 4]], index=LABELS)),
        ([{"a": 1}, {"a": 2}], pd.DataFrame({"a": [1, 2]}, index=LABELS)),
        ([[1], [2, 3]], pd.Series([[1], [2, 3]], index=LABELS)),
        ([[[1]], [[2]]], pd.Series([[[1]], [[2]]], index=LABELS)),
        (["a", "b"], pd.Series(["a", "b"], index=LABELS)),
        (pd.Series([1, 2], name="p"), pd.Series([1, 2], name="p", index=LABELS)),
        (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 2]}, index=LABELS)),
    ],
)
def test_with_index(result: Any, expected: Any) -> None:
    assert_equal(with_index(result, LABELS), expected)


def test_with_index_of_cubes_and_of_nothing() -> None:
    series = with_index(np.arange(8).reshape(2, 2, 2), LABELS)
    assert series["y"].tolist() == [[4, 5], [6, 7]]
    assert with_index([], []).empty


@pytest.mark.parametrize("result", [[1], np.zeros(3), pd.Series([1]), 5.0, "ab", {"a": 1, "b": 2}, None, np.array(1)])
def test_with_index_refuses_other_lengths_and_what_has_no_rows(result: Any) -> None:
    with pytest.raises(InvalidOutput):
        with_index(result, LABELS)


def test_with_index_leaves_the_result_as_it_was() -> None:
    series = pd.Series([1, 2])
    with_index(series, LABELS)
    assert series.index.tolist() == [0, 1]
