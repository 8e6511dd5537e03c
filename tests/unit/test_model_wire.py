"""What goes to a model's own process and comes back is what it was, or makes the same predictions of it."""

import datetime as dt
import socket
import threading
from collections import OrderedDict, namedtuple
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfunq.errors import InvalidOutput
from worker import model_wire
from worker.frames import build_frame, read_input
from worker.predictions import encode_each, encode_output, split_output

ROWS = 3
TIMES = pd.DatetimeIndex(["2026-01-01T00:00:00.123456789", None, "1999-12-31T00:00:00.000000000"]).as_unit("ns")


def sent(value: Any) -> Any:
    """The value after its way over a socket."""
    here, there = socket.socketpair()
    with here, there:
        writing = threading.Thread(target=model_wire.send, args=(here, model_wire.pack(value)))
        writing.start()
        got = model_wire.receive(there)
        writing.join()
    return got


BERLIN, UTC = TIMES.tz_localize("Europe/Berlin"), TIMES.tz_localize("UTC")
RECORDS = [{"a": [1, 2.5, None], "b": {"$": "x"}}, [1, "2", [True]], 7]
ARRAYS = [np.arange(3), np.array(["a", None], object), np.zeros((0, 2))]
FRAMES = {
    "doubles": pd.DataFrame(np.arange(12.0).reshape(4, 3).T.copy().T, columns=list("abc")),
    "mixed": pd.DataFrame({"d": [1.0, np.nan], "f": np.array([1, 2], "f4"), "i": [1, -2], "s": ["x", None]}),
    "numbers": pd.DataFrame({"i8": np.array([1, 2], "i1"), "u": np.array([2**64 - 1, 0], "u8"), "b": [True, False]}),
    "half": pd.DataFrame({"h": np.array([1, 2], "f2"), "c": np.array([1j, 2])}),
    "texts": pd.DataFrame({"s": ["ä\n", "\ud800"[:0]], "o": pd.Series(["x", None], dtype=object)}),
    "arrow texts": pd.DataFrame({"s": pd.array(["x", None], dtype="string")}),
    "bytes": pd.DataFrame({"b": pd.Series([b"\x00\xff", None], dtype=object)}),
    "times": pd.DataFrame({"t": TIMES, "z": BERLIN, "u": UTC,
                           "s": TIMES.as_unit("s"), "d": TIMES - TIMES[0]}),
    "objects": pd.DataFrame({"o": pd.Series(RECORDS, dtype=object)}),
    "exotic": pd.DataFrame({"o": pd.Series(
        [pd.NaT, pd.NA, np.nan, 2**70, Decimal("1.10"), dt.date(2026, 1, 2),
         dt.datetime(2026, 1, 2, 3, 4, 5, 6, dt.UTC), dt.time(1, 2), dt.timedelta(1, 2, 3), UUID(int=5),
         np.float32(1.5), np.int64(3), np.str_("n"), (1, "t"),
         pd.Timestamp("2026-01-01", tz="UTC"), pd.Timedelta(5, "ms"), np.datetime64("2026-01-01"), {1: "one", None: 0}],
        dtype=object)}),
    "arrays": pd.DataFrame({"o": pd.Series(ARRAYS, dtype=object)}),
    "nullable": pd.DataFrame({"i": pd.array([1, None], dtype="Int32"), "b": pd.array([True, None], dtype="boolean"),
                              "f": pd.array([1.5, None], dtype="Float64")}),
    "categories": pd.DataFrame({"c": pd.Categorical(["b", None, "a"], categories=["b", "a", "z"], ordered=True),
                                "n": pd.Categorical([3, 1, 3])}),
    "periods": pd.DataFrame({"p": pd.period_range("2026", periods=2, freq="D"), "i": pd.interval_range(0, 2)}),
    "sparse": pd.DataFrame({"s": pd.arrays.SparseArray([0.0, 1.0])}),
    "arrow": pd.DataFrame({"l": pd.array([[1], [2, 3]], dtype=pd.ArrowDtype(pa.list_(pa.int64())))}),
    "labels": pd.DataFrame([[1, 2], [3, 4]], columns=[0, "one"], index=pd.Index(["r", "s"], name="rows")),
    "twice": pd.DataFrame([[1, "x"], [3, "y"]], columns=["a", "a"]),
    "levels": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", None])),
    "range": pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(4, 8, 2, name="n")),
    "days": pd.DataFrame({"a": [1, 2]}, index=pd.DatetimeIndex(["2026-01-01", "2026-01-02"])),
    "no rows": pd.DataFrame({"a": pd.Series([], dtype="float64"), "s": pd.Series([], dtype="str")}),
    "no columns": pd.DataFrame(index=pd.RangeIndex(3)),
    "nothing": pd.DataFrame(),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_arrives_as_it_was(name: str) -> None:
    frame = FRAMES[name]
    got = sent(frame)
    pd.testing.assert_frame_equal(got, frame, check_exact=True, check_freq=False)
    assert type(got.index) is type(frame.index)
    assert type(got.columns) is type(frame.columns)
    for place in range(frame.shape[1]):
        column, expected = got.iloc[:, place], frame.iloc[:, place]
        assert repr(column.dtype) == repr(expected.dtype)
        if expected.dtype == object:
            assert [type(v) for v in column] == [type(v) for v in expected]


