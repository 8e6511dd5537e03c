"""Tensor signatures: columns and rows of every form give the arrays that MLflow itself makes of a DataFrame."""

from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.models.utils import _enforce_schema
from mlflow.types import Schema, TensorSpec

from pyfunq.errors import InvalidInput
from pyfunq.inputs import as_table
from worker.frames import build_frame, read_input, table_input


def schema_of(*shape: int, dtype: str = "float32", name: str | None = None) -> Schema:
    return Schema([TensorSpec(np.dtype(dtype), shape, name)])


def by_split(frame: pd.DataFrame, schema: Schema) -> Any:
    rows = [[v.tolist() if isinstance(v, np.ndarray) else v for v in row] for row in frame.to_numpy(object).tolist()]
    payload = orjson.dumps({"columns": list(frame.columns), "data": rows})
    return build_frame("split", [read_input("split", payload, schema).content], schema)


def by_arrow(frame: pd.DataFrame, schema: Schema) -> Any:
    return build_frame("arrow", [table_input(as_table(frame), schema).content], schema)


BOTH = pytest.mark.parametrize("build", [by_split, by_arrow])


@BOTH
@pytest.mark.parametrize(
    ("frame", "schema"),
    [
        (pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}), schema_of(-1, 2, dtype="float64")),
        (pd.DataFrame({"a": [1.0, 2.0]}), schema_of(-1, dtype="float64")),
        (pd.DataFrame({"a": [1.0, 2.0]}), schema_of(-1, 1, dtype="float64")),
        (pd.DataFrame({"a": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]}), schema_of(-1, 2, 2)),
        (pd.DataFrame({"a": [[1, 2], [3, 4]]}), schema_of(-1, 2, dtype="int32")),
    ],
)
def test_columns_become_what_mlflow_makes_of_them(build: Any, frame: pd.DataFrame, schema: Schema) -> None:
    array = build(frame, schema)
    expected = _enforce_schema(frame, schema)
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(_enforce_schema(array, schema), array)
    assert array.flags.writeable


@BOTH
def test_named_inputs(build: Any) -> None:
    schema = Schema([TensorSpec(np.dtype("float32"), (-1, 2, 2), "image"), TensorSpec(np.dtype("int64"), (-1,), "n")])
    frame = pd.DataFrame({"n": [1, 2], "image": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]})
    arrays, expected = build(frame, schema), _enforce_schema(frame, schema)
    assert list(arrays) == ["image", "n"]
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        np.testing.assert_array_equal(array, expected[name])
    with pytest.raises(InvalidInput, match="missing columns: n"):
        build(frame[["image"]], schema)
    with pytest.raises(InvalidInput, match="does not take: more"):
        build(frame.assign(more=1), schema)


@BOTH
def test_nested_lists_which_mlflow_does_not_take(build: Any) -> None:
    cells = np.arange(16, dtype=float).reshape(2, 2, 2, 2)
    array = build(pd.DataFrame({"a": cells.tolist()}), schema_of(-1, 2, 2, 2))
    np.testing.assert_array_equal(array, cells)
    assert array.dtype == np.float32


@BOTH
@pytest.mark.parametrize(
    ("column", "schema", "said"),
    [
        ([[1.0, 2.0], [3.0]], schema_of(-1, 2), "input a: its rows differ in shape"),
        ([[1.0, 2.0, 3.0]], schema_of(-1, 2), r"input a: expected the shape \(-1, 2\), found \(1, 3\)"),
        ([1.0], schema_of(-1, 2), r"input a: expected the shape \(-1, 2\), found \(1,\)"),
        ([["secret", "secret"]], schema_of(-1, 2), "expected float32, found"),
        ([[1.5, 2.0]], schema_of(-1, 2, dtype="int64"), "column a: expected int64, found"),
    ],
)
def test_a_column_that_does_not_fit_is_named(build: Any, column: list[Any], schema: Schema, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        build(pd.DataFrame({"a": column}), schema)
    assert "secret" not in caught.value.message


@BOTH
def test_several_columns_need_a_matrix(build: Any) -> None:
    frame = pd.DataFrame({"a": [1.0], "b": [2.0]})
    with pytest.raises(InvalidInput, match="takes 3 columns, not 2"):
        build(frame, schema_of(-1, 3))
    with pytest.raises(InvalidInput, match="one column of lists"):
        build(frame, schema_of(-1, 2, 2))
    assert build(frame, schema_of(-1, -1)).shape == (1, 2)


def test_texts_and_their_nulls() -> None:
    schema = schema_of(-1, dtype="str")
    frame = pd.DataFrame({"a": ["x", "yz"]})
    for build in (by_split, by_arrow):
        assert build(frame, schema).tolist() == ["x", "yz"]
    with_null = pa.table({"a": ["x", None]})
    assert table_input(with_null, schema).key != table_input(with_null[:1], schema).key


def test_jobs_whose_cells_have_one_shape_share_a_frame() -> None:
    schema = schema_of(-1, 2, 2)
    flat, other, square = (
        read_input("split", orjson.dumps({"columns": ["a"], "data": [[cell]]}), schema)
        for cell in ([1, 2, 3, 4], [5, 6, 7, 8], [[1, 2], [3, 4]])
    )
    assert flat.key == other.key
    assert flat.key != square.key
    assert build_frame("split", [flat.content, other.content], schema).shape == (2, 2, 2)
