"""Whether columns and values fit an MLflow signature, in JSON and in Arrow."""

import json

import pyarrow as pa
import pytest

from pyfunq.errors import InvalidInput
from pyfunq.signature import Column, Signature


def sig(*columns: tuple[str | None, str] | tuple[str | None, str, bool]) -> Signature:
    specs = []
    for name, kind, *required in columns:
        spec: dict[str, object] = {"type": kind, "required": required[0] if required else True}
        specs.append(spec if name is None else {**spec, "name": name})
    return Signature.from_json(json.dumps(specs))


def refusal(check, *args, **kwargs) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        check(*args, **kwargs)
    return caught.value


def rows_refused(kind: str, *values: object, required: bool = True) -> str:
    error = refusal(sig(("x", kind, required)).check_rows, ["x"], [[v] for v in values])
    assert error.field == "x"
    return str(error)


def test_reads_what_mlflow_writes():
    signature = sig(("a", "double"), ("b", "array"), ("c", "string", False))
    assert signature.columns == (Column("a", "double"), Column("b", "array"), Column("c", "string", False))
    assert not signature.is_tensor
    assert signature.has_nested


def test_reads_the_signature_of_mlflow_itself():
    types = pytest.importorskip("mlflow.types")
    schema = types.Schema([types.ColSpec("long", "n"), types.ColSpec("string", "s", required=False)])
    signature = Signature.from_json(json.dumps(schema.to_dict()))
    assert signature.columns == (Column("n", "long"), Column("s", "string", False))


def test_reads_a_tensor_signature():
    signature = Signature.from_json('[{"type":"tensor","tensor-spec":{"dtype":"float64","shape":[-1,4]}}]')
    assert signature.is_tensor
    assert signature.columns == ()
    signature.check_columns(["anything"])
    signature.check_rows(["anything"], [["goes"]])


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[{"name":"x"}]', "null"])
def test_refuses_what_is_no_signature(text):
    assert "signature" in str(refusal(Signature.from_json, text))


def test_names_missing_and_unknown_columns():
    error = refusal(sig(("a", "double"), ("b", "double"), ("c", "long", False)).check_columns, ["a", "z"])
    assert str(error) == "column 'b' is missing; column 'z' is not in the model's signature"
    assert error.field == "b"


def test_names_at_most_five_columns():
    error = refusal(sig(*((f"c{i}", "double") for i in range(8))).check_columns, ["c0"])
    assert str(error) == "columns 'c1', 'c2', 'c3', 'c4', 'c5' and 2 more are missing"


def test_refuses_a_column_given_twice():
    assert str(refusal(sig(("a", "double")).check_columns, ["a", "a"])) == "column 'a' is given more than once"


def test_columns_without_names_are_counted_and_matched_by_position():
    signature = sig((None, "double"), (None, "long"))
    signature.check_columns(["p", "q"])
    signature.check_rows(["p", "q"], [[1.5, 2]])
    assert str(refusal(signature.check_columns, ["p"])) == "the model takes 2 columns, got 1"
    assert "fraction" in str(refusal(signature.check_rows, ["p", "q"], [[1.5, 2.5]]))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("double", [1, 2.5, None]),
        ("float", [1, 2.5, None]),
        ("long", [1, 2.0, -(2**53)]),
        ("long", [2**63 - 1, -(2**63)]),
        ("integer", [2**31 - 1, -(2**31)]),
        ("boolean", [True, False]),
        ("string", ["a", None]),
        ("binary", ["YQ=="]),
        ("datetime", ["2020-01-01", "2020-01-01T10:00:00.5", None]),
        ("array", [[1], None, {"left": "to the model"}]),
    ],
)
def test_accepts(kind, values):
    sig(("x", kind)).check_rows(["x"], [[v] for v in values])


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("long", [1, None], "column 'x' is integer (long) and cannot hold nulls (row 2)"),
        ("long", [1, 1.5], "column 'x' is integer (long), but got a fraction (row 2)"),
        ("long", [True], "column 'x' is integer (long), but got a boolean (row 1)"),
        ("long", ["1"], "column 'x' is integer (long), but got a string (row 1)"),
        ("long", [2**63], "column 'x' is integer (long), but got a value outside its range (row 1)"),
        # pandas would hold both as float64, where 2**53 + 1 is another number.
        ("long", [2.0, 2**53 + 1], "column 'x' is integer (long), but got a value outside its range (row 2)"),
        ("integer", [2**31], "column 'x' is integer (32 bit), but got a value outside its range (row 1)"),
        ("double", [1.0, True], "column 'x' is number (double), but got a boolean (row 2)"),
        ("double", ["a"], "column 'x' is number (double), but got a string (row 1)"),
        ("double", [[1.0]], "column 'x' is number (double), but got a list (row 1)"),
        ("float", [1e300], "column 'x' is number (32 bit), but got a value out of its range (row 1)"),
        ("boolean", [1], "column 'x' is boolean, but got an integer (row 1)"),
        ("boolean", [None, True], "column 'x' is boolean and cannot hold nulls (row 1)"),
        ("string", [5], "column 'x' is string, but got an integer (row 1)"),
        ("binary", [None], "column 'x' is binary (base64 in JSON) and cannot hold nulls (row 1)"),
        ("binary", ["a"], "column 'x' is binary (base64 in JSON), but got text that is not base64 (row 1)"),
    ],
)
def test_refuses(kind, values, expected):
    assert rows_refused(kind, *values) == expected


