"""Inputs: every accepted form becomes one of three encodings, and what is wrong is named without its values."""

import json
import subprocess
import sys
import uuid
from datetime import datetime

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfunq.errors import InputTooLarge, InvalidInput
from pyfunq.inputs import MAX_DEPTH, EncodedInput, encode_input, encode_params, parse_json_input
from pyfunq.signature import Signature

SECRET = "s3cr3t-value"
NAN, INF = float("nan"), float("inf")


def sig(**types: str) -> Signature:
    return Signature.from_json(json.dumps([{"name": n, "type": t, "required": True} for n, t in types.items()]))


TENSOR = Signature.from_json('[{"type":"tensor","tensor-spec":{"dtype":"float64","shape":[-1,2]}}]')
UNNAMED = Signature.from_json('[{"type":"double","required":true},{"type":"long","required":true}]')


def encode(inputs, params=None, *, signature=None, max_bytes=1 << 20) -> EncodedInput:
    return encode_input(inputs, params, signature=signature, max_bytes=max_bytes)


def refused(inputs, *args, **kwargs) -> str:
    with pytest.raises(InvalidInput) as caught:
        encode(inputs, *args, **kwargs)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def split(columns, *rows) -> dict:
    return {"dataframe_split": {"columns": columns, "data": list(rows)}}


def decoded(encoded: EncodedInput) -> dict:
    return orjson.loads(encoded.payload)


def arrow(encoded: EncodedInput) -> pa.Table:
    assert encoded.format == "arrow"
    return pa.ipc.open_stream(encoded.payload).read_all()


def test_importing_it_imports_no_heavy_module():
    code = "import sys, pyfunq.inputs, pyfunq.signature, pyfunq.backlog; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "pyarrow", "numpy", "mlflow"} & set(loaded)


# Each form gives the same rows.

TABLE = {"columns": ["a", "b"], "data": [[1, "x"], [2, None]]}


@pytest.mark.parametrize(
    "inputs",
    [
        {"dataframe_split": {**TABLE, "index": ["ignored", 7]}},
        {"dataframe_split": {"columns": ("a", "b"), "data": ((1, "x"), (2, None))}},
        {"dataframe_records": [{"a": 1, "b": "x"}, {"b": None, "a": 2}]},
        {"instances": [{"a": 1, "b": "x"}, {"a": 2, "b": None}]},
    ],
)
def test_tables_become_split(inputs):
    encoded = encode(inputs)
    assert (encoded.format, encoded.rows, encoded.params) == ("split", 2, None)
    assert decoded(encoded) == TABLE
    assert encoded.size == len(encoded.payload)


@pytest.mark.parametrize("value", [{"a": [1, 2], "b": ["x", None]}, [{"a": 1, "b": "x"}, {"a": 2, "b": None}]])
def test_inputs_become_split_for_a_signature_of_columns(value):
    encoded = encode({"inputs": value}, signature=sig(a="double", b="string"))
    assert encoded.format == "split"
    assert decoded(encoded) == TABLE


def test_inputs_of_scalars_are_one_row():
    encoded = encode({"inputs": {"a": 1, "b": "x"}}, signature=sig(a="double", b="string"))
    assert (encoded.format, encoded.rows) == ("split", 1)


