"""Frames: what MLflow's own enforcement takes unchanged, what is refused, and which jobs may share one."""

import base64
import io
import time
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.models.utils import _enforce_schema
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Object, Property

from pyfunq.errors import InvalidInput
from worker import frames
from worker.frames import read_input, read_inputs


def layout_key(format: str, payload: bytes, schema: Schema | None) -> Any:
    return read_input(format, payload, schema).key


def build_frame(format: str, payloads: list[bytes], schema: Schema | None) -> Any:
    inputs = read_inputs(format, payloads, schema)
    for read in inputs:
        if isinstance(read, InvalidInput):
            raise read
    return frames.build_frame(format, [read.content for read in inputs if not isinstance(read, InvalidInput)], schema)


def split(columns: list[str], *rows: list[Any]) -> bytes:
    return orjson.dumps({"columns": columns, "data": list(rows)})


def arrow(table: pa.Table, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def schema_of(**types: Any) -> Schema:
    return Schema([ColSpec(type_, name) for name, type_ in types.items()])


def enforced(frame: Any, schema: Schema) -> Any:
    """What the model would get; it must be what was built."""
    result = _enforce_schema(frame, schema)
    if isinstance(frame, pd.DataFrame):
        pd.testing.assert_frame_equal(result, frame)
    else:
        np.testing.assert_array_equal(result, frame)
    return frame


EVERY = schema_of(d="double", f="float", n="long", i="integer", b="boolean", s="string", x="binary", t="datetime")


def test_every_type_from_json_passes_enforcement_unchanged() -> None:
    blob = base64.b64encode(b"\x00\xff").decode()
    columns = ["t", "x", "s", "b", "i", "n", "f", "d"]
    first = split(columns, ["2024-05-06T07:08:09.123456789", blob, "a", True, 3, 2**62, 1, 1])
    second = split(columns, ["2024-05-06", blob + "\n", "b", False, -3, 2.0, 0.5, 2.5])
    assert layout_key("split", first, EVERY) == layout_key("split", second, EVERY)
    frame = enforced(build_frame("split", [first, second], EVERY), EVERY)
    assert list(frame.columns) == ["d", "f", "n", "i", "b", "s", "x", "t"]
    assert [str(frame[c].dtype) for c in "dfnibt"] == [
        "float64",
        "float32",
        "int64",
        "int32",
        "bool",
        "datetime64[ns]",
    ]
    assert frame["n"].tolist() == [2**62, 2]
    assert frame["x"].tolist() == [b"\x00\xff"] * 2
    assert frame["t"][0] == pd.Timestamp("2024-05-06T07:08:09.123456789")
    assert frame["d"].tolist() == [1.0, 2.5]


def test_every_type_from_arrow_passes_enforcement_unchanged() -> None:
    table = pa.table(
        {
            "t": pa.array([np.datetime64("2024-05-06T07:08:09", "s")]),
            "x": pa.array([b"\x00"], pa.large_binary()),
            "s": pa.array(["a"]).dictionary_encode(),
            "b": pa.array([True]),
            "i": pa.array([3], pa.int8()),
            "n": pa.array([2**62], pa.uint64()),
            "f": pa.array([0.5], pa.float64()),
            "d": pa.array([7], pa.int64()),
        }
    )
    payload = arrow(table, "zstd")
    assert layout_key("arrow", payload, EVERY) == layout_key("arrow", arrow(table), EVERY)
    frame = enforced(build_frame("arrow", [payload, arrow(table)], EVERY), EVERY)
    assert frame["n"].tolist() == [2**62] * 2
    assert frame["d"].dtype == np.float64
    assert frame["s"].tolist() == ["a", "a"]
    assert frame["t"].tolist() == [pd.Timestamp("2024-05-06T07:08:09")] * 2


def test_nulls_where_the_type_has_room_for_them() -> None:
    schema = schema_of(d="double", s="string", t="datetime", b="boolean")
    payload = split(["d", "s", "t", "b"], [None, None, None, None], [1, "a", "2024-01-01", True])
    from_json = enforced(build_frame("split", [payload], schema), schema)
    table = pa.table(
        {
            "d": [None, 1.0],
            "s": [None, "a"],
            "t": [None, "2024-01-01"],
            "b": [None, True],
        }
    )
    from_arrow = enforced(build_frame("arrow", [arrow(table)], schema), schema)
    for frame in (from_json, from_arrow):
        assert np.isnan(frame["d"][0])
        assert pd.isna(frame["s"][0])
        assert frame["t"].isna().tolist() == [True, False]
        assert frame["b"].tolist() == [None, True]
    all_null = enforced(
        build_frame("arrow", [arrow(pa.table({c: pa.nulls(1) for c in "dst"} | {"b": pa.nulls(1)}))], schema), schema
    )
    assert all_null.isna().all(axis=None)


REFUSED = [
    ("long", 1.5, "long"),
    ("long", None, "null"),
    ("long", True, "boolean"),
    ("long", "1", "text"),
    ("long", 2**63, "range"),
    ("long", 1e300, "fraction"),
    ("integer", 2**31, "range"),
    ("integer", None, "null"),
    ("double", "1.5", "text"),
    ("double", True, "boolean"),
    ("double", [1.0], "list"),
    ("float", 1e300, "range"),
    ("boolean", 1, "integer"),
    ("string", 1, "integer"),
    ("string", {}, "object"),
    ("binary", "not base64!", "base64"),
    ("datetime", "yesterday", "ISO 8601"),
    ("datetime", "now", "ISO 8601"),
    ("datetime", "", "ISO 8601"),
    ("datetime", "NaT", "ISO 8601"),
    ("datetime", "2024-01-01T00:00:00Z", "UTC offset"),
    ("datetime", "3000-01-01", "range"),
    ("datetime", 1700000000, "integer"),
]


@pytest.mark.parametrize(("type_", "value", "said"), REFUSED)
def test_values_that_the_type_cannot_hold(type_: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        build_frame("split", [split(["ok", "col"], [0, value])], schema_of(ok="double", col=type_))
    assert caught.value.field == "col"
    assert "col" in caught.value.message
    assert type_ in caught.value.message
    assert said in caught.value.message
    if isinstance(value, str) and len(value) > 2:
        assert value not in caught.value.message.removeprefix("column col")


@pytest.mark.parametrize(
    ("type_", "column"),
    [
        ("long", pa.array([1.0, 2.0])),
        ("long", pa.array([1, None])),
        ("long", pa.array([2**63], pa.uint64())),
        ("integer", pa.array([2**31])),
        ("double", pa.array([True])),
        ("double", pa.array(["1"])),
        ("float", pa.array([1e300])),
        ("string", pa.array([1])),
        ("boolean", pa.array([1])),
        ("binary", pa.array(["eA=="])),
        ("datetime", pa.array([0], pa.timestamp("s", "UTC"))),
        ("datetime", pa.array([10**12], pa.timestamp("s"))),
    ],
)
def test_arrow_columns_that_the_type_cannot_hold(type_: str, column: pa.Array) -> None:
    with pytest.raises(InvalidInput) as caught:
        build_frame("arrow", [arrow(pa.table({"col": column}))], schema_of(col=type_))
    assert caught.value.field == "col"
    assert type_ in caught.value.message


def test_large_integers_are_fine_for_a_double() -> None:
    schema = schema_of(d="double")
    frame = enforced(build_frame("split", [split(["d"], [2**53 + 1], [2**63])], schema), schema)
    assert frame["d"].tolist() == [float(2**53 + 1), float(2**63)]


def test_missing_and_extra_columns_are_named() -> None:
    schema = Schema([ColSpec("double", "a"), ColSpec("double", "b"), ColSpec("double", "c", required=False)])
    for format, payload in (("split", split(["a", "z"], [1, 2])), ("arrow", arrow(pa.table({"a": [1], "z": [1]})))):
        with pytest.raises(InvalidInput, match="missing columns: b; columns that the model does not take: z"):
            build_frame(format, [payload], schema)
    assert list(build_frame("split", [split(["b", "a"], [1, 2])], schema).columns) == ["a", "b"]


def test_unnamed_columns_go_by_position() -> None:
    schema = Schema([ColSpec("double"), ColSpec("long")])
    frame = enforced(build_frame("split", [split(["p", "q"], [1, 2])], schema), schema)
    assert [str(t) for t in frame.dtypes] == ["float64", "int64"]
    with pytest.raises(InvalidInput, match="2 columns, not 1"):
        build_frame("split", [split(["p"], [1])], schema)


def test_nested_columns_pass_enforcement() -> None:
    schema = schema_of(
        v=Array(DataType.double), o=Object([Property("k", DataType.double), Property("s", DataType.string)])
    )
    payload = split(["v", "o"], [[2, 3], {"k": 7, "s": "x"}], [[0.5], {"k": 0.5, "s": "y"}])
    frame = build_frame("split", [payload], schema)
    result = _enforce_schema(frame, schema)
    assert result["v"].tolist() == [[2.0, 3.0], [0.5]]
    assert result["o"].tolist() == [{"k": 7.0, "s": "x"}, {"k": 0.5, "s": "y"}]
    inputs = orjson.dumps({"inputs": {"v": [2, 3], "o": {"k": 7, "s": "x"}}})
    assert build_frame("tensor", [inputs], schema)["v"].tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{",
        b'{"columns":["a"],"data":[[1],[2,3]]}',
        b'{"columns":["a","a"],"data":[[1,2]]}',
        b'{"columns":["a"],"data":[1]}',
        b'{"columns":[1],"data":[[1]]}',
        b'{"columns":["a"],"data":[[NaN]]}',
    ],
)
def test_damaged_payloads(payload: bytes) -> None:
    for format in ("split", "arrow", "tensor"):
        with pytest.raises(InvalidInput):
            build_frame(format, [payload], None)
        with pytest.raises(InvalidInput):
            layout_key(format, payload, None)


def test_a_truncated_arrow_stream() -> None:
    payload = arrow(pa.table({"a": list(range(1000))}))
    with pytest.raises(InvalidInput):
        build_frame("arrow", [payload[:-500]], None)


# Which jobs share a frame.


def same(first: bytes, second: bytes, schema: Schema | None = None, format: str = "split") -> bool:
    return layout_key(format, first, schema) == layout_key(format, second, schema)


def test_without_a_schema_jobs_share_a_frame_where_their_dtypes_agree() -> None:
    assert same(split(["a"], [1]), split(["a"], [2]))
    assert same(
        split(["a"], [1.5]),
        split(
            ["a"],
            [
                2,
            ],
            [2.5],
        ),
    )
    assert not same(split(["a"], [1]), split(["a"], [1.5]))
    assert not same(split(["a"], [1]), split(["a"], [None]))
    assert not same(split(["a"], [1]), split(["a"], [True]))
    assert not same(split(["a"], [1]), split(["a"], [2**63]))
    assert not same(split(["a"], ["x"]), split(["a"], [1]))
    assert not same(split(["a"], [1]), split(["b"], [1]))
    assert not same(split(["a", "b"], [1, 1]), split(["b", "a"], [1, 1]))


def test_with_a_schema_integers_and_floats_share_a_frame() -> None:
    schema = schema_of(a="double", s="string")
    assert same(split(["a", "s"], [1, "x"]), split(["a", "s"], [None, None]), schema)
    flag = schema_of(a="boolean")
    assert same(split(["a"], [True]), split(["a"], [False]), flag)
    assert not same(split(["a"], [True]), split(["a"], [None]), flag)
    anything = schema_of(a=AnyType())
    assert not same(split(["a"], [1]), split(["a"], [1.5]), anything)


def test_arrow_jobs_share_a_frame_where_pandas_gives_them_the_same_types() -> None:
    whole, holed = pa.table({"a": [1, 2]}), pa.table({"a": [1, None]})
    assert not same(arrow(whole), arrow(holed), format="arrow")
    assert same(arrow(whole), arrow(pa.table({"a": [3]})), format="arrow")
    assert same(arrow(whole), arrow(holed), schema_of(a="double"), "arrow")
    assert not same(arrow(whole), arrow(pa.table({"a": [1.0]})), format="arrow")
    red, blue = (arrow(pa.table({"a": pa.array([c]).dictionary_encode()})) for c in ("red", "blue"))
    assert not same(red, blue, format="arrow")
    assert same(red, blue, schema_of(a="string"), "arrow")


@pytest.mark.parametrize(
    "odd",
    [
        b'{"columns":["a","b"],"data":[[1.0]]}',
        b'{"columns":["a","b"],"data":[[1.0,2.0]]} ',
        b'{"columns":["a","b"],"data":[[1.0,2.0]],"data":[[1.0,2.0]]}',
        b'{"columns":["a","b"],"data":{"a":1}}',
        b'{"columns":["a","b"],"data":[1]}',
        b'{"columns":["a","b"],"data":[[1.0,2.0]',
        b'{"columns":["b","a"],"data":[[2.0,1.0]]}',
        b'{"columns":["a","a"],"data":[[2.0,1.0]]}',
        b"",
        b"[]",
    ],
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_odd_payload_among_like_ones_is_read_as_alone_and_so_are_they(odd: bytes, at: int) -> None:
    payloads = [split(["a", "b"], [1.0, 2.0]), split(["a", "b"], [3.0, 4.0], [5.0, 6.0])]
    payloads.insert(at, odd)
    for schema in (None, schema_of(a="double", b="double")):
        for read, payload in zip(read_inputs("split", payloads, schema), payloads, strict=True):
            (alone,) = read_inputs("split", [payload], schema)
            assert type(read) is type(alone)
            if isinstance(read, InvalidInput):
                assert isinstance(alone, InvalidInput)
                assert read.message == alone.message
            else:
                assert read == alone


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3).filter(lambda s: s.isprintable()),
    st.lists(st.integers(0, 5), max_size=2),
)
ROWS = st.lists(st.tuples(CELLS, CELLS).map(list), min_size=1, max_size=3)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=4))
def test_in_company_a_job_has_the_values_and_dtypes_that_pandas_gives_it_alone(jobs: list[list[list[Any]]]) -> None:
    payloads = [split(["a", "b"], *rows) for rows in jobs]
    keys = [read.key for read in read_inputs("split", payloads, None) if not isinstance(read, InvalidInput)]
    assert keys == [layout_key("split", payload, None) for payload in payloads]
    group = [(p, rows) for p, rows, key in zip(payloads, jobs, keys, strict=True) if key == keys[0]]
    frame = build_frame("split", [p for p, _ in group], None)
    start = 0
    for payload, rows in group:
        part = frame.iloc[start : start + len(rows)].reset_index(drop=True)
        start += len(rows)
        pd.testing.assert_frame_equal(part, build_frame("split", [payload], None))
        pd.testing.assert_frame_equal(part, pd.DataFrame(rows, columns=["a", "b"]))
    assert start == len(frame)


