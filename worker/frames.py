"""Encoded inputs to what `pyfunc.predict` takes: one frame for many jobs, with the values each has alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
from mlflow.types import DataType, Schema
from mlflow.types.schema import AnyType

from pyfunq.errors import InvalidInput
from worker.columns import Name, Target, alone, cast, cast_arrow, check_named, column_target, listed
from worker.nested import as_objects, takes_objects
from worker.tensors import Arrays, Tensors, columns_key, table_key, tensor_key, tensors_of_columns, tensors_of_rows

Frame = pd.DataFrame | Arrays
Columns = tuple[list[Name], list[Sequence[Any]]]

_DATA = b',"data":'
_OF_ONE_KIND = {float, bool, str}
"""Types whose values all have one dtype; that of integers depends on their size."""


class Input(NamedTuple):
    """A job's input as read. Jobs with equal keys may share a frame: each has the values and dtypes it has alone."""

    key: Hashable
    content: Any
    """(names, rows) of `split`, a table of `arrow`, of `tensor` an ndarray's rows or those of each name."""


def read_inputs(format: str, payloads: Sequence[bytes], schema: Schema | None) -> list[Input | InvalidInput]:
    """Each payload read, or why it cannot be: it is not in the format, or has other columns than the schema."""
    if format == "split" and (alike := _read_alike(payloads, schema)) is not None:
        return list(alike)
    return [_input_or_error(format, payload, schema) for payload in payloads]


def _input_or_error(format: str, payload: bytes, schema: Schema | None) -> Input | InvalidInput:
    try:
        return read_input(format, payload, schema)
    except InvalidInput as error:
        return error


def read_input(format: str, payload: bytes, schema: Schema | None) -> Input:
    """Raises InvalidInput where the payload is not in the format."""
    if format == "arrow":
        return table_input(_read_arrow(payload), schema)
    if format == "split":
        names, rows = _read_split(payload)
        if schema is not None and takes_objects(schema):
            objects = as_objects(names, _transposed(names, rows), schema)
            return Input(("split objects",), ([0], [[one] for one in objects]))
        return Input(("split", tuple(names), _kinds(names, _transposed(names, rows), schema)), (names, rows))
    tensors = _read_tensor(payload, schema)
    if schema is None or schema.is_tensor_spec():
        return Input(tensor_key(tensors, schema), tensors)
    taken, columns = _tensor_columns(tensors, schema)
    return Input(("tensor columns", tuple(taken), _kinds(taken, columns, schema)), tensors)


def table_input(table: pa.Table, schema: Schema | None) -> Input:
    """A job's rows that came as a table."""
    return Input(_arrow_key(table, schema), table)


def build_frame(format: str, contents: Sequence[Any], schema: Schema | None) -> Frame:
    """One frame with the rows of all inputs in order; `contents` are theirs, of inputs whose keys are equal.

    A tensor signature gives an ndarray or a dict of them, one of columns a DataFrame; without a signature `split`
    and `arrow` give a DataFrame, and `tensor` arrays. With a schema the columns come in its order and in its
    types. Raises InvalidInput, which names the column and the expected type, where a value cannot have it.
    """
    if format in ("arrow", "reference"):
        return _arrow_frame(pa.concat_tables(contents), schema)
    if format == "split":
        names = contents[0][0]
        rows = list(chain.from_iterable(rows for _, rows in contents))
        frame = _frame_of_doubles(names, rows, schema)
        return _frame(names, _transposed(names, rows), schema) if frame is None else frame
    if schema is None or schema.is_tensor_spec():
        return tensors_of_rows(contents, schema)
    parts = [_tensor_columns(part, schema) for part in contents]
    return _frame(parts[0][0], _join([columns for _, columns in parts]), schema)


# Reading the formats.


