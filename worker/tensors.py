"""Tensors and columns to the ndarrays that a model with a tensor signature, or with none, takes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from math import prod
from types import NoneType
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from mlflow.types import Schema

from pyfunq.errors import InvalidInput
from worker.columns import (
    Name,
    Target,
    Vector,
    alone,
    cast,
    cast_arrow,
    check_named,
    check_types,
    is_list,
    listed,
    tensor_target,
)

Tensors = list[Any] | dict[str, list[Any]]
Arrays = Vector | dict[str, Vector]
Cells: TypeAlias = "Sequence[Any] | pa.ChunkedArray"
"""A column as JSON values or as it is in Arrow."""

_NUMBERS = "biuf"


def tensor_key(tensors: Tensors, schema: Schema | None) -> Hashable:
    """Equal for tensors that may be put together: each value is then what it is alone."""
    arrays = {name: _array(rows, None, name) for name, rows in _named(tensors).items()}
    is_cast = schema is not None and _is_of_numbers(schema)
    kinds = {name: "" if is_cast else array.dtype.kind for name, array in arrays.items()}
    shapes = tuple((name, array.shape[1:], kinds[name]) for name, array in arrays.items())
    return ("tensor", isinstance(tensors, dict), shapes)


def columns_key(columns: Sequence[Sequence[Any]], schema: Schema) -> Hashable:
    """Likewise for columns of JSON values."""
    nulls = [] if _is_of_numbers(schema) else [None in values for values in columns]
    return (tuple(_shape(values[0]) if values else () for values in columns), tuple(nulls))


def table_key(table: pa.Table, schema: Schema) -> Hashable:
    """Likewise for the columns of a table."""
    return () if _is_of_numbers(schema) else tuple(column.null_count > 0 for column in table.columns)


def _is_of_numbers(schema: Schema) -> bool:
    """Such tensors are cast to the schema's types, whatever they came as."""
    return all(spec.type.kind in _NUMBERS for spec in schema.inputs)


def _shape(value: Any) -> tuple[int, ...]:
    return (len(value), *_shape(value[0] if value else None)) if isinstance(value, list) else ()


def _named(tensors: Tensors) -> Mapping[str, list[Any]]:
    return tensors if isinstance(tensors, dict) else {"inputs": tensors}


def tensors_of_rows(parts: Sequence[Tensors], schema: Schema | None) -> Arrays:
    """The rows of all parts as one array, or as one by name. Raises InvalidInput."""
    named = [_named(part) for part in parts]
    rows = {name: list(chain.from_iterable(part[name] for part in named)) for name in named[0]}
    is_dict = isinstance(parts[0], dict)
    if schema is None:
        arrays = {name: _array(values, None, name) for name, values in rows.items()}
    elif schema.has_input_names():
        if not is_dict and len(schema.inputs) == 1:
            rows, is_dict = {schema.inputs[0].name: rows["inputs"]}, True
        if not is_dict:
            raise InvalidInput(f"the model takes inputs by name: {listed(schema.input_names())}")
        check_named(list(rows), schema)
        arrays = {spec.name: _spec_array(rows[spec.name], spec, spec.name) for spec in schema.inputs}
    else:
        if is_dict:
            raise InvalidInput("the model takes one list of inputs, without names")
        arrays = {"inputs": _spec_array(rows["inputs"], schema.inputs[0], "inputs")}
    return arrays if is_dict else arrays["inputs"]


def tensors_of_columns(names: Sequence[Name], columns: Sequence[Cells], schema: Schema) -> Arrays:
    """What MLflow makes of a DataFrame for a tensor signature: a column an input, or the columns one matrix.

    A column of lists, flat or nested, takes the shape of its input. Raises InvalidInput.
    """
    if schema.has_input_names():
        check_named(names, schema)
        found = dict(zip(names, columns, strict=True))
        return {spec.name: _column_array(found[spec.name], spec, spec.name) for spec in schema.inputs}
    (spec,) = schema.inputs
    if len(names) == 1:
        return _column_array(columns[0], spec, names[0])
    shape = tuple(spec.shape)
    if len(shape) != 2 or shape[1] not in (-1, len(names)):
        takes = f"{shape[1]} columns" if len(shape) == 2 else f"one column of lists for its shape {shape}"
        raise InvalidInput(f"the model takes {takes}, not {len(names)}")
    target = tensor_target(spec.type)
    return np.stack([_flat(cells, target, name) for name, cells in zip(names, columns, strict=True)], axis=1)


def _column_array(cells: Cells, spec: Any, field: Name) -> Vector:
    target = tensor_target(spec.type)
    if isinstance(cells, pa.ChunkedArray) and is_list(cells.type) and target.kind in ("float", "int"):
        array = _list_array(cells, target, field)
    elif isinstance(cells, pa.ChunkedArray) or not any(isinstance(cell, list) for cell in cells):
        array = _flat(cells, target, field)
    else:
        array = _array(list(cells), target, field)
    shape = tuple(spec.shape)[1:]
    if array.shape[1:] != shape and -1 not in shape and prod(array.shape[1:]) == prod(shape):
        array = array.reshape(len(array), *shape)
    return _checked_shape(array, spec, field)


def _flat(cells: Cells, target: Target, field: Name) -> Vector:
    if isinstance(cells, pa.ChunkedArray):
        if target.kind not in ("float", "int", "datetime"):
            return _array(cells.to_pylist(), target, field)
        found = cast_arrow(cells, target, field)
        return np.require(found, requirements="W")
    return _array(list(cells), target, field)


def _list_array(cells: pa.ChunkedArray, target: Target, field: Name) -> Vector:
    """A column of lists, or of lists of lists, of equal lengths."""
    shape = [len(cells)]
    leaf = cells
    while is_list(leaf.type):
        lengths = pc.min_max(pc.list_value_length(leaf)).as_py()
        if leaf.null_count or lengths["min"] != lengths["max"]:
            raise InvalidInput(f"input {listed([field])}: its rows differ in shape", field=str(field))
        shape.append(lengths["min"])
        leaf = pc.list_flatten(leaf)
    return _flat(leaf, target, field).reshape(shape)


def _spec_array(rows: list[Any], spec: Any, field: Name) -> Vector:
    return _checked_shape(_array(rows, tensor_target(spec.type), field), spec, field)


def _checked_shape(array: Vector, spec: Any, field: Name) -> Vector:
    expected = tuple(spec.shape)
    if expected == (-1,) and spec.type.kind == "O":
        return array
    if len(expected) != array.ndim or any(e not in (-1, a) for e, a in zip(expected, array.shape, strict=True)):
        raise InvalidInput(
            f"input {listed([field])}: expected the shape {expected}, found {array.shape}", field=str(field)
        )
    return array


def _array(rows: list[Any], target: Target | None, field: Name) -> Vector:
    try:
        cells = np.array(rows, dtype=object)
    except ValueError as error:
        raise InvalidInput(f"input {listed([field])}: its rows differ in shape", field=str(field)) from error
    flat = cells.ravel().tolist()
    types = set(map(type, flat))
    if target is not None and target.kind == "object":
        return cells
    if list in types or dict in types:
        raise InvalidInput(f"input {listed([field])}: its rows differ in shape, or hold objects", field=str(field))
    target = target or alone(flat)
    if target.kind == "object":
        return cells
    if target.kind == "text":
        check_types(types, {str, NoneType}, target, field)
        return np.array(flat, dtype=object if NoneType in types else np.str_).reshape(cells.shape)
    if target.kind == "bool":
        check_types(types, {bool}, target, field)
    return np.asarray(cast(flat, target, field)).reshape(cells.shape)
