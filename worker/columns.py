"""A column's JSON or Arrow values, cast to the type that the model asks for or that pandas gives them alone."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from types import NoneType
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from mlflow.types import DataType, Schema

from pyfunq.errors import InvalidInput
from worker.nested import nested

Name = str | int
Vector = np.ndarray[Any, np.dtype[Any]]


class Target(NamedTuple):
    """What a column becomes, and what messages call it."""

    kind: Literal["float", "int", "bool", "text", "bytes", "datetime", "object"]
    dtype: np.dtype[Any]
    name: str
    nested: Any = None
    """The schema's type of an `object` column."""


OBJECT = Target("object", np.dtype(object), "any")
TARGETS = {
    DataType.double: Target("float", np.dtype("float64"), "double"),
    DataType.float: Target("float", np.dtype("float32"), "float"),
    DataType.long: Target("int", np.dtype("int64"), "long"),
    DataType.integer: Target("int", np.dtype("int32"), "integer"),
    DataType.boolean: Target("bool", np.dtype(bool), "boolean"),
    DataType.string: Target("text", np.dtype(object), "string"),
    DataType.binary: Target("bytes", np.dtype(object), "binary (base64 in JSON)"),
    DataType.datetime: Target("datetime", np.dtype("datetime64[ns]"), "datetime (ISO 8601, without UTC offset)"),
}
_TEXT_DTYPE = pd.Series(["text"]).dtype
"""What this pandas makes of texts: `str` from pandas 3 on, `object` before."""

_TENSOR_KINDS: dict[str, Literal["float", "int", "bool", "text", "datetime"]] = {
    "f": "float",
    "i": "int",
    "u": "int",
    "b": "bool",
    "U": "text",
    "M": "datetime",
}
_JSON_NAMES = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "object"}
_INT64 = np.iinfo(np.int64)
_UNSIGNED = Target("int", np.dtype("uint64"), "unsigned integer")
_INTEGERS = frozenset({int})
_ALONE = {
    frozenset(types): TARGETS[type_]
    for type_, several in {
        DataType.double: ({float}, {int, float}, {float, NoneType}, {int, NoneType}, {int, float, NoneType}),
        DataType.boolean: ({bool},),
        DataType.string: ({str}, {str, NoneType}),
    }.items()
    for types in several
}
"""What pandas makes of the JSON types in a column, but for integers alone, where the values count too."""


def alone(values: Sequence[Any]) -> Target:
    """The type that pandas gives to these values of a column, were they all of it; `name` tells them apart."""
    types = frozenset(map(type, values))
    if types == _INTEGERS:
        if max(values) <= _INT64.max:
            return TARGETS[DataType.long]
        return OBJECT if min(values) < 0 else _UNSIGNED
    found = _ALONE.get(types, OBJECT)
    if int in types and found is not OBJECT:
        integers = [value for value in values if type(value) is int]
        if min(integers) < 0 and max(integers) > _INT64.max:
            return OBJECT
    return found


def tensor_target(dtype: np.dtype[Any]) -> Target:
    kind = _TENSOR_KINDS.get(dtype.kind)
    return OBJECT if kind is None else Target(kind, dtype, dtype.name)


def column_target(type_: Any) -> Target:
    if isinstance(type_, np.dtype):
        return tensor_target(type_)
    return TARGETS[type_] if isinstance(type_, DataType) else OBJECT._replace(nested=type_)


def cast(values: Sequence[Any], target: Target, field: Name) -> Any:
    """A column of JSON values as ndarray, extension array or, for objects, Series."""
    types = set(map(type, values))
    match target.kind:
        case "float":
            check_types(types, {int, float, NoneType}, target, field)
            return _narrow(np.array(values, dtype=np.float64), target, field)
        case "int":
            check_types(types, {int, float}, target, field)
            return _integers(values if float not in types else _whole(values, target, field), target, field)
        case "bool":
            check_types(types, {bool, NoneType}, target, field)
            return pd.Series(values, dtype=object if NoneType in types else bool)
        case "text":
            check_types(types, {str, NoneType}, target, field)
            return pd.Series(values, dtype=_TEXT_DTYPE)
        case "bytes":
            check_types(types, {str, NoneType}, target, field)
            return pd.Series([_base64(value, target, field) for value in values], dtype=object)
        case "datetime":
            check_types(types, {str, NoneType}, target, field)
            return _datetimes(values, target, field)
        case "object":
            if target.nested is not None:
                values = _nested(values, target, field)
            return pd.Series(values, dtype=object)


def _whole(values: Sequence[int | float], target: Target, field: Name) -> list[int]:
    """JSON may write 2 as 2.0; beyond 2**53 a float no longer says which integer was meant."""
    if not all(isinstance(v, int) or (v.is_integer() and abs(v) <= 2**53) for v in values):
        _refuse(target, field, "a number with a fraction")
    return [int(v) for v in values]


def _integers(values: Sequence[int], target: Target, field: Name) -> Vector:
    limits = np.iinfo(target.dtype)
    if values and not (limits.min <= min(values) and max(values) <= limits.max):
        _refuse(target, field, "an integer out of its range")
    return np.array(values, dtype=target.dtype)


