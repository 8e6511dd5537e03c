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
_BY_NUMBERS = (
    *("sklearn.linear_model.", "sklearn.tree.", "sklearn.ensemble._forest", "sklearn.ensemble._gb"),
    *("sklearn.naive_bayes", "sklearn.svm.", "sklearn.neural_network.", "sklearn.discriminant_analysis"),
)
"""Modules whose estimators make an array of a frame before all else, and look at nothing but its columns' names."""


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
    if (of_array := _of_array(model, names, dtypes)) is not None:
        call = of_array

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


def _of_array(model: PyFuncModel, names: list[str], dtypes: list[np.dtype[Any]]) -> Callable[[Any], Any] | None:
    """The prediction of an estimator of scikit-learn's own from a frame of doubles with these names, if it is one.

    To look at a frame takes scikit-learn 1 ms, whatever its rows; `_is` has done so. The array is the one that it would
    make itself, and goes to the same estimator without its columns' names, which an array has none of.
    """
    flavor = model.metadata.flavors["python_function"]
    if flavor.get("loader_module") != "mlflow.sklearn" or set(dtypes) != {np.dtype(np.float64)}:
        return None
    estimator = model.get_raw_model()
    learned = getattr(estimator, "feature_names_in_", None)
    if not type(estimator).__module__.startswith(_BY_NUMBERS) or (learned is not None and list(learned) != names):
        return None
    nameless = object.__new__(type(estimator))
    nameless.__dict__.update((name, value) for name, value in vars(estimator).items() if name != "feature_names_in_")
    predict = getattr(nameless, flavor.get("predict_fn", "predict"))
    return lambda frame: predict(frame.to_numpy())


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
