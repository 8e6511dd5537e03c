"""Example inputs: one row that a model takes, from its own example or made from its signature."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from pyfunq.errors import InvalidInput
from pyfunq.inputs import encode_input
from pyfunq.signature import Signature

MAX_BYTES = 10_000
"""A larger example is not shown."""
_MAX_VALUES = 1_000

_VALUES: dict[str, Any] = {
    "double": 1.0,
    "float": 1.0,
    "long": 1,
    "integer": 1,
    "boolean": True,
    "string": "text",
    "binary": "AA==",
    "datetime": "2026-01-31T12:00:00",
}
_TENSOR_VALUES: tuple[tuple[str, Any], ...] = (("float", 1.0), ("int", 1), ("uint", 1), ("bool", True))


def example_from(
    own: Mapping[str, Any] | None,
    inputs: Sequence[Mapping[str, Any]] | None,
    params: Sequence[Mapping[str, Any]] | None,
    signature: Signature | None,
) -> tuple[dict[str, Any] | None, bool]:
    """An input of one row that `submit` takes, and whether it is the model's own; None where there is none.

    `own` is what the model was logged with; `inputs` and `params` are the specs of MLflow's signature.
    """
    if own is not None and _fits(one_row := first_row(own), signature):
        return one_row, True
    if not inputs:
        return None, False
    made = made_from(inputs, params)
    return (made, False) if made is not None and _fits(made, signature) else (None, False)


def first_row(example: Mapping[str, Any]) -> dict[str, Any]:
    """The example with no more than its first row, where it can be told what a row is."""
    one = dict(example)
    split = one.get("dataframe_split")
    if isinstance(split, dict) and isinstance(split.get("data"), list):
        one["dataframe_split"] = {"columns": split.get("columns"), "data": split["data"][:1]}
    for form in ("dataframe_records", "instances", "inputs"):
        if isinstance(one.get(form), list):
            one[form] = one[form][:1]
    return one


def made_from(
    inputs: Sequence[Mapping[str, Any]], params: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any] | None:
    """A row made from the types alone; None where it would have too many values to be shown."""
    if any(spec["type"] == "tensor" for spec in inputs):
        tensors = [_tensor(spec["tensor-spec"]) for spec in inputs]
        if any(tensor is None for tensor in tensors):
            return None
        named = {spec["name"]: tensor for spec, tensor in zip(inputs, tensors, strict=True) if spec.get("name")}
        made: dict[str, Any] = {"inputs": named or tensors[0]}
    elif all(spec.get("name") is not None for spec in inputs):
        made = {"dataframe_split": {"columns": [s["name"] for s in inputs], "data": [[_value(s) for s in inputs]]}}
    else:
        values = [_value(spec) for spec in inputs]
        made = {"inputs": values if len(values) == 1 else [values]}
    if params:
        made["params"] = {spec["name"]: spec.get("default") for spec in params}
    return made


def _value(spec: Mapping[str, Any]) -> Any:
    match spec["type"]:
        case "array":
            return [_value(spec["items"])]
        case "object":
            return {name: _value(inner) for name, inner in spec.get("properties", {}).items()}
        case "map":
            return {"key": _value(spec["values"])}
        case kind:
            return _VALUES.get(kind, "text")


def _tensor(spec: Mapping[str, Any]) -> Any:
    shape = [1 if size < 0 else size for size in spec["shape"]]
    if prod(shape) > _MAX_VALUES:
        return None
    value: Any = next((v for prefix, v in _TENSOR_VALUES if str(spec["dtype"]).startswith(prefix)), "text")
    for size in reversed(shape):
        value = [value] * size
    return value


def _fits(example: dict[str, Any], signature: Signature | None) -> bool:
    try:
        return encode_input(example, signature=signature, max_bytes=MAX_BYTES).rows > 0
    except InvalidInput:
        return False
