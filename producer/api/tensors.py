"""Tensors of the Open Inference Protocol: requests' as a job's input, predictions as a response's."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from pyfunq.errors import InvalidInput
from pyfunq.signature import Signature, shown_name

_MOST_DIMENSIONS = 32
_INTEGERS = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
_FLOATS = frozenset({"FP16", "FP32", "FP64", "BF16"})
DATATYPES = ("BOOL", *_INTEGERS, *sorted(_FLOATS), "BYTES")
_COLUMN_TYPES = {
    "double": "FP64",
    "float": "FP32",
    "long": "INT64",
    "integer": "INT32",
    "boolean": "BOOL",
}
_NUMPY_TYPES = {"float": "FP", "int": "INT", "uint": "UINT", "bool": "BOOL"}


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    values: list[Any]
    """In row-major order, as many as the shape has room for."""

    @property
    def rows(self) -> int:
        return self.shape[0]

    def nested(self) -> list[Any]:
        """Lists of lists, as the shape says."""
        nested = self.values
        for size in reversed(self.shape[1:]):
            nested = [nested[i : i + size] for i in range(0, len(nested), size)]
        return nested

    def column(self) -> list[Any]:
        """One value a row: of shape [n] and [n, 1]; else a list a row."""
        return self.values if prod(self.shape[1:]) == 1 and len(self.shape) <= 2 else self.nested()


def tensors_of(inputs: Any) -> list[Tensor]:
    """The `inputs` of a request. Raises InvalidInput with a pointer as its field."""
    if not isinstance(inputs, list) or not inputs:
        raise InvalidInput("inputs must be a list of tensors", field="inputs")
    tensors = [_tensor(one, f"inputs/{number}") for number, one in enumerate(inputs)]
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise InvalidInput("two inputs have the same name", field="inputs")
    return tensors


def _tensor(given: Any, place: str) -> Tensor:
    if not isinstance(given, dict):
        raise InvalidInput("an input must be an object with name, shape, datatype and data", field=place)
    name, shape, datatype, data = (given.get(key) for key in ("name", "shape", "datatype", "data"))
    if not isinstance(name, str) or not name:
        raise InvalidInput("an input must have a name", field=f"{place}/name")
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MOST_DIMENSIONS or not all(map(_is_size, shape)):
        raise InvalidInput("shape must be a list of positive whole numbers", field=f"{place}/shape")
    if datatype not in DATATYPES:
        raise InvalidInput(f"datatype must be one of {', '.join(DATATYPES)}", field=f"{place}/datatype")
    if not isinstance(data, list):
        raise InvalidInput("data must be a list: the binary extension is not supported", field=f"{place}/data")
    values: list[Any] = []
    _flatten(data, values)
    if len(values) != prod(shape):
        raise InvalidInput(f"data has {len(values)} values where the shape has {prod(shape)}", field=f"{place}/data")
    _check_values(values, datatype, f"{place}/data")
    return Tensor(name, tuple(shape), values)


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _flatten(data: list[Any], into: list[Any]) -> None:
    for value in data:
        if type(value) is list:
            _flatten(value, into)
        else:
            into.append(value)


def _check_values(values: Sequence[Any], datatype: str, place: str) -> None:
    if datatype in _INTEGERS:
        low, high = _INTEGERS[datatype]
        fits = all(type(v) is int and low <= v <= high for v in values)
    elif datatype in _FLOATS:
        fits = all(v is None or type(v) in (int, float) for v in values)
    else:
        kind = bool if datatype == "BOOL" else str
        fits = all(v is None or type(v) is kind for v in values)
    if not fits:
        raise InvalidInput(f"data holds values that are no {datatype}", field=place)


def input_of(
    tensors: Sequence[Tensor], signature: Signature | None, specs: Sequence[Mapping[str, Any]] | None, content: str
) -> dict[str, Any]:
    """One of MLflow's input formats.

    `specs`: the signature's inputs. `content`: `pd` or `np` where the caller says which of a frame and arrays the
    tensors are. Without either, a tensor by itself of two dimensions and more is an array, others are columns.
    """
    alone = tensors[0] if len(tensors) == 1 else None
    if signature is not None and signature.is_tensor:
        return _arrays(tensors, [spec.get("name") for spec in specs or ()])
    if signature is not None:
        names = list(signature.by_name)
        if alone and alone.name not in signature.by_name and len(alone.shape) == 2 and alone.shape[1] == len(names):
            return {"dataframe_split": {"columns": names, "data": alone.nested()}}
        if not names:
            return {"inputs": alone.nested() if alone else [t.nested() for t in tensors]}
        return _frame(tensors)
    if content == "np" or (content != "pd" and alone and len(alone.shape) > 1):
        return _arrays(tensors, [None] if alone else [t.name for t in tensors])
    return _frame(tensors)


def _arrays(tensors: Sequence[Tensor], names: Sequence[str | None]) -> dict[str, Any]:
    if len(tensors) == 1 and len(names) == 1:  # there is only one that it can be
        name = names[0]
        nested = tensors[0].nested()
        return {"inputs": nested if name is None else {name: nested}}
    return {"inputs": {tensor.name: tensor.nested() for tensor in tensors}}


def _frame(tensors: Sequence[Tensor]) -> dict[str, Any]:
    rows = tensors[0].rows
    for number, tensor in enumerate(tensors):
        if tensor.rows != rows:
            raise InvalidInput(
                f"{shown_name(tensor.name)} has {tensor.rows} rows where the first input has {rows}",
                field=f"inputs/{number}/shape",
            )
    columns = [tensor.column() for tensor in tensors]
    data = [list(row) for row in zip(*columns, strict=True)]
    return {"dataframe_split": {"columns": [t.name for t in tensors], "data": data}}


def place_of(field: str, tensors: Sequence[Tensor], row: int | None) -> str:
    """A JSON pointer to the tensor that is the column `field`."""
    for number, tensor in enumerate(tensors):
        if tensor.name == field:
            flat = len(tensor.values) == tensor.rows
            return f"/inputs/{number}/data/{row - 1}" if row and flat else f"/inputs/{number}"
    return f"/{field}" if field.partition("/")[0] in ("inputs", "outputs", "parameters") else "/inputs"


def outputs_of(predictions: Any) -> list[dict[str, Any]]:
    """`predictions`: JSON. Rows of objects become a tensor a key; one that is uneven is texts of JSON."""
    if isinstance(predictions, list) and predictions and all(isinstance(row, dict) for row in predictions):
        keys = dict.fromkeys(key for row in predictions for key in row)
        return [_output(key, [row.get(key) for row in predictions]) for key in keys]
    if isinstance(predictions, dict) and predictions:
        return [_output(key, value) for key, value in predictions.items()]
    return [_output("predictions", predictions)]


def _output(name: str, value: Any) -> dict[str, Any]:
    rows = value if isinstance(value, list) else [value]
    shape = _shape(rows)
    values: list[Any] = []
    if shape is None:
        shape, values = (len(rows),), rows
    else:
        _flatten(rows, values)
    datatype = _datatype(values)
    if datatype == "BYTES":
        values = [v if isinstance(v, str) else json.dumps(v) for v in values]
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": values}


def _shape(rows: list[Any]) -> tuple[int, ...] | None:
    """None where the lists are of different lengths."""
    inner = [_shape(row) if isinstance(row, list) else () for row in rows]
    if any(one != inner[0] for one in inner):
        return None
    if not inner:
        return (0,)
    return None if inner[0] is None else (len(rows), *inner[0])


def _datatype(values: Sequence[Any]) -> str:
    kinds = set(map(type, values))
    if kinds == {bool}:
        return "BOOL"
    if kinds == {int}:
        return "INT64" if all(-(2**63) <= v < 2**63 for v in values) else "UINT64"
    if kinds and kinds <= {int, float, type(None)}:
        return "FP64"
    return "BYTES"


def metadata_of(specs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A signature's inputs as metadata tensors; -1 stands for any size."""
    return [_described(spec, number) for number, spec in enumerate(specs)]


def _described(spec: Mapping[str, Any], number: int) -> dict[str, Any]:
    name = spec.get("name") or f"input-{number}"
    if spec["type"] == "tensor":
        tensor = spec["tensor-spec"]
        return {"name": name, "datatype": _numpy_datatype(str(tensor["dtype"])), "shape": list(tensor["shape"])}
    inner, shape = spec, [-1]
    while inner["type"] == "array":
        inner, shape = inner["items"], [*shape, -1]
    return {"name": name, "datatype": _COLUMN_TYPES.get(inner["type"], "BYTES"), "shape": shape}


def _numpy_datatype(dtype: str) -> str:
    kind = dtype.rstrip("0123456789")
    if kind == "bool":
        return "BOOL"
    name = _NUMPY_TYPES.get(kind, "") + dtype[len(kind) :]
    return name if name in DATATYPES else "BYTES"