@pytest.mark.parametrize(
    ("inputs", "signature", "rows"),
    [
        ({"instances": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}, None, 3),
        ({"instances": ["a", "b"]}, None, 2),
        ({"inputs": [[[1], [2]]]}, None, 1),
        ({"inputs": {"x": [[1, 2], [3, 4]], "y": [1, 2]}}, None, 2),
        ({"inputs": "one text"}, None, 1),
        ({"inputs": {"messages": [{"role": "user"}, {"role": "bot"}], "n": 1}}, None, 1),
        ({"instances": [[1.0, 2.0]]}, TENSOR, 1),
        ({"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}, TENSOR, 2),
        ({"instances": [[1.5, 2]]}, UNNAMED, 1),
        ({"instances": [1.5, 2.5]}, sig(x="double"), 2),
        ({"inputs": {"messages": [{"role": "user"}, {"role": "bot"}], "n": 1}}, sig(messages="array", n="long"), 1),
    ],
)
def test_everything_else_stays_a_tensor(inputs, signature, rows):
    encoded = encode(inputs, signature=signature)
    assert (encoded.format, encoded.rows) == ("tensor", rows)
    assert decoded(encoded) == inputs


def test_a_cell_may_be_nested():
    assert decoded(encode(split(["v"], [[1, [2]]], [{"k": None}])))["data"] == [[[1, [2]]], [{"k": None}]]


# Frames.


def test_a_dataframe_becomes_arrow_without_its_index():
    frame = pd.DataFrame({"x": [1.5, NAN], "s": ["a", None], "n": [1, 2]}, index=["p", "q"])
    encoded = encode(frame)
    assert encoded.rows == 2
    assert arrow(encoded).to_pydict() == {"x": [1.5, None], "s": ["a", None], "n": [1, 2]}


@pytest.mark.parametrize("make", [lambda t: t, lambda t: t.to_batches()[0]])
def test_arrow_tables_and_batches(make):
    table = pa.table({"x": [1, 2, 3]})
    assert arrow(encode(make(table))).to_pydict() == table.to_pydict()


def test_large_frames_are_compressed_and_slices_hold_only_their_rows():
    table = pa.table({"x": list(range(1000)) * 20})
    assert len(encode(table).payload) < table.nbytes / 3
    assert encode(table.slice(5, 10)).size < 1500


def test_noise_is_stored_as_it_is():
    noise = pa.table({f"f{i}": np.random.default_rng(i).normal(size=5_000) for i in range(20)})
    encoded = encode(noise)
    assert noise.nbytes <= encoded.size < noise.nbytes + 10_000
    assert arrow(encoded).equals(noise)
    half = pa.concat_tables([noise.slice(0, 2000), pa.table({name: np.zeros(3_000) for name in noise.column_names})])
    assert encode(half).size < 0.5 * half.nbytes, "what counts is the middle"
    assert arrow(encode(half)).equals(half)
    wide = pa.table({"s": ["x" * 200_000]})
    assert encode(wide).size < 1_000, "one row, larger than the sample"


def test_frames_are_cast_to_the_signature():
    table = arrow(encode(pd.DataFrame({"x": [1, 2]}), signature=sig(x="double")))
    assert table.schema.field("x").type == pa.float64()


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (pd.DataFrame({"x": []}), "the input has no rows"),
        (pd.DataFrame(), "the DataFrame has no columns"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "column 'a' is given more than once"),
        (pd.DataFrame([[1]], columns=[0]), "column names must be strings, got int"),
        (pd.DataFrame({"ok": [1, 2], "bad": [1, SECRET]}, dtype=object), "column 'bad' (object) holds values of no"),
        (pa.table({"a": pa.array([], pa.int64())}), "the input has no rows"),
        ([1, 2], "got list"),
        (None, "got NoneType"),
        (pd.Series([1]), "got Series"),
    ],
)
def test_refuses_frames(frame, expected):
    assert expected in refused(frame)


def test_a_dataframe_integer_column_with_nulls_is_refused_by_name():
    message = refused(pd.DataFrame({"x": pd.array([1, None], dtype="Int64")}), signature=sig(x="long"))
    assert message == "column 'x' is integer (long) and cannot hold nulls"


# What is refused.


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, "exactly one of dataframe_split, dataframe_records, instances, inputs; got none"),
        ({"instances": [1], "inputs": [1]}, "got instances and inputs"),
        ({"instances": [1], "model_uri": SECRET}, "'model_uri' is not an input format; allowed: dataframe_split,"),
        ({"dataframe_split": [1]}, "dataframe_split must be an object with columns and data, got a list"),
        ({"dataframe_split": {"data": [[1]]}}, "takes columns, data and optionally index"),
        ({"dataframe_split": {**TABLE, "dtypes": 1}}, "takes columns, data and optionally index"),
        (split([], []), "has no columns"),
        (split(["a"]), "the input has no rows"),
        (split(["a", 1], [1, 2]), "column names must be strings, got int"),
        (split(["a", "a"], [1, 2]), "column 'a' is given more than once"),
        (split("ab", [1, 2]), "columns must be a list of names"),
        (split(["a"], [1], 5), "row 2 must be a list, got a number"),
        (split(["a", "b"], [1, 2], [3]), "row 2 has 1 values where there are 2 columns"),
        ({"dataframe_records": []}, "the input has no rows"),
        ({"dataframe_records": {"a": 1}}, "must be a list of objects"),
        ({"dataframe_records": [{"a": 1}, [1]]}, "must be a list of objects"),
        ({"dataframe_records": [{"a": 1}, {"a": 1}, {"b": 1}]}, "row 3 has other keys than row 1"),
        ({"dataframe_records": [{}]}, "has no columns"),
        ({"instances": []}, "the input has no rows"),
        ({"instances": None}, "must be a list, got null"),
        ({"instances": SECRET}, "must be a list, got a string"),
        ({"inputs": None}, "must be a list, got null"),
        ({"instances": [[1, 2], [3, 4], [5]]}, "instances: row 3 has another shape than row 1"),
        ({"instances": [[1], 2]}, "instances: row 2 has another shape than row 1"),
        ({"instances": [[[1], [2, 3]]]}, "instances: row 1 holds lists of different lengths"),
        ({"instances": [[]]}, "instances: row 1 is empty"),
        ({"instances": [1, {"a": 1}]}, "instances must be a list of objects"),
        ({"inputs": {}}, "has no columns"),
        ({"inputs": {"x": []}}, "the input has no rows"),
        ({"inputs": {"x": [1, 2], "y": [1, 2, 3]}}, "'y' has 3 values where 'x' has 2 (they differ from row 3)"),
    ],
)
def test_refuses_malformed_inputs(inputs, expected):
    assert expected in refused(inputs)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NAN, "is NaN or infinite, which JSON cannot hold; use null"),
        (-INF, "is NaN or infinite"),
        ([1, [INF]], "is NaN or infinite"),
        (datetime(2020, 1, 1), "is a datetime.datetime, which JSON cannot hold"),
        (uuid.UUID(int=0), "is a uuid.UUID, which JSON cannot hold"),
        (b"bytes", "is a builtins.bytes, which JSON cannot hold"),
        ({1: 2}, "has a key that is not a string"),
        (2**64, "is an integer beyond 64 bits"),
        ("\ud800", "lone surrogate"),
        ({"\udfff": 1}, "lone surrogate"),
    ],
)
def test_refuses_what_strict_json_cannot_hold(value, expected):
    assert expected in refused(split(["a", "b"], [1, 2], [3, value]))
    assert expected in refused({"instances": [[value], [value]]})


