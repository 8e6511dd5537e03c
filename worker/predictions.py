"""What a model returned: sliced by job, and encoded as strict JSON or Arrow."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Sequence
from decimal import Decimal
from enum import Enum
from itertools import accumulate, pairwise
from typing import Any, Literal
from uuid import UUID

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
from pydantic import BaseModel

from pyfunq.errors import InvalidOutput
from pyfunq.results import KIND, NAME

_MAX_DEPTH = 100
_COMPRESS_FROM_BYTES = 4096
_PLAIN = {str, float, bool, type(None)}
"""Types that orjson writes as they are (of int it writes 64 bits)."""
_LIST_TYPES = {bool, int, float, str, bytes}


def split_output(output: Any, rows: Sequence[int], *, by_name: bool = False) -> list[Any] | None:
    """Each job's slice of an output, of the same type; `rows` are the jobs' numbers of rows.

    `by_name` says that the values of a dict are known to have one entry a row. None where the output does not have
    one entry a row (scalars, dicts, tuples, generators), or where that is in doubt: a list of as many arrays as
    rows, each as long, is what multi-output classifiers return as well.
    """
    total = sum(rows)
    if by_name and isinstance(output, dict) and output and all(_is_array_of(v, total) for v in output.values()):
        named = {name: split_output(values, rows) for name, values in output.items()}
        return [{name: parts[i] for name, parts in named.items() if parts is not None} for i in range(len(rows))]
    if not isinstance(output, np.ndarray | pd.Series | pd.DataFrame | list):
        return None
    if (isinstance(output, np.ndarray) and output.ndim == 0) or len(output) != total:
        return None
    if isinstance(output, list) and total and all(_is_array_of(item, total) for item in output):
        return None
    slices = list(pairwise(accumulate(rows, initial=0)))
    if isinstance(output, pd.Series | pd.DataFrame):
        return [output.iloc[start:stop].set_axis(pd.RangeIndex(stop - start)) for start, stop in slices]
    return [output[start:stop] for start, stop in slices]


def _is_array_of(item: Any, length: int) -> bool:
    if isinstance(item, np.ndarray):
        return item.ndim > 0 and len(item) == length
    return isinstance(item, pd.Series | pd.DataFrame) and len(item) == length


def encode_output(output: Any, *, arrow: bool) -> tuple[Literal["json", "arrow"], bytes]:
    """A job's predictions as (format, payload); `arrow` asks for Arrow, JSON stays for what that cannot hold.

    JSON is strict: NaN, infinities and every kind of null become null, times ISO 8601, durations ISO 8601
    durations, bytes base64, Decimal and UUID texts (a JSON number would lose digits), an Enum its value, an
    ndarray nested lists, a Series the list of its values, a DataFrame the list of its records; indexes are
    dropped. Raises InvalidOutput, which names type and place but no value, for anything else.
    """
    if arrow and (stream := _arrow_stream(output)) is not None:
        return "arrow", stream
    try:
        plain = _plain_top(output)
    except _UnfitError as error:
        raise InvalidOutput(f"the model returned {error.what} at {error.place}") from None
    except Exception as error:  # whatever objects of the model's own types raise when they are read
        raise InvalidOutput(f"the model returned {_type_name(output)} that cannot be read") from error
    try:
        return "json", orjson.dumps(plain)
    except orjson.JSONEncodeError as error:
        raise InvalidOutput("the model returned a text that is not valid Unicode") from error


def encode_each(output: Any, rows: Sequence[int]) -> list[bytes] | None:
    """The JSON that `encode_output` gives for each job's slice of the output, made at once for plain values.

    None where it must be asked: the output is not one-dimensional, has not one entry a row, or holds objects.
    """
    array = output.to_numpy() if type(output) is pd.Series and isinstance(output.dtype, np.dtype) else output
    if type(array) is not np.ndarray or array.ndim != 1 or len(array) != sum(rows):
        return None
    values = array.tolist()
    is_number = array.dtype.kind in "biuf" and array.dtype.itemsize <= 8
    if not is_number and (array.dtype.kind not in "OU" or set(map(type, values)) - {str}):
        return None
    try:
        if is_number and len(rows) == len(values):  # no number is written with a comma
            return [b"[%b]" % number for number in orjson.dumps(values)[1:-1].split(b",")]
        return [orjson.dumps(values[start:stop]) for start, stop in pairwise(accumulate(rows, initial=0))]
    except orjson.JSONEncodeError:
        return None


class _UnfitError(Exception):
    """A value that JSON cannot hold; `path` is collected from the inside out."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.path: list[str] = []

    @property
    def place(self) -> str:
        return ("predictions" + "".join(reversed(self.path)))[:200]