def _load(payload: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise InvalidInput("the stored input is not JSON") from error
    if not isinstance(body, dict):
        raise InvalidInput("the stored input is not a JSON object")
    return body


def _read_split(payload: bytes) -> tuple[list[str], list[list[Any]]]:
    body = _load(payload)
    names, rows = body.get("columns"), body.get("data")
    if not isinstance(names, list) or not isinstance(rows, list) or set(map(type, names)) - {str}:
        raise InvalidInput("expected columns, a list of texts, and data, a list of rows")
    if len(set(names)) < len(names):
        raise InvalidInput(f"columns given twice: {listed([n for n in names if names.count(n) > 1])}")
    if set(map(type, rows)) - {list} or any(len(row) != len(names) for row in rows):
        raise InvalidInput(f"every row of data must be a list of {len(names)} values, one a column")
    return names, rows


def _transposed(names: Sequence[Name], rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [() for _ in names]


def _read_alike(payloads: Sequence[bytes], schema: Schema | None) -> list[Input] | None:
    """Many `split` payloads that begin with the same columns and share one key; None where they are not like that.

    Names are read once, and types are looked at by column.
    """
    head = payloads[0][: payloads[0].find(_DATA) + len(_DATA)]
    if len(payloads) == 1 or takes_objects(schema) or not all(payload.startswith(head) for payload in payloads):
        return None
    try:
        names = _read_split(head + b"[]}")[0]
        parts = [orjson.loads(memoryview(payload)[len(head) : -1]) for payload in payloads]
    except (InvalidInput, orjson.JSONDecodeError):
        return None
    if set(map(type, parts)) != {list} or any(payload[-1:] != b"}" for payload in payloads):
        return None
    rows = list(chain.from_iterable(parts))
    if set(map(type, rows)) != {list} or set(map(len, rows)) != {len(names)}:
        return None
    kinds = _kinds_of_all(names, _transposed(names, rows), schema)
    if kinds is None:
        return None
    key = ("split", tuple(names), kinds)
    return [Input(key, (names, part)) for part in parts]


def _kinds_of_all(names: Sequence[Name], columns: Sequence[Sequence[Any]], schema: Schema | None) -> Hashable | None:
    """`_kinds` of every job whose values are among these, if it is surely the same for all."""
    if schema is not None and schema.is_tensor_spec():
        return None
    places = range(len(names)) if schema is None else _sensitive(names, schema)
    for values in map(columns.__getitem__, places):
        types = set(map(type, values))
        if len(types) != 1 or not types <= _OF_ONE_KIND:
            return None
    return _kinds(names, columns, schema)


def _read_arrow(payload: bytes) -> pa.Table:
    try:
        table = pa.ipc.open_stream(payload).read_all()
        # An offset beyond its buffer would otherwise be read as memory.
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput("the stored input is not an Arrow stream") from error
    names = table.column_names
    if len(set(names)) < len(names):
        raise InvalidInput(f"columns given twice: {listed([n for n in names if names.count(n) > 1])}")
    return table.replace_schema_metadata(None)


def _read_tensor(payload: bytes, schema: Schema | None) -> Tensors:
    """Rows, or a list of rows for each name; a list of records is turned into the latter, as MLflow does.

    A scalar is one row; so is an object without lists, or for a signature with nested types. Where the rows are
    themselves objects or lists, that is for a signature of one nested type without a name, they stay as they are.
    """
    body = _load(payload)
    if body.keys() not in ({"instances"}, {"inputs"}):
        raise InvalidInput("expected instances or inputs")
    (tensors,) = body.values()
    is_nested = schema is not None and not schema.is_tensor_spec() and _has_nested(schema)
    if schema is not None and is_nested and not schema.has_input_names() and len(schema.inputs) == 1:
        return tensors if isinstance(tensors, list) else [tensors]
    if isinstance(tensors, dict):
        if is_nested or not any(isinstance(values, list) for values in tensors.values()):
            return {name: [value] for name, value in tensors.items()}
        if set(map(type, tensors.values())) != {list} or len(set(map(len, tensors.values()))) > 1:
            raise InvalidInput("all inputs must be lists with the same number of rows")
        return tensors
    rows = tensors if isinstance(tensors, list) else [tensors]
    if not any(isinstance(row, dict) for row in rows):
        return rows
    if not all(isinstance(row, dict) for row in rows):
        raise InvalidInput("either all instances must be objects or none")
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    if not is_nested and any(len(row) < len(names) for row in rows):
        raise InvalidInput("all instances must be objects with the same names")
    return {name: [row.get(name) for row in rows] for name in names}


def _has_nested(schema: Schema) -> bool:
    return any(not isinstance(spec.type, DataType) for spec in schema.inputs)


# Which type each column gets.


def _kinds(names: Sequence[Name], columns: Sequence[Sequence[Any]], schema: Schema | None) -> Hashable:
    """What, beside its name, decides a column's dtype.

    With a schema the dtype is fixed, and so nothing, but for these: MLflow leaves the type of AnyType columns
    to pandas, and booleans with nulls stay objects. For a tensor signature see `columns_key`.
    """
    if schema is None:
        return tuple([alone(values).name for values in columns])
    if schema.is_tensor_spec():
        return columns_key(columns, schema)
    return tuple((place, alone(columns[place]).name) for place in _sensitive(names, schema))


def _sensitive(names: Sequence[Name], schema: Schema) -> list[int]:
    """Positions of the columns whose dtype depends on their values although there is a column schema."""
    specs = [spec for spec in schema.inputs if spec.type == DataType.boolean or type(spec.type) is AnyType]
    if schema.has_input_names():
        return [names.index(spec.name) for spec in specs if spec.name in names]
    return [place for place, spec in enumerate(schema.inputs[: len(names)]) if spec in specs]


def _plan(names: Sequence[Name], schema: Schema) -> list[tuple[int, Name, Target]]:
    """Position, name and type of each column that the model takes, in its order."""
    specs = schema.inputs
    types = [column_target(spec.type) for spec in specs]
    if schema.has_input_names():
        wanted = schema.input_names()
        check_named(names, schema)
        places = {name: place for place, name in enumerate(names)}
        return [(places[name], name, t) for name, t in zip(wanted, types, strict=True) if name in places]
    expected = len(types)
    if len(names) != expected:
        raise InvalidInput(f"the model takes {expected} columns, not {len(names)}")
    return [(place, name, t) for place, (name, t) in enumerate(zip(names, types, strict=True))]


# Building.


def _join(parts: Sequence[Sequence[Sequence[Any]]]) -> list[Sequence[Any]]:
    if len(parts) == 1:
        return list(parts[0])
    return [list(chain.from_iterable(columns)) for columns in zip(*parts, strict=True)]


def _frame(names: Sequence[Name], columns: Sequence[Sequence[Any]], schema: Schema | None) -> Frame:
    if schema is None:
        plan = [(place, name, alone(columns[place])) for place, name in enumerate(names)]
    elif schema.is_tensor_spec():
        return tensors_of_columns(names, columns, schema)
    else:
        plan = _plan(names, schema)
    return pd.DataFrame({name: cast(columns[place], target, name) for place, name, target in plan}, copy=False)


_DOUBLES: dict[int, tuple[Schema, list[Name], pd.Index]] = {}
_MOST_SCHEMAS = 1_000
_FLOATS = {float, int, NoneType}


def _frame_of_doubles(names: Sequence[Name], rows: Sequence[Sequence[Any]], schema: Schema | None) -> Any:
    """What `_frame` gives where all columns are doubles and nothing is wrong with them, else None.

    The most common frame of all, and made in one piece it takes a fifth of the time.
    """
    known = None if schema is None else _doubles_of(schema)
    if known is None or not rows:
        return None
    _, wanted, index = known
    if len(names) != len(wanted) or not set(map(type, chain.from_iterable(rows))) <= _FLOATS:
        return None
    try:
        values = np.array(rows, dtype=np.float64)
        if list(names) != wanted:
            values = values[:, [names.index(name) for name in wanted]]
    except (ValueError, OverflowError):  # a column is missing, or a number is too large: `_frame` says which
        return None
    # In memory a frame's columns lie one after another, as they do in one that is made of columns.
    # Its index is its own: a model may name it.
    return pd.DataFrame(np.ascontiguousarray(values.T).T, columns=index.view(), copy=False)


def _doubles_of(schema: Schema) -> tuple[Schema, list[Name], pd.Index] | None:
    known = _DOUBLES.get(id(schema))
    if known is None or known[0] is not schema:
        if schema.is_tensor_spec() or not schema.has_input_names():
            return None
        if any(spec.type != DataType.double for spec in schema.inputs):
            return None
        if len(_DOUBLES) >= _MOST_SCHEMAS:
            _DOUBLES.clear()
        names = schema.input_names()
        known = _DOUBLES[id(schema)] = (schema, names, pd.Index(names))
    return known


# Arrow.


def _arrow_key(table: pa.Table, schema: Schema | None) -> Hashable:
    """The Arrow schema and, where pandas would take another dtype for it, which columns hold nulls."""
    places = list(range(table.num_columns))
    if schema is not None:
        if schema.is_tensor_spec():
            return ("arrow", table.schema, table_key(table, schema))
        places = _sensitive(table.column_names, schema)
    facts: list[Hashable] = []
    for column in map(table.column, places):
        categories = None
        if schema is None and pa.types.is_dictionary(column.type):
            # As one column they would become a categorical with the categories of all.
            categories = tuple(tuple(chunk.dictionary.to_pylist()) for chunk in column.chunks)
        facts.append((column.null_count > 0, categories))
    return ("arrow", table.schema, tuple(facts))


def _arrow_frame(table: pa.Table, schema: Schema | None) -> Frame:
    if schema is None:
        frame: pd.DataFrame = table.unify_dictionaries().to_pandas()
        return frame
    if schema.is_tensor_spec():
        return tensors_of_columns(table.column_names, table.columns, schema)
    if takes_objects(schema):
        objects = as_objects(table.column_names, [column.to_pylist() for column in table.columns], schema)
        return _frame([0], [objects], schema)
    plan = _plan(table.column_names, schema)
    return pd.DataFrame(
        {name: cast_arrow(table.column(place), target, name) for place, name, target in plan}, copy=False
    )


# Tensors.


def _tensor_columns(tensors: Tensors, schema: Schema) -> Columns:
    """Tensors for a signature of columns: by name, or by position where the signature has no names."""
    if isinstance(tensors, dict):
        return list(tensors), list(tensors.values())
    if schema.has_input_names():
        if len(schema.inputs) > 1:
            raise InvalidInput(f"the model takes columns by name: {listed(schema.input_names())}")
        return [schema.inputs[0].name], [tensors]
    is_one = len(schema.inputs) == 1 and _has_nested(schema)
    if is_one or not all(isinstance(row, list) for row in tensors) or len(set(map(len, tensors))) > 1:
        return [0], [tensors]
    return list(range(len(tensors[0]))), list(zip(*tensors, strict=True))