@pytest.mark.parametrize("value", ["yesterday", "2020-01-01T00:00:00Z", "9999-01-01"])
def test_refuses_datetimes_that_mlflow_cannot_hold(value):
    assert "text that is not one (row 1)" in rows_refused("datetime", value)


def test_rows_are_counted_from_where_the_caller_says():
    error = refusal(sig(("x", "long")).check_rows, ["x"], [[1], [None]], first_row=101)
    assert "(row 102)" in str(error)


def test_an_optional_integer_column_of_nulls_counts_as_absent():
    signature = sig(("k", "double"), ("x", "long", False))
    signature.check_columns(["k"])
    signature.check_rows(["k", "x"], [[1, None], [2, None]])
    assert signature.absent(["k", "x"], [[1, None], [2, None]]) == [1]
    assert signature.absent(["k", "x"], [[1, None], [2, 3]]) == []
    assert "nulls" in rows_refused("long", 1, None, required=False)


@pytest.mark.parametrize(
    ("kind", "given", "result"),
    [
        ("double", pa.int64(), pa.float64()),
        ("double", pa.float32(), pa.float64()),
        ("float", pa.float64(), pa.float32()),
        ("long", pa.int8(), pa.int64()),
        ("integer", pa.int64(), pa.int32()),
        ("string", pa.large_string(), pa.large_string()),
        ("string", pa.dictionary(pa.int8(), pa.string()), pa.string()),
        ("datetime", pa.date32(), pa.timestamp("ns")),
        ("datetime", pa.timestamp("us"), pa.timestamp("us")),
        ("binary", pa.binary(), pa.binary()),
        ("boolean", pa.bool_(), pa.bool_()),
        ("object", pa.struct([("a", pa.int8())]), pa.struct([("a", pa.int8())])),
    ],
)
def test_casts_arrow_to_what_mlflow_takes(kind, given, result):
    raw = {"double": [1], "float": [1], "long": [1], "integer": [1], "string": ["a"], "boolean": [True]}
    raw |= {"datetime": [0], "binary": [b"a"], "object": [{"a": 1}]}
    table = pa.table({"x": pa.array(raw[kind], given)})
    assert sig(("x", kind)).conform_arrow(table).schema.field("x").type == result


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("long", pa.array([1.0]), "column 'x' is integer (long), but got Arrow type double"),
        ("long", pa.array([1, None]), "column 'x' is integer (long) and cannot hold nulls"),
        ("long", pa.array([2**63], pa.uint64()), "column 'x' is integer (long), but a value is outside its range"),
        ("integer", pa.array([2**40]), "column 'x' is integer (32 bit), but a value is outside its range"),
        ("float", pa.array([1e300]), "column 'x' is number (32 bit), but a value is outside its range"),
        ("double", pa.array(["a"]), "column 'x' is number (double), but got Arrow type string"),
        ("double", pa.array([True]), "column 'x' is number (double), but got Arrow type bool"),
        ("boolean", pa.array([1]), "column 'x' is boolean, but got Arrow type int64"),
        ("string", pa.array([1]), "column 'x' is string, but got Arrow type int64"),
        ("datetime", pa.array([0], pa.timestamp("us", "UTC")), "but got Arrow type timestamp[us, tz=UTC]"),
    ],
)
def test_refuses_arrow(kind, values, expected):
    error = refusal(sig(("x", kind)).conform_arrow, pa.table({"x": values}))
    assert expected in str(error)
    assert error.field == "x"


