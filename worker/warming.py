"""Warming: a first prediction, on the model's own example or a made row, before a version gets jobs."""

import logging
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import Model as ModelMetadata
from mlflow.types import DataType, Schema

from worker.loading import LoadedModel

log = logging.getLogger(__name__)

_VALUES: dict[DataType, Any] = {
    DataType.boolean: False,
    DataType.integer: 0,
    DataType.long: 0,
    DataType.float: 0.0,
    DataType.double: 0.0,
    DataType.string: "",
    DataType.binary: b"",
    DataType.datetime: datetime(2000, 1, 1),
}


def warm(new: LoadedModel, old: LoadedModel | None = None) -> str | None:
    """Lets a version predict once; says why it is not fit to serve, if it is not.

    Unfit is what fails on its own example, or on a made row which `old`, the version that serves now, takes. That
    a made row alone is refused says nothing: no signature tells which values make sense.
    """
    example = own_example(new)
    row = made_row(new.schema) if example is None else example
    if row is None or (reason := _failure(new, row)) is None:
        return None
    if example is not None:
        return f"it fails on its own input example: {reason}"
    if old is not None and _failure(old, row) is None:
        return f"it fails on a row that {old.version} takes: {reason}"
    log.info("%s refused the row that was made to warm it", new.version)
    return None


def own_example(model: LoadedModel) -> Any:
    """The input example that the model was logged with; None where there is none that can be read."""
    metadata: ModelMetadata = model.metadata
    if metadata.saved_input_example_info is None:
        return None
    try:
        example = metadata.load_input_example(str(model.path))
    except Exception as exc:  # examples are an extra, and come in forms of many MLflow versions
        log.info("the input example of %s cannot be read: %s", model.version, type(exc).__name__)
        return None
    return example[0] if isinstance(example, tuple) else example


def made_row(schema: Schema | None) -> Any:
    """A row as the signature wants it, of zeros and empty texts; None where the signature does not say enough."""
    if schema is None:
        return None
    if schema.is_tensor_spec():
        tensors = {
            spec.name: np.zeros([1 if size == -1 else size for size in spec.shape], dtype=spec.type)
            for spec in schema.inputs
        }
        return tensors if schema.has_input_names() else next(iter(tensors.values()))
    if not all(isinstance(spec.type, DataType) for spec in schema.inputs):
        return None
    columns = [spec.name if spec.name is not None else i for i, spec in enumerate(schema.inputs)]
    values = [pd.Series([_VALUES[spec.type]], dtype=_dtype(spec.type)) for spec in schema.inputs]
    return pd.DataFrame(dict(zip(columns, values, strict=True)))


def _dtype(kind: DataType) -> Any:
    return object if kind in (DataType.string, DataType.binary) else kind.to_pandas()


def _failure(model: LoadedModel, row: Any) -> str | None:
    try:
        model.predict(row.copy() if hasattr(row, "copy") else row, None)
    except Exception as exc:  # whatever the model's own code raises; its words may hold the example's values
        return type(exc).__name__
    return None
