"""The models that are attacked: their answers tell which version gave them, and some inputs kill the process."""

import logging
import sys
import warnings
from typing import Any

import cloudpickle
import mlflow
import pandas as pd
from mlflow.models import infer_signature
from mlflow.pyfunc import PythonModel

MODELS = ("alpha", "beta")
VERSIONS = (1, 2)
CALL_SECONDS = 0.03


def uri_of(model: str) -> str:
    return f"models:/{model}@champion"


def answer(model: str, version: int, x: float) -> float:
    return x * 100 + MODELS.index(model) * 10 + version


class Checkable(PythonModel):  # type: ignore[misc]
    """`x` times 100 plus what tells the version; a negative `x` exits the process, kills it or hangs, by turns."""

    def __init__(self, plus: float, seconds: float) -> None:
        self.plus = plus
        self.seconds = seconds

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        import os
        import signal
        import time

        time.sleep(self.seconds)
        for x in model_input["x"]:
            if x < 0 and x % 3 == 0:
                os._exit(1)
            if x < 0 and x % 3 == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if x < 0:
                time.sleep(3600)
        return model_input["x"] * 100 + self.plus


def register(tracking_uri: str) -> None:
    """Both versions of both models, the first of each as champion."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(tracking_uri)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers have no tests to import it from
    rows = pd.DataFrame({"x": [1.0]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in MODELS:
            for version in VERSIONS:
                mlflow.pyfunc.log_model(
                    python_model=Checkable(answer(model, version, 0.0), CALL_SECONDS),
                    name="model",
                    registered_model_name=model,
                    signature=infer_signature(rows),
                    pip_requirements=[],
                )
    for model in MODELS:
        promote(tracking_uri, model, VERSIONS[0])


def promote(tracking_uri: str, model: str, version: int) -> None:
    mlflow.MlflowClient(tracking_uri).set_registered_model_alias(model, "champion", str(version))


def champion(tracking_uri: str, model: str) -> int:
    return int(mlflow.MlflowClient(tracking_uri).get_model_version_by_alias(model, "champion").version)