def test_mlflow_takes_what_passes():
    types, utils = pytest.importorskip("mlflow.types"), pytest.importorskip("mlflow.models.utils")
    parse = pytest.importorskip("mlflow.utils.proto_json_utils").dataframe_from_parsed_json
    frames = {
        "double": pa.array([1, None]),
        "float": pa.array([1.5, None]),
        "long": pa.array([1, 2], pa.uint32()),
        "integer": pa.array([1, 2]),
        "boolean": pa.array([True, False]),
        "string": pa.array(["a", None]).dictionary_encode(),
        "binary": pa.array([b"a", None]),
        "datetime": pa.array([0, None], pa.date32()),
    }
    cells = {"double": 1, "float": 1.5, "long": 2.0, "integer": 1, "boolean": True, "string": "a"}
    cells |= {"binary": "YQ==", "datetime": "2020-01-01T10:00:00"}
    schema = types.Schema([types.ColSpec(kind, kind) for kind in frames])
    signature = sig(*((kind, kind) for kind in frames))
    frame = signature.conform_arrow(pa.table(frames)).to_pandas()
    assert len(utils._enforce_schema(frame, schema)) == 2

    signature.check_rows(list(cells), [list(cells.values())])
    parsed = parse({"columns": list(cells), "data": [list(cells.values())]}, "split", schema)
    assert len(utils._enforce_schema(parsed, schema)) == 1


def test_arrow_null_counts_may_come_from_elsewhere():
    schema = pa.schema([("x", pa.int64())])
    sig(("x", "long")).check_arrow(schema, None)
    sig(("x", "long")).check_arrow(schema, {"x": 0})
    assert "nulls" in str(refusal(sig(("x", "long")).check_arrow, schema, {"x": 3}))


def test_arrow_leaves_out_optional_columns_of_nulls():
    signature = sig(("k", "double"), ("x", "long", False), ("s", "string", False))
    table = pa.table({"k": [1.0], "x": pa.nulls(1), "s": pa.nulls(1)})
    assert signature.conform_arrow(table).column_names == ["k", "s"]
    only = sig(("x", "long", False))
    assert "nothing but nulls" in str(refusal(only.conform_arrow, pa.table({"x": pa.nulls(1)})))


def test_a_long_name_is_cut():
    assert len(str(refusal(sig(("a", "double")).check_columns, ["a", "z" * 10_000]))) < 200


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        ((("x", "double"),), (("x", "double"),), None),
        ((("x", "double"), ("y", "long", False)), (("x", "integer"),), None),
        ((("x", "double"), ("y", "long")), (("x", "double"),), "column 'y' is required and may be missing"),
        ((("x", "double"),), (("x", "double", False),), "column 'x' is required and may be missing"),
        ((("x", "double"),), (("x", "double"), ("y", "long")), "column 'y' is not in its signature"),
        ((("x", "long"),), (("x", "double"),), "it takes column 'x' as integer (long), not number (double)"),
        ((("x", "array"),), (("x", "array"),), "column 'x' is perhaps of other parts"),
        (((None, "double"),), ((None, "double"),), None),
        (((None, "double"),), ((None, "string"),), "its columns have other types"),
    ],
)
def test_whether_inputs_for_one_signature_fit_another(new, old, reason):
    assert sig(*new).why_not_for(sig(*old)) == reason


def test_tensors_are_not_columns():
    tensors = Signature((), is_tensor=True)
    assert sig(("x", "double")).why_not_for(tensors) == "only one of them takes tensors"