# Frames of doubles, which are made in one piece.

DOUBLE = st.one_of(st.floats(), st.integers(-(2**63), 2**64 - 1), st.none())
SOME_NAMES = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=6, unique=True)


@st.composite
def doubles(draw: st.DrawFn) -> tuple[list[str], list[str], list[list[Any]]]:
    """A schema's names, the same in some order, and rows."""
    names = draw(SOME_NAMES)
    rows = st.lists(DOUBLE, min_size=len(names), max_size=len(names))
    return names, list(draw(st.permutations(names))), draw(st.lists(rows, min_size=1, max_size=5))


def in_pieces(names: list[str], rows: list[list[Any]], schema: Schema) -> pd.DataFrame:
    return frames._frame(names, frames._transposed(names, rows), schema)


@settings(deadline=None)
@given(doubles())
def test_in_one_piece_a_frame_of_doubles_is_what_it_is_of_columns(
    given: tuple[list[str], list[str], list[list[Any]]],
) -> None:
    wanted, names, rows = given
    schema = Schema([ColSpec("double", name) for name in wanted])
    found, expected = frames._frame_of_doubles(names, rows, schema), in_pieces(names, rows, schema)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert found.columns.identical(expected.columns)
    assert found.index.identical(expected.index)
    for order in ("F_CONTIGUOUS", "C_CONTIGUOUS"):
        assert found.to_numpy().flags[order] == expected.to_numpy().flags[order]
    assert found.to_numpy().tobytes("A") == expected.to_numpy().tobytes("A"), "signs of zeros too"