def test_a_frame_that_arrived_can_be_changed_and_lies_in_memory_as_it_did() -> None:
    got = sent(FRAMES["doubles"])
    values, expected = got.to_numpy(), FRAMES["doubles"].to_numpy()
    assert (values.flags.f_contiguous, values.strides) == (expected.flags.f_contiguous, expected.strides)
    for name in ("doubles", "mixed", "numbers", "times", "categories", "nullable"):
        got = sent(FRAMES[name])
        for place in range(got.shape[1]):
            got.iloc[0, place] = got.iloc[1, place]
        assert got.iloc[0].astype(object).where(got.iloc[0].notna(), None).tolist() == (
            got.iloc[1].astype(object).where(got.iloc[1].notna(), None).tolist()
        )


CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(), st.text(max_size=5), st.binary(max_size=4),
    st.dates(), st.datetimes(), st.decimals(allow_nan=False), st.uuids(),
)  # fmt: skip
VALUES = st.recursive(
    CELLS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(VALUES, max_size=6))
def test_values_arrive_as_they_were(values: list[Any]) -> None:
    assert repr(sent(values)) == repr(values)
    series = pd.Series(values, dtype=object)
    got = sent({"s": series})["s"]
    assert got.dtype == object
    assert repr(got.tolist()) == repr(values)