def test_the_place_of_a_bad_value_is_named():
    assert refused(split(["a", "b"], [1, 2], [3, NAN])).startswith("row 2, column 'b' is NaN")
    assert refused({"inputs": {"x": [[1.0, NAN]]}}).startswith("inputs['x'][0][1] is NaN")


def test_refuses_deep_nesting_and_cycles():
    deep: list = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    cycle: list = []
    cycle.append(cycle)
    for value in (deep, cycle):
        assert f"deeper than {MAX_DEPTH}" in refused({"instances": [value]})
        assert f"deeper than {MAX_DEPTH}" in refused(split(["a"], [value]))


def test_large_finite_floats_are_not_taken_for_infinite():
    assert encode(split(["a", "b"], [1.7e308, 1.7e308])).rows == 1


# The signature.


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (split(["a"], [1.0]), "column 'n' is missing"),
        (split(["a", "n", "z"], [1.0, 1, 1]), "column 'z' is not in the model's signature"),
        (split(["a", "n"], [1.0, 1.5]), "column 'n' is integer (long), but got a fraction (row 1)"),
        ({"dataframe_records": [{"a": SECRET, "n": 1}]}, "column 'a' is number (double), but got a string"),
        ({"inputs": {"a": [1.0, 2.0], "n": 1}}, "'n' must be a list of values like the others"),
        ({"inputs": {"a": [1.0, 2.0], "n": [1, None]}}, "column 'n' is integer (long) and cannot hold nulls (row 2)"),
        ({"instances": [[1.0, 1]]}, "the model takes columns by name"),
    ],
)
def test_the_signature_is_applied(inputs, expected):
    assert expected in refused(inputs, signature=sig(a="double", n="long"))


@pytest.mark.parametrize(
    ("rows", "expected"), [([[1.0, 2, 3]], "takes 2 columns, got 3"), ([[1.0, 2.5]], "got a fraction")]
)
def test_rows_without_names_are_checked_by_position(rows, expected):
    assert expected in refused({"instances": rows}, signature=UNNAMED)


def test_an_optional_integer_that_is_null_is_left_out():
    signature = Signature.from_json('[{"name":"a","type":"double"},{"name":"n","type":"long","required":false}]')
    assert decoded(encode(split(["a", "n"], [1.5, None]), signature=signature)) == {"columns": ["a"], "data": [[1.5]]}


# Params and size.


def test_params_are_canonical_wherever_they_are_given():
    within = encode({**split(["a"], [1]), "params": {"b": [1, 2], "a": None}})
    beside = encode(split(["a"], [1]), {"a": None, "b": [1, 2]})
    assert within == beside
    assert within.params == b'{"a":null,"b":[1,2]}'
    assert encode_params({"o": {"b": 1, "a": [2]}}) == b'{"o":{"a":[2],"b":1}}'
    assert encode(split(["a"], [1]), {}).params is None
    assert encode(pd.DataFrame({"x": [1]}), {"t": 0.5}).params == b'{"t":0.5}'


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([1], "params must be an object, got list"),
        ({"a": {"b": [NAN]}}, "params['a']['b'][0] is NaN"),
        ({"a": NAN}, "params['a'] is NaN"),
        ({1: 2}, "key that is not a string"),
        ({"a": object()}, "params['a'] is a builtins.object"),
    ],
)
def test_refuses_params(params, expected):
    with pytest.raises(InvalidInput) as caught:
        encode_params(params)
    assert expected in str(caught.value)
    assert caught.value.field is not None