def test_rows_of_doubles_are_framed_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = schema_of(a="double", b="double")
    expected = in_pieces(["b", "a"], [[1, None], [2.5, 3]], schema)
    monkeypatch.delattr(frames, "_frame")
    frame = build_frame("split", [split(["b", "a"], [1, None]), split(["b", "a"], [2.5, 3])], schema)
    pd.testing.assert_frame_equal(enforced(frame, schema), expected)


@pytest.mark.parametrize(
    "schema",
    [
        None,
        schema_of(a="double", b="float"),
        schema_of(a="double", b="long"),
        schema_of(a="string", b="double"),
        schema_of(a="double", b=AnyType()),
        schema_of(a="double", b=Array(DataType.double)),
        Schema([ColSpec("double"), ColSpec("double")]),
        Schema([TensorSpec(np.dtype("float64"), (-1, 2))]),
    ],
)
def test_other_schemas_frames_are_made_of_columns(schema: Schema | None) -> None:
    assert frames._frame_of_doubles(["a", "b"], [[1.0, 2.0]], schema) is None


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        *((["a", "b"], [[1.0, 2.0], [1.0, odd]]) for odd in ("1", True, [1.0], {}, 10**400, np.float32(1))),
        (["a", "b"], []),
        (["a"], [[1.0]]),
        (["a", "c"], [[1.0, 2.0]]),
        (["a", "b", "c"], [[1.0, 2.0, 3.0]]),
    ],
)
def test_rows_that_may_be_wrong_are_framed_by_columns(names: list[str], rows: list[list[Any]]) -> None:
    assert frames._frame_of_doubles(names, rows, schema_of(a="double", b="double")) is None