@settings(deadline=None)
@given(
    st.sampled_from(["f8", "f4", ">f8", "i8", "u2", "?", "U3", "S2", "M8[ns]", "m8[s]", "c16"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.booleans(),
)
def test_arrays_arrive_with_type_shape_and_order(dtype: str, shape: list[int], is_fortran: bool) -> None:
    array = np.arange(int(np.prod(shape))).astype("i8").reshape(shape).astype(dtype, order="F" if is_fortran else "C")
    got = sent(array)
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert got.tobytes() == array.tobytes()
    assert got.flags.f_contiguous == array.flags.f_contiguous
    assert got.flags.writeable


def test_inputs_of_tensors_arrive_as_built() -> None:
    for payload in (b'{"instances":[[1.5,2],[3,4]]}', b'{"inputs":{"a":[[1],[2]],"b":["x","y"]}}'):
        content = read_input("tensor", payload, None).content
        built: Any = build_frame("tensor", [content], None)
        got = sent(built)
        assert type(got) is type(built)
        pairs = [(got[k], built[k]) for k in built] if isinstance(built, dict) else [(got, built)]
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


class Colour(Enum):
    RED = "red"


class Own:
    """A class of the model's."""


class OwnFrame(pd.DataFrame):
    pass


Pair = namedtuple("Pair", "a b")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


OUTPUTS: dict[str, Any] = {
    **{f"frame of {name}": frame for name, frame in FRAMES.items()},
    **{f"series of {name}": frame.iloc[:, 0] for name, frame in FRAMES.items() if frame.shape[1]},
    "array": np.arange(ROWS),
    "floats": np.array([1.5, np.nan, np.inf]),
    "rows": np.arange(6.0).reshape(3, 2),
    "one column": np.arange(3.0).reshape(3, 1),
    "texts": np.array(["a", "b", "c"]),
    "objects": np.array(["a", "b", None], dtype=object),
    "times": np.array(["2026-01-01", "NaT", "2026"], dtype="M8[ns]"),
    "number": np.array(5),
    "masked": np.ma.MaskedArray([1, 2, 3], [0, 1, 0]),
    "longs": np.arange(3, dtype=np.longdouble),
    "structured": np.zeros(3, dtype=[("a", "f8"), ("b", "i4")]),
    "complex": np.array([1j, 2, 3]),
    "matrix": np.arange(9).reshape(3, 3).T,
    "list": [1, 2, 3],
    "list of arrays": [np.arange(3), np.arange(3), np.arange(3)],
    "list of numpy": [np.float32(0.1), np.int64(2), np.str_("x")],
    "list of lists": [[1, 2], [3], []],
    "list of records": [{"label": "a", "score": np.float64(0.5)}, {"label": "b", "score": 1}, {}],
    "bytes": [b"a", bytearray(b"b"), memoryview(b"c")],
    "big": [2**63, -(2**63), 5],
    "too big": [2**64, 1, 2],
    "dict": {"predictions": np.arange(3), "frame": [1, {"a": (1, 2)}]},
    "ordered": OrderedDict(b=1, a=2),
    "keys": {1: "a", 2.5: "b", False: "c", dt.date(2026, 1, 1): "d"},
    "tuple": (1, "a"),
    "named": Pair(1, 2),
    "text": "answer",
    "enum": [Colour.RED] * 3,
    "scalar": np.float32(0.25),
    "None": None,
    "Nones": [None, None, "x"],
    "own": Own(),
    "own inside": [1, {"a": Own()}, 3],
    "class": Own,
    "set": {1},
    "generator": (x for x in ()),
    "function": len,
    "complex number": 1j,
    "own frame": OwnFrame({"a": [1, 2, 3]}),
    "index": pd.Index(["a", "b", "c"]),
    "extension": pd.array([1, None, 3], dtype="Int64"),
    "surrogate": ["\ud800"],
    "deep": deep(99),
    "too deep": deep(120),
}


COUNTED = (np.ndarray, pd.Series, pd.DataFrame, list)


def predicted(output: Any, arrow: bool) -> Any:
    try:
        return encode_output(output, arrow=arrow)
    except InvalidOutput as exc:
        return str(exc)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("arrow", [False, True])
def test_what_a_model_returned_makes_the_same_results(name: str, arrow: bool) -> None:
    output = OUTPUTS[name]
    got = sent(output)
    assert predicted(got, arrow) == predicted(output, arrow)
    rows = [1] * (len(output) if isinstance(output, COUNTED) and getattr(output, "shape", None) != () else 1)
    assert encode_each(got, rows) == encode_each(output, rows)
    parts, expected = split_output(got, rows), split_output(output, rows)
    assert (parts is None) == (expected is None)
    assert [predicted(p, arrow) for p in parts or ()] == [predicted(p, arrow) for p in expected or ()]


def test_what_is_nested_without_end_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(model_wire.TooDeepError):
        model_wire.pack(endless)


@pytest.mark.parametrize("noise", [b"", b"PFQ1", b"a model wrote this where it should not have"])
def test_what_is_no_message_is_not_read(noise: bytes) -> None:
    here, there = socket.socketpair()
    with there:
        with here:
            here.sendall(noise)
        with pytest.raises((EOFError, ValueError)):
            model_wire.receive(there)
