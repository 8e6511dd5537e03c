"""Whether a model takes given params, said before it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.types import DataType, ParamSchema, ParamSpec

from pyfunq.errors import InvalidInput
from worker.columns import listed

_KINDS = {bool: "boolean", int: "integer", float: "number", str: "text"}


def check_params(params: Mapping[str, Any] | None, schema: ParamSchema | None) -> None:
    """Raises InvalidInput for one that the model does not know, which MLflow drops, or that has another type."""
    if not params:
        return
    if schema is None:
        raise InvalidInput("the model takes no params", field="params")
    known = {spec.name: spec for spec in schema.params}
    if unknown := [name for name in params if name not in known]:
        raise InvalidInput(f"params that the model does not take: {listed(unknown)}", field="params")
    for name, value in params.items():
        try:
            ParamSpec.validate_param_spec(value, known[name])
        except MlflowException as error:
            said = f"expected {_expected(known[name])}, found {_found(value)}"
            raise InvalidInput(f"param {listed([name])}: {said}", field="params") from error


def _expected(spec: Any) -> str:
    if not isinstance(spec.dtype, DataType):
        return f"an object of {listed([member.name for member in spec.dtype.properties])}"
    return f"a list of {spec.dtype.name}" if spec.shape else str(spec.dtype.name)


def _found(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object of {listed(list(value))}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {listed(sorted({_found(item) for item in value}))}" if value else "an empty list"
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)