def test_a_column_that_may_be_missing_is_no_reason_to_frame_by_columns_but_its_absence_is() -> None:
    schema = Schema([ColSpec("double", "a"), ColSpec("double", "b", required=False)])
    assert frames._frame_of_doubles(["b", "a"], [[1.0, 2.0]], schema).to_dict("list") == {"a": [2.0], "b": [1.0]}
    assert frames._frame_of_doubles(["a"], [[1.0]], schema) is None
    assert list(build_frame("split", [split(["a"], [1])], schema).columns) == ["a"]


def test_schemas_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_MOST_SCHEMAS", 3)
    for n in range(20):
        schema = schema_of(**{f"a{n}": "double"})
        for _ in range(2):
            assert list(frames._frame_of_doubles([f"a{n}"], [[1.0]], schema)) == [f"a{n}"]
        assert len(frames._DOUBLES) <= 3


# Tensors.


def test_tensors_without_a_schema() -> None:
    first, second = orjson.dumps({"instances": [[1, 2]]}), orjson.dumps({"inputs": [[3, 4], [5, 6]]})
    assert same(first, second, format="tensor")
    array = build_frame("tensor", [first, second], None)
    assert array.dtype == np.int64
    assert array.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert not same(first, orjson.dumps({"instances": [[1.5, 2]]}), format="tensor")
    assert not same(first, orjson.dumps({"instances": [[1, 2, 3]]}), format="tensor")
    assert not same(first, orjson.dumps({"inputs": {"inputs": [[1, 2]]}}), format="tensor")
    texts = build_frame("tensor", [orjson.dumps({"inputs": ["a", "bcd"]})], None)
    assert texts.dtype == "<U3"


