"""Values of nested types (arrays, maps, objects): made the schema's as far as JSON leaves it open, else refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

from mlflow.types import DataType, Schema
from mlflow.types.schema import AnyType, Array, Map, Object

_NAMES = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "object", NoneType: "null"}
_WHOLE = {DataType.long, DataType.integer}
_REAL = {DataType.double, DataType.float}

Refuse = Callable[[str, str, str], None]
"""Raises, given a place within the value, what was expected there and what was found."""


def nested(value: Any, type_: Any, refuse: Refuse, place: str = "") -> Any:
    """The value with doubles for the integers, and integers for the whole doubles, that its type has there.

    Left to the model: nulls, what an object lacks, and keys that its type does not know, for a type that was made
    of a class says nothing of the class's defaults.
    """
    if value is None or isinstance(type_, AnyType):
        return value
    kind = type(value)
    if isinstance(type_, Array):
        if kind is not list:
            refuse(place, "a list", _NAMES.get(kind, kind.__name__))
        return [nested(item, type_.dtype, refuse, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(type_, Map | Object):
        if kind is not dict:
            refuse(place, "an object", _NAMES.get(kind, kind.__name__))
        return {key: nested(item, *_member(type_, key), refuse, f"{place}.{key}") for key, item in value.items()}
    return _scalar(value, kind, type_, refuse, place)


def _member(type_: Any, key: str) -> tuple[Any]:
    if isinstance(type_, Map):
        return (type_.value_type,)
    return (next((known.dtype for known in type_.properties if known.name == key), AnyType()),)


def _scalar(value: Any, kind: type, type_: Any, refuse: Refuse, place: str) -> Any:
    if type_ in _REAL:
        if kind not in (int, float):
            refuse(place, type_.name, _NAMES.get(kind, kind.__name__))
        return float(value)
    if type_ in _WHOLE and kind is not int:
        if kind is not float:
            refuse(place, type_.name, _NAMES.get(kind, kind.__name__))
        if not value.is_integer():
            refuse(place, type_.name, "a number with a fraction")
        return int(value)
    if (type_ is DataType.boolean and kind is not bool) or (type_ is DataType.string and kind is not str):
        refuse(place, type_.name, _NAMES.get(kind, kind.__name__))
    return value


def takes_objects(schema: Schema | None) -> bool:
    """Whether a row is one object, as of a model whose `predict` has a type hint `list[<a pydantic class>]`."""
    if schema is None or schema.is_tensor_spec() or schema.has_input_names() or len(schema.inputs) != 1:
        return False
    return isinstance(schema.inputs[0].type, Object | Map)


def as_objects(names: Sequence[Any], columns: Sequence[Sequence[Any]], schema: Schema) -> Sequence[Any]:
    """The objects that columns hold: in the one column that there is, else with the columns' names as keys."""
    type_ = schema.inputs[0].type
    known = {member.name for member in type_.properties} if isinstance(type_, Object) else set()
    if len(names) == 1 and names[0] not in known and all(isinstance(value, dict) for value in columns[0]):
        return columns[0]
    return [dict(zip(map(str, names), row, strict=True)) for row in zip(*columns, strict=True)]
