"""The columns and tensors of a model's signature as people and programs are shown them."""

from collections.abc import Mapping
from typing import Any


def column_facts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec`: one of the inputs of MLflow's signature. `name` is None where columns are told apart by position."""
    required = spec.get("required")
    return {
        "name": spec.get("name"),
        "type": _type(spec),
        "required": bool(required if required is not None else not spec.get("optional", False)),
    }


def _type(spec: Mapping[str, Any]) -> str:
    match spec["type"]:
        case "tensor":
            tensor = spec["tensor-spec"]
            return f"tensor {tensor['dtype']} ({', '.join(str(n) if n >= 0 else 'any' for n in tensor['shape'])})"
        case "array":
            return f"list of {_type(spec['items'])}"
        case "object":
            inner = (f"{name}: {_type(part)}" for name, part in spec.get("properties", {}).items())
            return f"object ({', '.join(inner)})"
        case "map":
            return f"object of {_type(spec['values'])}"
        case kind:
            return str(kind)