def test_records_and_named_inputs_are_the_same_tensors() -> None:
    records = orjson.dumps({"instances": [{"a": [1, 2], "b": 1}, {"a": [3, 4], "b": 2}]})
    named = orjson.dumps({"inputs": {"a": [[5, 6]], "b": [3]}})
    assert same(records, named, format="tensor")
    arrays = build_frame("tensor", [records, named], None)
    assert arrays["a"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert arrays["b"].tolist() == [1, 2, 3]


def test_tensor_schemas_pass_enforcement() -> None:
    schema = Schema([TensorSpec(np.dtype("float32"), (-1, 2))])
    payloads = [orjson.dumps({"inputs": [[1, 2]]}), orjson.dumps({"inputs": [[0.5, None]]})]
    assert same(*payloads, schema, "tensor")
    array = build_frame("tensor", payloads, schema)
    assert array.dtype == np.float32
    enforced(array, schema)
    named = Schema([TensorSpec(np.dtype("int64"), (-1,), "n"), TensorSpec(np.dtype("float64"), (-1, 1), "x")])
    arrays = build_frame("tensor", [orjson.dumps({"inputs": {"x": [[1]], "n": [2]}})], named)
    assert {name: array.dtype.name for name, array in arrays.items()} == {"n": "int64", "x": "float64"}
    _enforce_schema(arrays, named)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([[1, 2, 3]], "shape"),
        ([1, 2], "shape"),
        ([[1, 2], [3]], "shape"),
        ([[1, "2"]], "text"),
        ([[True, 2]], "boolean"),
        ([[1.5, 2]], "fraction"),
        ([[None, 2]], "null"),
        ({"x": [[1, 2]]}, "without names"),
    ],
)
def test_tensors_that_the_schema_refuses(inputs: Any, said: str) -> None:
    schema = Schema([TensorSpec(np.dtype("int64"), (-1, 2))])
    with pytest.raises(InvalidInput, match=said):
        build_frame("tensor", [orjson.dumps({"inputs": inputs})], schema)


