"""The reading side of results: stored predictions back to Python, pandas and numpy values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from pyfunq.errors import InvalidOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

KIND = b"pyfunq.kind"
"""Key of an Arrow result's schema metadata: series, frame, ndarray1, ndarray2 or list."""
NAME = b"pyfunq.name"
"""Key of the JSON-encoded name of a series, or names of a frame's columns (Arrow's own are texts)."""


def decode_result(format: str, payload: bytes) -> Any:
    """Decode a result: `json` to a Python value, `arrow` to the Series, DataFrame, ndarray or list it was.

    Raises InvalidOutput where the payload is not in the format.
    """
    if format == "json":
        try:
            return orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise InvalidOutput("the stored result is not JSON") from error
    if format == "arrow":
        return _decode_arrow(payload)
    raise InvalidOutput(f"results have the format json or arrow, not {format}")


def with_index(result: Any, index: Sequence[Any] | pd.Index[Any]) -> pd.Series[Any] | pd.DataFrame:
    """Give a row-wise result the caller's index, one label a row.

    Rows of scalars become a Series, rows of equally many scalars or dicts a DataFrame, other rows a Series of
    objects. Raises InvalidOutput where the result is not row-wise or has another number of rows.
    """
    import numpy as np
    import pandas as pd

    if not isinstance(result, pd.Series | pd.DataFrame | np.ndarray | list):
        raise InvalidOutput(f"the result is not one value a row, but {type(result).__name__}")
    if isinstance(result, np.ndarray) and result.ndim == 0:
        raise InvalidOutput("the result is not one value a row, but an array without rows")
    labels = index if isinstance(index, pd.Index) else pd.Index(index)
    if len(result) != len(labels):
        raise InvalidOutput(f"the result has {len(result)} rows, the index {len(labels)}")
    if isinstance(result, pd.Series | pd.DataFrame):
        return result.set_axis(labels, axis=0)
    if isinstance(result, np.ndarray):
        if result.ndim == 2:
            return pd.DataFrame(result, index=labels)
        return pd.Series(result, index=labels) if result.ndim == 1 else _objects(list(result), labels)
    if _is_table(result):
        return pd.DataFrame(result, index=labels)
    if not result or any(isinstance(row, list | dict) for row in result):
        return _objects(result, labels)
    return pd.Series(result, index=labels)


def _is_table(rows: list[Any]) -> bool:
    """Whether the rows are all dicts, or all lists of the same number of scalars."""
    if not rows:
        return False
    if all(isinstance(row, dict) for row in rows):
        return True
    if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        return False
    return not any(isinstance(cell, list | dict) for row in rows for cell in row)


def _objects(rows: list[Any], labels: pd.Index[Any]) -> pd.Series[Any]:
    import pandas as pd

    return pd.Series(rows, index=labels, dtype=object)


def _decode_arrow(payload: bytes) -> Any:
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(payload).read_all()
    except (pa.ArrowException, OSError) as error:
        raise InvalidOutput("the stored result is not an Arrow stream") from error
    metadata = table.schema.metadata or {}
    match metadata.get(KIND):
        case b"frame":
            return table.to_pandas().set_axis(orjson.loads(metadata[NAME]), axis=1)
        case b"series":
            return table.to_pandas().iloc[:, 0].rename(orjson.loads(metadata.get(NAME, b"null")))
        case b"list":
            return table.column(0).to_pylist()
        case b"ndarray1":
            return _to_numpy(table.column(0).combine_chunks())
        case b"ndarray2":
            column = table.column(0)
            return _to_numpy(column.combine_chunks().flatten()).reshape(len(column), column.type.list_size)
        case _:
            raise InvalidOutput("the stored Arrow result does not say what it was (pyfunq.kind)")


def _to_numpy(array: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    if pa.types.is_string(array.type):
        return np.array(array.to_pylist(), dtype=np.str_)
    values = array.to_numpy(zero_copy_only=False)
    return values if values.flags.writeable else values.copy()
