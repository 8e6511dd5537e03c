"""The demo's models: a classifier on iris and a regressor on diabetes, in two versions each."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from producer.promotion import promote

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}

IRIS, DIABETES = "iris", "diabetes"
ALIAS, STAGE = "champion", "Production"


@contextmanager
def _quiet() -> Iterator[None]:
    """What MLflow says while logging a model is for its authors, not for who watches the demo."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class DemoModels:
    """Trains, logs and registers; `tracking_uri` is the MLflow server's address."""

    def __init__(self, tracking_uri: str) -> None:
        os.environ.update(_ENVIRONMENT)
        import mlflow

        mlflow.set_tracking_uri(tracking_uri)
        self._client = mlflow.MlflowClient()

    def iris_v1(self) -> None:
        from sklearn.linear_model import LogisticRegression

        x, y = iris()
        self._register(IRIS, 1, LogisticRegression(max_iter=1000).fit(x, y), x)
        self._client.set_registered_model_tag(IRIS, "pyfunq.confidence", "on")

    def diabetes_v1(self) -> None:
        from sklearn.linear_model import Ridge

        x, y = diabetes()
        self._register(DIABETES, 1, Ridge(alpha=1.0).fit(x, y), x)

    def diabetes_v2(self) -> None:
        from sklearn.linear_model import Ridge

        x, y = diabetes()
        self._register(DIABETES, 2, Ridge(alpha=0.01).fit(x, y), x)

    def promote(self, name: str, version: int) -> None:
        """The version becomes @champion and Production."""
        promote(self._client, name, version, alias=ALIAS, stage=STAGE)

    def _register(self, name: str, version: int, model: Any, x: pd.DataFrame) -> None:
        import mlflow
        from mlflow.models import infer_signature

        with _quiet():
            mlflow.set_experiment(name)
            with mlflow.start_run(run_name=f"{name}-v{version}") as run:
                mlflow.log_param("model", type(model).__name__)
                logged = mlflow.sklearn.log_model(
                    model,
                    name="model",
                    signature=infer_signature(x, model.predict(x)),
                    input_example=x.head(1),
                    pip_requirements=["scikit-learn"],
                )
            if version == 1:
                self._client.create_registered_model(name)
            self._client.create_model_version(name, logged.model_uri, run.info.run_id, model_id=logged.model_id)


def iris() -> tuple[pd.DataFrame, Any]:
    """150 rows, 4 columns; the class names."""
    from sklearn.datasets import load_iris

    data = load_iris(as_frame=True)
    x = data.data.rename(columns=lambda c: c.removesuffix(" (cm)").replace(" ", "_"))
    return x, data.target_names[data.target]


def diabetes() -> tuple[pd.DataFrame, Any]:
    """442 rows, 10 columns; disease progression after a year."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes(as_frame=True)
    return data.data, data.target


def write_backlog(path: Path, rows: int) -> None:
    """The diabetes rows again and again, each a little different, as Parquet."""
    import numpy as np

    x, _ = diabetes()
    random = np.random.default_rng(7)
    many = x.sample(rows, replace=True, random_state=7, ignore_index=True)
    many += random.normal(scale=0.005, size=many.shape)
    many.to_parquet(path, index=False, row_group_size=10_000)