# JSON.


def _plain_top(output: Any) -> Any:
    if isinstance(output, pd.DataFrame):
        return _records(output)
    if isinstance(output, pd.Series):
        return _series(output)
    return _plain(output, 0)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    names = [_key(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise _UnfitError("two columns of one name")
    columns = []
    for name, (_, series) in zip(names, frame.items(), strict=True):
        try:
            columns.append(_series(series))
        except _UnfitError as error:
            # The last one is the row.
            error.path.insert(max(len(error.path) - 1, 0), f".{name}")
            raise
    if not columns:
        return [{} for _ in range(len(frame))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _series(series: pd.Series[Any]) -> list[Any]:
    if isinstance(series.dtype, pd.SparseDtype):
        raise _UnfitError("sparse values")
    if isinstance(series.dtype, np.dtype):
        values: list[Any] = _array(series.to_numpy(), 0)
        return values
    return _items(series.tolist(), 0)


def _array(array: np.ndarray[Any, Any], depth: int) -> Any:
    kind = array.dtype.kind
    if kind in "Mm":
        return _times(array)
    if kind == "f" and array.dtype.itemsize > 8:
        # `tolist` would keep the long doubles.
        array = array.astype(np.float64)
    if kind in "biuf":
        return array.tolist()
    if kind in "OUS":
        return _plain(array.tolist(), depth)
    raise _UnfitError(f"an array of {array.dtype.name}")


def _times(array: np.ndarray[Any, Any]) -> Any:
    """As texts: `tolist` turns nanoseconds into integers."""
    if isinstance(array, np.ma.MaskedArray):
        array = array.filled("NaT")
    if np.datetime_data(array.dtype)[0] == "generic":
        # Only NaT comes without a unit.
        array = array.astype(f"{array.dtype.kind}8[ns]")
    index = pd.DatetimeIndex if array.dtype.kind == "M" else pd.TimedeltaIndex
    try:
        texts = [None if pd.isna(time) else time.isoformat() for time in index(array.ravel())]
    except (ValueError, OverflowError) as error:
        raise _UnfitError("a time out of range") from error
    return np.array(texts, dtype=object).reshape(array.shape).tolist()


def _items(values: Sequence[Any], depth: int) -> list[Any]:
    if depth > _MAX_DEPTH:
        raise _UnfitError(f"data nested deeper than {_MAX_DEPTH} levels")
    if set(map(type, values)) <= _PLAIN:
        return list(values)
    plain = []
    for place, value in enumerate(values):
        try:
            plain.append(_plain(value, depth))
        except _UnfitError as error:
            error.path.append(f"[{place}]")
            raise
    return plain


def _mapping(values: dict[Any, Any], depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise _UnfitError(f"data nested deeper than {_MAX_DEPTH} levels")
    plain: dict[str, Any] = {}
    for name, value in values.items():
        key = _key(name)
        if key in plain:
            raise _UnfitError("two keys with one text")
        try:
            plain[key] = _plain(value, depth)
        except _UnfitError as error:
            error.path.append(f".{key}")
            raise
    return plain


def _plain(value: Any, depth: int) -> Any:
    """The value in types that orjson writes; NaN and infinities it writes as null."""
    if type(value) in _PLAIN or value is pd.NaT or value is pd.NA:
        return value if type(value) in _PLAIN else None
    if isinstance(value, Enum):
        return _plain(value.value, depth)
    if isinstance(value, list | tuple):
        return _items(value, depth + 1)
    if isinstance(value, dict):
        return _mapping(value, depth + 1)
    if isinstance(value, np.ndarray):
        return _array(value, depth + 1)
    if isinstance(value, int | np.integer):
        return _integer(int(value))
    if isinstance(value, pd.api.extensions.ExtensionArray | pd.Index) and not isinstance(value, pd.arrays.SparseArray):
        return _items(value.tolist(), depth + 1)
    return _scalar(value, depth)


def _integer(value: int) -> int:
    if not -(2**63) <= value < 2**64:
        raise _UnfitError("an integer beyond 64 bits")
    return value


def _scalar(value: Any, depth: int) -> Any:
    match value:
        case np.datetime64() | np.timedelta64():
            return _times(np.asarray(value))
        case np.bool_():
            return bool(value)
        case float() | np.floating():
            return float(value)
        case str() | UUID():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(bytes(value)).decode()
        case dt.timedelta():
            return _duration(value)
        case dt.date() | dt.time():
            return value.isoformat()
        case Decimal():
            return str(value) if value.is_finite() else None
        case BaseModel():
            return _mapping(value.model_dump(), depth + 1)
    raise _UnfitError(_type_name(value))


def _duration(value: dt.timedelta) -> str:
    try:
        return pd.Timedelta(value).isoformat()
    except (ValueError, OverflowError) as error:
        raise _UnfitError("a time out of range") from error


def _key(name: Any) -> str:
    """A name of a JSON object, as `json.dumps` would write it; times ISO 8601."""
    match name:
        case Enum():
            return _key(name.value)
        case str():
            return str(name)
        case bool() | np.bool_():
            return str(bool(name)).lower()
        case int() | np.integer():
            return str(int(name))
        case float() | np.floating() if np.isfinite(name):
            return repr(float(name))
        case dt.date() if name is not pd.NaT:
            return name.isoformat()
    raise _UnfitError(f"a key of type {_type_name(name)}")


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# Arrow.


def _arrow_stream(output: Any) -> bytes | None:
    try:
        table = _table(output)
    except Exception:  # as above; JSON says what is wrong, if it cannot hold it either
        return None
    if table is None:
        return None
    stream = _write(table, None)
    if len(stream) <= _COMPRESS_FROM_BYTES:
        return stream
    packed = _write(table, "zstd")
    return packed if len(packed) < 0.9 * len(stream) else stream


def _write(table: pa.Table, compression: str | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _table(output: Any) -> pa.Table | None:
    """The output as a table that `pyfunq.results` turns back into an equal value, or None."""
    match output:
        case pd.DataFrame() if _fits_frame(output):
            table = pa.Table.from_pandas(output, preserve_index=False)
            return _marked(table, "frame", {NAME: orjson.dumps(output.columns.tolist())})
        case pd.Series() if _fits(output):
            table = pa.Table.from_pandas(output.to_frame("value"), preserve_index=False)
            name = output.name if isinstance(output.name, str | int | None) else str(output.name)
            return _marked(table, "series", {NAME: orjson.dumps(name)})
        case np.ma.MaskedArray():
            return None
        case np.ndarray() if output.dtype.kind in "biufUM" and output.dtype.itemsize:
            return _array_table(output)
        case list() if len(types := set(map(type, output)) - {type(None)}) == 1 and types <= _LIST_TYPES:
            return _marked(pa.table({"value": pa.array(output)}), "list")
    return None


def _array_table(array: np.ndarray[Any, Any]) -> pa.Table | None:
    if array.ndim == 1:
        return _marked(pa.table({"value": pa.array(array)}), "ndarray1")
    if array.ndim != 2 or not array.shape[1]:
        return None
    values = pa.array(np.ascontiguousarray(array).ravel())
    rows = pa.FixedSizeListArray.from_arrays(values, array.shape[1])
    return _marked(pa.table({"value": rows}), "ndarray2")


def _fits_frame(frame: pd.DataFrame) -> bool:
    kinds = set(map(type, frame.columns))
    return (
        (kinds == {str} or kinds == {int})
        and frame.columns.is_unique
        and all(_fits(frame.iloc[:, place]) for place in range(frame.shape[1]))
    )


def _fits(series: pd.Series[Any]) -> bool:
    dtype = series.dtype
    if isinstance(dtype, np.dtype):
        if dtype.kind != "O":
            return dtype.kind in "biufM" and dtype.itemsize <= 8
        types = set(map(type, series.dropna()))
        return len(types) == 1 and types <= {str, bytes, bool, dt.date}
    if isinstance(dtype, pd.CategoricalDtype):
        return _fits(pd.Series(dtype.categories))
    if isinstance(dtype, pd.SparseDtype | pd.ArrowDtype):
        return False
    return isinstance(dtype, pd.StringDtype | pd.BooleanDtype) or dtype.kind in "iuf"


def _marked(table: pa.Table, kind: str, more: dict[bytes, bytes] | None = None) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), KIND: kind.encode(), **(more or {})})
