"""What a model takes, as its MLflow signature says, and whether given columns and values fit it."""

import binascii
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from types import NoneType
from typing import Any

from pyfunq.errors import InvalidInput

NAMES_SHOWN = 5
EXACT_IN_FLOAT = 2**53
"""The whole numbers up to this size survive a float64 column unchanged."""

INTEGER_RANGES = {"integer": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}
FLOAT32_MAX = 3.4028234663852886e38
_DATETIME_YEARS = range(1678, 2262)  # what 64 bits of nanoseconds hold, which is MLflow's datetime

_LABELS = {
    "long": "integer (long)",
    "integer": "integer (32 bit)",
    "double": "number (double)",
    "float": "number (32 bit)",
    "boolean": "boolean",
    "string": "string",
    "binary": "binary (base64 in JSON)",
    "datetime": "datetime (ISO 8601 without a time zone in JSON)",
}
_JSON_TYPES: dict[str, frozenset[type]] = {
    "long": frozenset({int, float}),
    "integer": frozenset({int, float}),
    "double": frozenset({int, float, NoneType}),
    "float": frozenset({int, float, NoneType}),
    "boolean": frozenset({bool}),
    "string": frozenset({str, NoneType}),
    "binary": frozenset({str}),
    "datetime": frozenset({str, NoneType}),
}
_KINDS: dict[type, str] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction",
    str: "a string",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