def test_tensors_for_a_signature_of_columns_become_a_frame() -> None:
    schema = schema_of(a="double", b="long")
    payloads = [orjson.dumps({"inputs": {"b": [1], "a": [2]}}), orjson.dumps({"inputs": {"b": [3], "a": [4.5]}})]
    assert same(*payloads, schema, "tensor")
    frame = enforced(build_frame("tensor", payloads, schema), schema)
    assert frame.to_dict("list") == {"a": [2.0, 4.5], "b": [1, 3]}
    one = schema_of(a="double")
    assert enforced(build_frame("tensor", [orjson.dumps({"inputs": [1, 2]})], one), one)["a"].tolist() == [1, 2]
    with pytest.raises(InvalidInput, match="by name: a, b"):
        build_frame("tensor", [orjson.dumps({"inputs": [[1, 2]]})], schema)
    unnamed = Schema([ColSpec("double"), ColSpec("long")])
    assert enforced(build_frame("tensor", [orjson.dumps({"inputs": [[1, 2]]})], unnamed), unnamed).shape == (1, 2)


def test_a_thousand_single_rows_take_milliseconds() -> None:
    names = [f"feature_{i}" for i in range(20)]
    schema = schema_of(**dict.fromkeys(names, "double"))
    payloads = [split(names, [i / 7 + j for j in range(20)]) for i in range(1000)]
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        inputs = [read for read in read_inputs("split", payloads, schema) if not isinstance(read, InvalidInput)]
        frame = frames.build_frame("split", [read.content for read in inputs], schema)
        best = min(best, time.perf_counter() - start)
    assert len({read.key for read in inputs}) == 1
    assert frame.shape == (1000, 20)
    # About 5 ms on one core; the bound is for slow and busy ones.
    assert best < 0.1


@pytest.mark.parametrize("values", [[None, -1, 2**63], [1.5, -1, 2**63], [1.5, 2**63], [None, -1], [None, 2**63]])
def test_a_column_of_integers_beyond_64_bits_in_company_is_what_pandas_makes_of_it(values: list[Any]) -> None:
    frame = build_frame("split", [split(["a"], *([value] for value in values))], None)
    assert frame["a"].dtype == pd.DataFrame({"a": values})["a"].dtype