def test_refuses_params_given_twice():
    assert "given twice" in refused({**split(["a"], [1]), "params": {"a": 1}}, {"a": 1})


def test_the_size_limit_is_exact_and_counts_params():
    inputs, params = split(["a"], ["x" * 100]), {"t": 1}
    size = encode(inputs, params).size
    assert encode(inputs, params, max_bytes=size).size == size
    with pytest.raises(InputTooLarge) as caught:
        encode(inputs, params, max_bytes=size - 1)
    assert f"{size} bytes; at most {size - 1}" in str(caught.value)
    with pytest.raises(InputTooLarge):
        encode(pd.DataFrame({"x": ["y" * 5000]}), max_bytes=1000)


# Strict parsing.


@pytest.mark.parametrize("text", [b'{"a": [1, 2.5, null, true, "\\u00e9"]}', '{"a": [1, 2.5, null, true, "é"]}'])
def test_parses_an_object(text):
    assert parse_json_input(text, max_bytes=1000) == {"a": [1, 2.5, None, True, "é"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "not valid JSON (line 1, column 1)"),
        (b'{"a": 1,\n "b" 2}', "not valid JSON (line 2, column 6)"),
        (b"[1]", "must be a JSON object, got a list"),
        (b"null", "must be a JSON object, got null"),
        (b'{"a": NaN}', "NaN, which is not JSON; use null"),
        (b'{"a": -Infinity}', "-Infinity, which is not JSON; use null"),
        (b'{"a": 1e999}', "NaN or infinite"),
        (b'{"a": [1e999]}', "NaN or infinite"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is given more than once"),
        (b'{"x": [{"a": 1, "a": 1}]}', "the key 'a' is given more than once"),
        (b'{"a": "\xff"}', "not UTF-8 (byte 7)"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "deeper than 64"),
        (b'{"a":' * 100_000, "deeper than 64"),
        (b'{"a": ' + b"[" * 1_000_000, "deeper than 64"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "integer of too many digits"),
    ],
)
def test_refuses_bad_json(text, expected):
    with pytest.raises(InvalidInput) as caught:
        parse_json_input(text, max_bytes=1 << 21)
    assert expected in str(caught.value)


def test_the_size_is_checked_before_the_text():
    with pytest.raises(InputTooLarge):
        parse_json_input("é" * 10, max_bytes=19)


def test_nesting_as_deep_as_allowed_passes():
    text = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse_json_input(text, max_bytes=1000)


# Properties.

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
cells = st.recursive(
    scalars | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@st.composite
def tables(draw):
    columns = draw(st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True))
    width = len(columns)
    return columns, draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=5))


@given(tables())
def test_split_and_records_encode_alike_and_lose_nothing(table):
    columns, rows = table
    encoded = encode(split(columns, *rows))
    assert decoded(encoded) == {"columns": columns, "data": rows}
    assert encode({"dataframe_records": [dict(zip(columns, row, strict=True)) for row in rows]}) == encoded


@given(st.recursive(scalars | st.floats() | st.text() | st.binary() | st.dates(), lambda i: st.lists(i) | st.tuples(i)))
def test_any_value_is_encoded_whole_or_refused(value):
    try:
        encoded = encode({"instances": [value]})
    except InvalidInput:
        return
    assert json.loads(encoded.payload) == json.loads(json.dumps({"instances": [value]}, allow_nan=False))


# Rows that are objects of the model's own.

OBJECTS = Signature.from_json(
    '[{"type":"object","required":true,"properties":{"name":{"type":"string","required":true}}}]'
)
UNLIKE = [{"name": "a"}, {"name": "b", "size": 1}]


@pytest.mark.parametrize("form", ["instances", "inputs", "dataframe_records"])
def test_a_model_of_objects_takes_them_as_they_are(form):
    encoded = encode({form: UNLIKE}, signature=OBJECTS)
    assert (encoded.format, encoded.rows, decoded(encoded)) == ("tensor", 2, {"inputs": UNLIKE})
    table = encode(split(["name", "size"], ["a", 1]), signature=OBJECTS)
    assert decoded(table) == {"columns": ["name", "size"], "data": [["a", 1]]}
    frame = pd.DataFrame({"name": ["a"], "size": [1]})
    assert arrow(encode(frame, signature=OBJECTS)).column_names == ["name", "size"]


@pytest.mark.parametrize("form", ["instances", "inputs"])
def test_unlike_objects_are_left_to_a_model_that_is_not_known_yet(form):
    encoded = encode({form: UNLIKE})
    assert (encoded.format, encoded.rows, decoded(encoded)) == ("tensor", 2, {form: UNLIKE})
    assert "row 2 has other keys than row 1" in refused({form: UNLIKE}, signature=sig(name="string"))
    assert "row 2 has other keys than row 1" in refused({form: UNLIKE}, signature=TENSOR)