# What each type's values are valid as, too.
_ALSO_FIT = {
    "integer": frozenset({"long", "float", "double"}),
    "long": frozenset({"double"}),
    "float": frozenset({"double"}),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a signature; `name` is None in signatures whose columns are told apart by position."""

    name: str | None
    type: str
    """MLflow's word: double, float, long, integer, boolean, string, binary, datetime, array, object, map."""
    required: bool = True

    @property
    def is_scalar(self) -> bool:
        return self.type in _LABELS

    @property
    def label(self) -> str:
        return _LABELS.get(self.type, self.type)

    @property
    def holds_nulls(self) -> bool:
        """MLflow fails on nulls in integer columns, and its JSON parser makes those in boolean ones False."""
        return self.type not in ("long", "integer", "boolean")


@dataclass(frozen=True)
class Signature:
    """A model's inputs. Every check raises InvalidInput; values of nested types are left to the model."""

    columns: tuple[Column, ...]
    """Empty where the model takes tensors."""
    is_tensor: bool = False

    @classmethod
    def from_json(cls, text: str | bytes) -> "Signature":
        """`text` is the JSON that MLflow keeps as a signature's inputs: a list of column or tensor specs."""
        try:
            specs = json.loads(text)
            if not isinstance(specs, list) or not specs:
                raise ValueError
            if any(spec["type"] == "tensor" for spec in specs):
                return cls((), is_tensor=True)
            return cls(tuple(_column(spec) for spec in specs))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput("the model's signature is not a JSON list of column or tensor specs") from error

    @cached_property
    def by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns if column.name is not None}

    @cached_property
    def required_names(self) -> frozenset[str]:
        return frozenset(name for name, column in self.by_name.items() if column.required)

    @cached_property
    def _omissible(self) -> frozenset[str]:
        return frozenset(name for name, column in self.by_name.items() if may_be_absent(column))

    @cached_property
    def takes_any_numbers(self) -> bool:
        """Whether each column is required, and takes every finite number."""
        return bool(self.by_name) and all(column.type == "double" and column.required for column in self.columns)

    @property
    def may_lack_columns(self) -> bool:
        return bool(self._omissible)

    @cached_property
    def has_nested(self) -> bool:
        return any(not column.is_scalar for column in self.columns)

    def why_not_for(self, other: "Signature") -> str | None:
        """Why some of the inputs that fit `other` may not fit this one; None: all of them do."""
        if self.is_tensor or other.is_tensor:
            return "it takes other tensors" if self.is_tensor and other.is_tensor else "only one of them takes tensors"
        if len(self.by_name) < len(self.columns) or len(other.by_name) < len(other.columns):
            return "its columns have other types" if _types(self) != _types(other) else None
        if missing := [name for name in self.by_name if name in self.required_names - other.required_names]:
            return f"{_several(missing)} required and may be missing"
        if unknown := [name for name in other.by_name if name not in self.by_name]:
            return f"{_several(unknown)} not in its signature"
        for name, column in other.by_name.items():
            wanted = self.by_name[name]
            if wanted.type != column.type and wanted.type not in _ALSO_FIT.get(column.type, ()):
                return f"it takes column {shown_name(name)} as {wanted.label}, not {column.label}"
        nested = [name for name, column in self.by_name.items() if not column.is_scalar]
        return f"{_several(nested)} perhaps of other parts" if nested else None

    @cached_property
    def takes_objects(self) -> bool:
        """Whether a row is one object, as of a model whose `predict` has a type hint `list[<a pydantic class>]`."""
        return len(self.columns) == 1 and not self.by_name and self.columns[0].type in ("object", "map")

    def check_columns(self, names: Sequence[str]) -> None:
        """The columns of an input: all that are required, none that the signature lacks, none twice."""
        given = set(names)
        if len(given) != len(names):
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            raise InvalidInput(f"{_several(twice)} given more than once", field=twice[0])
        if self.is_tensor or self.takes_objects:
            return
        if not self.by_name:
            if len(names) != len(self.columns):
                raise InvalidInput(f"the model takes {len(self.columns)} columns, got {len(names)}")
            return
        if self.required_names <= given <= self.by_name.keys():
            return
        missing = [name for name in self.by_name if name in self.required_names - given]
        unknown = [name for name in names if name not in self.by_name]
        parts = [f"{_several(missing)} missing"] if missing else []
        parts += [f"{_several(unknown)} not in the model's signature"] if unknown else []
        raise InvalidInput("; ".join(parts), field=(missing or unknown)[0])

    def aligned(self, names: Sequence[str]) -> list[Column | None]:
        """The signature's column for each given one: by name, or by position where it has no names."""
        if self.by_name:
            return [self.by_name.get(name) for name in names]
        return list(self.columns) + [None] * (len(names) - len(self.columns))

    def absent(self, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[int]:
        """Positions of optional columns that hold only nulls, of a type that holds none: leave them out."""
        if not self._omissible:
            return []
        return [
            index
            for index, name in enumerate(names)
            if name in self._omissible and all(row[index] is None for row in rows)
        ]

    def check_rows(self, names: Sequence[str], rows: Iterable[Sequence[Any]], *, first_row: int = 1) -> None:
        """JSON values, row by row, each row as long as `names`; messages count rows from `first_row`.

        An integer column takes whole floats such as 2.0: nothing is lost when MLflow makes them integers.
        Integer, boolean and binary columns hold no nulls, because MLflow's JSON parser fails on them or makes
        them False; an optional integer or boolean column may hold nothing but nulls: see `absent`.
        """
        columns = self.aligned(names)
        for name, column, values in zip(names, columns, zip(*rows, strict=True), strict=True):
            if column is not None and column.is_scalar:
                _check_values(name, column, values, first_row)

    def check_arrow(self, schema: Any, null_counts: Mapping[str, int] | None) -> None:
        """A pyarrow schema: its column names and types. A column that `null_counts` lacks has no nulls."""
        self.check_columns(schema.names)
        for field, column in zip(schema, self.aligned(schema.names), strict=True):
            if column is None or not column.is_scalar:
                continue
            if not column.holds_nulls and (null_counts or {}).get(field.name):
                raise nulls_refused(field.name, column)
            if not _fits_arrow(field.type, column):
                raise InvalidInput(
                    f"column {field.name!r} is {column.label}, but got Arrow type {field.type}",
                    field=field.name,
                )

    def conform_arrow(self, table: Any) -> Any:
        """The pyarrow Table checked and cast to the signature's types, so that MLflow takes it as it is.

        MLflow refuses frames with int64 in a `double` column or in an `integer` one, which it takes in JSON.
        Optional columns that may hold no nulls and hold nothing else are left out.
        """
        self.check_columns(table.column_names)
        if self.is_tensor:
            return table
        empty = [
            name
            for name, values in zip(table.column_names, table.columns, strict=True)
            if name in self._omissible and values.null_count == table.num_rows
        ]
        if len(empty) == table.num_columns:
            raise InvalidInput("every column holds nothing but nulls", field=empty[0])
        table = table.drop_columns(empty) if empty else table
        self.check_arrow(table.schema, {name: table.column(name).null_count for name in table.schema.names})
        for index, (field, column) in enumerate(zip(table.schema, self.aligned(table.schema.names), strict=True)):
            target = arrow_type(column, field.type) if column else field.type
            if column and not field.type.equals(target):
                cast = cast_values(table.column(index), target, field.name, column)
                table = table.set_column(index, field.name, cast)
        return table


def arrow_type(column: Column, given: Any) -> Any:
    """The Arrow type that MLflow takes for a column whose values come as Arrow type `given`."""
    import pyarrow as pa

    fixed = {"double": pa.float64(), "float": pa.float32(), "long": pa.int64(), "integer": pa.int32()}
    if column.type in fixed:
        return fixed[column.type]
    if column.type == "boolean":
        return pa.bool_()
    if column.type == "string" and not _is_text(given, pa.types):
        return pa.string()
    if column.type == "datetime" and not pa.types.is_timestamp(given):
        return pa.timestamp("ns")
    return pa.binary() if column.type == "binary" and pa.types.is_null(given) else given


def cast_values(values: Any, target: Any, name: str, column: Column) -> Any:
    """Arrow values as Arrow type `target`; only what a float32 or float64 rounds may be lost."""
    import pyarrow as pa
    import pyarrow.compute as pc

    to_float = pa.types.is_floating(target)
    outside = InvalidInput(f"column {name!r} is {column.label}, but a value is outside its range", field=name)
    try:
        cast = values.cast(target, safe=not to_float)
    except pa.ArrowInvalid as error:
        raise outside from error
    if to_float and pa.types.is_float64(values.type):
        infinite = [pc.sum(pc.is_inf(v)).as_py() for v in (values, cast)]
        if infinite[0] != infinite[1]:
            raise outside
    return cast


def _column(spec: Mapping[str, Any]) -> Column:
    required = spec.get("required")
    if required is None:
        required = not spec.get("optional", False)
    return Column(spec.get("name"), str(spec["type"]), bool(required))


def _types(signature: Signature) -> list[str]:
    return [column.type for column in signature.columns]


def may_be_absent(column: Column) -> bool:
    """Whether the column is left out where it holds nothing but nulls."""
    return not column.required and not column.holds_nulls and column.name is not None


def _several(names: Sequence[str]) -> str:
    shown = ", ".join(shown_name(name) for name in names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"column {shown} is" if len(names) == 1 else f"columns {shown}{more} are"


def shown_name(name: object) -> str:
    """A name as messages show it: quoted, and cut where it is absurdly long."""
    text = ascii(name) if isinstance(name, str) and not name.isprintable() else repr(name)
    return text if len(text) <= 80 else f"{text[:76]}...'"


def _check_values(name: str, column: Column, values: Sequence[Any], first_row: int) -> None:
    kinds = set(map(type, values))
    if not kinds <= _JSON_TYPES[column.type]:
        if kinds == {NoneType} and may_be_absent(column):
            return
        raise _unfit(name, column, values, first_row)
    if column.type in INTEGER_RANGES:
        _check_integers(name, column, values, first_row, float in kinds)
    elif column.type == "float" and float in kinds:
        _first(
            name,
            column,
            values,
            first_row,
            lambda v: v is None or abs(v) <= FLOAT32_MAX,
            "a value out of its range",
        )
    elif column.type == "datetime":
        _first(name, column, values, first_row, _is_naive_datetime, "text that is not one")
    elif column.type == "binary":
        _first(name, column, values, first_row, _is_base64, "text that is not base64")


def _check_integers(name: str, column: Column, values: Sequence[Any], first_row: int, floats: bool) -> None:
    low, high = INTEGER_RANGES[column.type]
    if floats:
        whole: Callable[[Any], bool] = lambda v: type(v) is int or v.is_integer()  # noqa: E731
        _first(name, column, values, first_row, whole, "a fraction")
        # One float makes the whole pandas column float64 before MLflow makes it integer.
        low, high = max(low, -EXACT_IN_FLOAT), min(high, EXACT_IN_FLOAT)
    if min(values) < low or max(values) > high:
        _first(name, column, values, first_row, lambda v: low <= v <= high, "a value outside its range")


def _is_base64(value: str) -> bool:
    try:
        binascii.a2b_base64(value)
    except ValueError:
        return False
    return True


def _is_naive_datetime(value: str | None) -> bool:
    try:
        moment = None if value is None else datetime.fromisoformat(value)
    except ValueError:
        return False
    return moment is None or (moment.tzinfo is None and moment.year in _DATETIME_YEARS)


def _first(
    name: str, column: Column, values: Sequence[Any], first_row: int, fits: Callable[[Any], bool], got: str
) -> None:
    for row, value in enumerate(values, first_row):
        if not fits(value):
            message = f"column {shown_name(name)} is {column.label}, but got {got} (row {row})"
            raise InvalidInput(message, field=name, row=row)


def _unfit(name: str, column: Column, values: Sequence[Any], first_row: int) -> InvalidInput:
    accepted = _JSON_TYPES[column.type]
    row, kind = next((row, type(v)) for row, v in enumerate(values, first_row) if type(v) not in accepted)
    if kind is NoneType:
        return nulls_refused(name, column, row)
    got = _KINDS.get(kind, f"a {kind.__name__}")
    message = f"column {shown_name(name)} is {column.label}, but got {got} (row {row})"
    return InvalidInput(message, field=name, row=row)


def nulls_refused(name: str, column: Column, row: int | None = None) -> InvalidInput:
    """The error for a null in a column that holds none; `row` counts from 1."""
    where = f" (row {row})" if row else ""
    return InvalidInput(
        f"column {shown_name(name)} is {column.label} and cannot hold nulls{where}", field=name, row=row
    )


def _fits_arrow(given: Any, column: Column) -> bool:
    import pyarrow as pa

    is_a = pa.types
    if is_a.is_null(given):
        return column.holds_nulls
    if column.type in ("double", "float"):
        return bool(is_a.is_integer(given) or is_a.is_floating(given) or is_a.is_decimal(given))
    if column.type in INTEGER_RANGES:
        return bool(is_a.is_integer(given))
    if column.type == "boolean":
        return bool(is_a.is_boolean(given))
    if column.type == "string":
        return bool(_is_text(given, is_a) or (is_a.is_dictionary(given) and _is_text(given.value_type, is_a)))
    if column.type == "binary":
        return bool(is_a.is_binary(given) or is_a.is_large_binary(given) or is_a.is_fixed_size_binary(given))
    return bool((is_a.is_timestamp(given) and given.tz is None) or is_a.is_date(given))


def _is_text(given: Any, is_a: Any) -> bool:
    return bool(is_a.is_string(given) or is_a.is_large_string(given) or is_a.is_string_view(given))