def _narrow(values: Vector, target: Target, field: Name) -> Vector:
    if target.dtype == values.dtype:
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(target.dtype)
    if np.isinf(narrow).any() and not np.isinf(values).any():
        _refuse(target, field, "a number out of its range")
    return narrow


def _base64(value: str | None, target: Target, field: Name) -> bytes | None:
    if value is None:
        return None
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        _refuse(target, field, "other text")


def _datetimes(values: Sequence[str | None], target: Target, field: Name) -> Vector:
    # pandas also reads `now`, `NaT` and the empty text.
    if not all(value is None or value[:1].isdecimal() for value in values):
        _refuse(target, field, "other text")
    try:
        parsed = _parse_times([value or "NaT" for value in values])
        if parsed.tz is None:
            return parsed.as_unit("ns").to_numpy()
    except ValueError:
        _refuse(target, field, "other text or a time out of range")
    _refuse(target, field, "a time with UTC offset")


def _parse_times(values: list[str]) -> pd.DatetimeIndex:
    try:
        return pd.DatetimeIndex(pd.to_datetime(values, format="ISO8601"))
    except ValueError:
        # pandas knows no week dates; Python no nanoseconds.
        return pd.DatetimeIndex([pd.NaT if v == "NaT" else datetime.fromisoformat(v) for v in values])


def _nested(values: Sequence[Any], target: Target, field: Name) -> list[Any]:
    def refuse(place: str, expected: str, found: str) -> NoReturn:
        # The column of a signature without names has a number, which says nothing to whoever gave objects.
        where = f"{field}{place}" if isinstance(field, str) else place.lstrip(".") or str(field)
        _refuse(target._replace(name=expected), where, found)

    return [nested(value, target.nested, refuse) for value in values]


def check_types(types: set[type], allowed: set[type], target: Target, field: Name) -> None:
    if wrong := types - allowed:
        _refuse(target, field, " and ".join(sorted(_JSON_NAMES.get(t, "null") for t in wrong)))


def _refuse(target: Target, field: Name, found: str) -> NoReturn:
    raise InvalidInput(f"column {listed([field])}: expected {target.name}, found {found}", field=str(field))


def check_named(names: Sequence[Name], schema: Schema) -> None:
    """Raises InvalidInput where a schema with names requires others, or knows some not."""
    missing = [spec.name for spec in schema.inputs if spec.required and spec.name not in names]
    known = set(schema.input_names())
    extra = [name for name in names if name not in known]
    if missing or extra:
        said = [f"missing columns: {listed(missing)}"] if missing else []
        said += [f"columns that the model does not take: {listed(extra)}"] if extra else []
        raise InvalidInput("; ".join(said), field=str((missing or extra)[0]))


def listed(names: Sequence[Name]) -> str:
    unique = list(dict.fromkeys(names))
    shown = ", ".join(str(name)[:60] for name in unique[:10])
    return shown if len(unique) <= 10 else f"{shown} and {len(unique) - 10} more"


def cast_arrow(column: pa.ChunkedArray, target: Target, field: Name) -> Any:
    """An Arrow column as ndarray or Series; raises InvalidInput where it cannot have the type."""
    try:
        return _cast_arrow(column, target, field)
    except pa.ArrowException:
        _refuse(target, field, str(column.type))


def _cast_arrow(column: pa.ChunkedArray, target: Target, field: Name) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    is_text = _is_text(column.type)
    if pa.types.is_null(column.type) or target.kind == "object":
        return cast(column.to_pylist(), target, field)
    match target.kind:
        case "float" if _is_number(column.type):
            return _narrow(pc.cast(column, pa.float64(), safe=False).to_numpy(), target, field)
        case "int" if pa.types.is_integer(column.type):
            return _arrow_integers(column, target, field)
        case "bool" if pa.types.is_boolean(column.type):
            return cast(column.to_pylist(), target, field) if column.null_count else column.to_numpy()
        case "text" if is_text:
            return cast(column.to_pylist(), target, field)
        case "bytes" if _is_binary(column.type):
            return pd.Series(column.to_pylist(), dtype=object)
        case "datetime" if is_text:
            return cast(column.to_pylist(), target, field)
        case "datetime" if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            return _arrow_times(column, target, field)
    _refuse(target, field, str(column.type))


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def is_list(type_: pa.DataType) -> bool:
    is_sized = pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return bool(pa.types.is_list(type_) or is_sized)


def _is_binary(type_: pa.DataType) -> bool:
    is_sized = pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_)
    return bool(pa.types.is_binary(type_) or is_sized)


def _arrow_integers(column: pa.ChunkedArray, target: Target, field: Name) -> Vector:
    if column.null_count:
        _refuse(target, field, "null")
    try:
        return np.asarray(column.cast(pa.from_numpy_dtype(target.dtype)).to_numpy())
    except pa.ArrowInvalid:
        _refuse(target, field, "an integer out of its range")


def _arrow_times(column: pa.ChunkedArray, target: Target, field: Name) -> Vector:
    if pa.types.is_timestamp(column.type) and column.type.tz is not None:
        _refuse(target, field, "a time with UTC offset")
    try:
        return np.asarray(column.cast(pa.timestamp("ns")).to_numpy())
    except pa.ArrowInvalid:
        _refuse(target, field, "a time out of range")
