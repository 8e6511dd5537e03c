"""The shorter way to a model's prediction, for frames that MLflow's schema enforcement would leave as they are."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from mlflow.pyfunc import PyFuncModel
from mlflow.types import DataType, Schema

Predict = Callable[[Any, dict[str, Any] | None], Any]

_NUMBERS = {DataType.double, DataType.float, DataType.long, DataType.integer}
# Whose predictions depend on nothing but the frame: not on the context (model id, tracing) that `predict` sets up.
_LOADERS = {"mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm", "mlflow.catboost", "mlflow.statsmodels"}


def prediction_of(model: PyFuncModel) -> Predict:
    """What to call with a frame and params.

    `PyFuncModel.predict` takes about 1 ms for any number of rows to check and copy the frame. Where its columns are
    those of the signature, all numbers of the signature's types, and there are no params, there is nothing to find.
    """

    def whole(frame: Any, params: dict[str, Any] | None) -> Any:
        return model.predict(frame, params=params)

    schema = model.metadata.get_input_schema()
    call = _implementation(model)
    if call is None or schema is None or not _is_of_numbers(schema):
        return whole
    names = schema.input_names()
    dtypes = [spec.type.to_numpy() for spec in schema.inputs]

    def quick(frame: Any, params: dict[str, Any] | None) -> Any:
        if params is not None or not _is(frame, names, dtypes):
            return whole(frame, params)
        return call(frame)

    return quick


def _implementation(model: PyFuncModel) -> Callable[[Any], Any] | None:
    metadata = model.metadata
    flavor = metadata.flavors.get("python_function", {})
    if flavor.get("loader_module") not in _LOADERS or metadata.get_params_schema() is not None:
        return None
    predict = getattr(model._model_impl, flavor.get("predict_fn", "predict"), None)
    if predict is None:
        return None
    params = inspect.signature(predict).parameters.get("params")
    if params is not None and params.kind != inspect.Parameter.VAR_KEYWORD:
        return lambda frame: predict(frame, params=None)
    return predict  # type: ignore[no-any-return]


def _is_of_numbers(schema: Schema) -> bool:
    if schema.is_tensor_spec() or not schema.has_input_names():
        return False
    return all(isinstance(spec.type, DataType) and spec.type in _NUMBERS for spec in schema.inputs)


def _is(frame: Any, names: list[str], dtypes: list[np.dtype[Any]]) -> bool:
    return type(frame) is pd.DataFrame and list(frame.columns) == names and list(frame.dtypes) == dtypes


def answers_by_name(model: Any) -> bool:
    """Whether each of its named outputs has an entry a row: those of an ONNX graph for any number of rows."""
    if not isinstance(model, PyFuncModel) or model.loader_module != "mlflow.onnx":
        return False
    outputs = model._model_impl.rt.get_outputs()
    return all(output.shape and not isinstance(output.shape[0], int) for output in outputs)
