"""Made rows: what a signature's types are warmed with."""

import numpy as np
import pytest
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array

from worker.warming import made_row


def test_a_row_has_each_column_in_its_type() -> None:
    schema = Schema([ColSpec(kind, kind.name) for kind in DataType])
    row = made_row(schema)
    assert len(row) == 1
    assert list(row.columns) == [kind.name for kind in DataType]
    for kind in (DataType.boolean, DataType.integer, DataType.long, DataType.float, DataType.double):
        assert row[kind.name].dtype == kind.to_numpy(), kind
    assert row["datetime"].dtype.kind == "M"
    assert row["string"][0] == ""


@pytest.mark.parametrize("names", [(None,), ("image", "mask")])
def test_tensors_have_one_row(names: tuple[str | None, ...]) -> None:
    schema = Schema([TensorSpec(np.dtype("float32"), (-1, 8, 8), name) for name in names])
    row = made_row(schema)
    tensor = row if names == (None,) else row["mask"]
    assert tensor.shape == (1, 8, 8)
    assert tensor.dtype == np.float32


def test_nothing_is_made_where_the_signature_does_not_say_enough() -> None:
    assert made_row(None) is None
    assert made_row(Schema([ColSpec(Array(DataType.double), "vector")])) is None
