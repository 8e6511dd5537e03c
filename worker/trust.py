"""Which models' files may be loaded here: loading runs what they say, so this is asked before anything of them is."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelUntrusted
from pyfunq.model_digest import digest_of_files, read_trusted
from pyfunq.settings import Settings

log = logging.getLogger(__name__)

_MODEL_FILE = "MLmodel"
_CODE_KEYS = ("code", "model_code_path")
# By loader: those whose files are read as data, each with what must hold of its flavour's entry in MLmodel.
_DATA_ONLY: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    # skops reads the types that it may make from the model's own MLmodel: without such a list it makes only its own.
    "mlflow.sklearn": {"serialization_format": ("skops",), "skops_trusted_types": (None, [])},
    "mlflow.onnx": {},
    "mlflow.xgboost": {
        "model_class": (
            None,
            "xgboost.core.Booster",
            *(f"xgboost.sklearn.XGB{kind}" for kind in ("Classifier", "Regressor", "Ranker")),
            *(f"xgboost.sklearn.XGBRF{kind}" for kind in ("Classifier", "Regressor")),
        )
    },
    "mlflow.lightgbm": {"model_class": (None, "lightgbm.basic.Booster")},
}


class Trust:
    """What the operator lets workers load. The file of trusted models is read once, when a process starts."""

    def __init__(self, trusted_models: Path | None, *, allow_pickle: bool) -> None:
        """Raises NotConfigured where the file of trusted models cannot be used."""
        self._allow_pickle = allow_pickle
        self._trusted = read_trusted(trusted_models) if trusted_models is not None else None

    @classmethod
    def of(cls, settings: Settings) -> "Trust":
        return cls(settings.trusted_models, allow_pickle=settings.allow_pickle)

    def check(self, version: ModelVersion, path: Path) -> None:
        """Reads the files and imports nothing. Raises ModelUntrusted."""
        if self._trusted is not None:
            self._check_digest(version, path, self._trusted)
        if not self._allow_pickle and (why := what_it_runs(path)):
            raise ModelUntrusted(f"{version} {why}, and PYFUNQ_ALLOW_PICKLE is false here")

    def _check_digest(self, version: ModelVersion, path: Path, trusted: Mapping[str, str]) -> None:
        said = trusted.get(str(version))
        if said is None:
            raise ModelUntrusted(f"{version} is not among the models that PYFUNQ_TRUSTED_MODELS names")
        if digest_of_files(path) != said:
            log.error("the files of %s are not those that PYFUNQ_TRUSTED_MODELS names", version)
            raise ModelUntrusted(f"the files of {version} are not those that PYFUNQ_TRUSTED_MODELS names")


def what_it_runs(path: Path) -> str | None:
    """Why loading the files would run what they bring; None where they are read as data.

    What is not known to be data counts as code: pickles, modules of the model's own, loaders other than MLflow's.
    """
    try:
        described = yaml.safe_load((path / _MODEL_FILE).read_text("utf-8"))
        flavors = described["flavors"]
        function = flavors["python_function"]
        loader = str(function["loader_module"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return "does not say how it is loaded"
    if any(isinstance(flavor, dict) and flavor.get(key) for flavor in flavors.values() for key in _CODE_KEYS):
        return "brings modules of its own"
    if next(path.rglob("*.py"), None) is not None:
        return "brings modules of its own"
    needed = _DATA_ONLY.get(loader)
    if needed is None:
        return "is loaded by what can unpickle"
    flavor = flavors.get(loader.removeprefix("mlflow."))
    if not isinstance(flavor, dict):
        return "does not say how it is loaded"
    if any(flavor.get(name) not in values for name, values in needed.items()):
        return "is loaded by unpickling it"
    return None
