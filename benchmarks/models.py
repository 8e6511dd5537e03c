"""The models of the benchmarks, trained and registered here, and the rows that they are asked about."""

import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.failure import BenchmarkFailed

FEATURES = 20
COLUMNS = [f"f{i}" for i in range(FEATURES)]
ROW_GROUP_ROWS = 100_000
_TRAINING_ROWS = 2_000
_TRUTH_ROWS = 50_000
_BLOCK_ROWS = 100_000

LOGISTIC, FOREST, NETWORK = "lr", "rf", "mlp"
TITLES = {
    LOGISTIC: "LogisticRegression",
    FOREST: "RandomForest (100 trees, depth 10)",
    NETWORK: "MLPClassifier (two layers of 512)",
}

Predictions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """A registered model; `files` is a copy of it for programs that know no registry."""

    name: str
    files: Path
    estimator: Any

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/1"

    def truth(self, rows: npt.NDArray[np.float64]) -> Predictions:
        """What the model says of these rows, asked directly."""
        frame = as_frame(rows)
        parts = [self.estimator.predict(frame.iloc[at : at + _TRUTH_ROWS]) for at in range(0, len(frame), _TRUTH_ROWS)]
        return np.concatenate(parts).astype(np.int64)


def as_frame(rows: Any) -> Any:
    import pandas as pd

    return pd.DataFrame(rows, columns=COLUMNS)


def random_rows(rows: int, seed: int) -> npt.NDArray[np.float64]:
    """`rows` x 20 normal values of six decimals; the same for the same seed."""
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).round(6)


def split_inputs(rows: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """A single-row input of the client for each row."""
    return [{"dataframe_split": {"columns": COLUMNS, "data": [row]}} for row in rows.tolist()]


def register(tracking_uri: str, kind: str, directory: Path, name: str | None = None) -> Model:
    """Trains a model of a kind (LOGISTIC, FOREST, NETWORK) and registers it with its signature, as version 1."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow.models import infer_signature

    mlflow.set_tracking_uri(tracking_uri)
    rows = np.random.default_rng(0).normal(size=(_TRAINING_ROWS, FEATURES))
    frame = as_frame(rows)
    estimator = _estimator(kind).fit(frame, (rows.sum(axis=1) > 0).astype(np.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.log_model(
            estimator,
            name="model",
            registered_model_name=name or kind,
            signature=infer_signature(frame, estimator.predict(frame)),
            pip_requirements=[],
            serialization_format="cloudpickle",
        )
        directory.mkdir(parents=True, exist_ok=True)
        files = mlflow.artifacts.download_artifacts(f"models:/{name or kind}/1", dst_path=str(directory))
    return Model(name or kind, Path(files), estimator)


def _estimator(kind: str) -> Any:
    if kind == LOGISTIC:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression()
    if kind == NETWORK:
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier((512, 512), solver="lbfgs", max_iter=5, random_state=0)
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=100, max_depth=10, random_state=0)


@dataclass(frozen=True)
class Backlog:
    """A Parquet file of rows, and what each model says of them."""

    path: Path
    rows: int
    truths: dict[str, Predictions]


def write_backlog(path: Path, rows: int, models: Sequence[Model], row_group_rows: int) -> Backlog:
    """`rows` x 20, written and asked about a block at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    truths: dict[str, list[Predictions]] = {model.name: [] for model in models}
    schema = pa.schema([(name, pa.float64()) for name in COLUMNS])
    with pq.ParquetWriter(path, schema) as writer:
        for number, at in enumerate(range(0, rows, _BLOCK_ROWS)):
            block = random_rows(min(_BLOCK_ROWS, rows - at), seed=1000 + number)
            table = pa.table([block[:, i] for i in range(FEATURES)], schema=schema)
            writer.write_table(table, row_group_size=row_group_rows)
            for model in models:
                truths[model.name].append(model.truth(block))
    return Backlog(path, rows, {name: np.concatenate(parts) for name, parts in truths.items()})


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Without the lines that MLflow logs and prints while it registers a model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def check(what: str, found: Sequence[Any] | npt.NDArray[Any], expected: Predictions) -> None:
    """Raises BenchmarkFailed unless every prediction is there and right, in order."""
    answers = np.asarray(found)
    if answers.shape != expected.shape:
        raise BenchmarkFailed(f"{what}: {answers.shape[0] if answers.ndim else 0} of {len(expected)} results are there")
    wrong = int(np.count_nonzero(answers.astype(np.float64) != expected))
    if wrong:
        raise BenchmarkFailed(f"{what}: {wrong} of {len(expected)} results are wrong")
