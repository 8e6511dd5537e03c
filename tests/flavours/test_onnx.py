"""ONNX: answers by output name to tensors, and a DataFrame to DataFrames."""

import re
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression

from tests.flavours.conftest import LogModel, Trial, assert_same, quiet, split

pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'pyfunq[flavours]'")
skl2onnx = pytest.importorskip("skl2onnx", reason="needs skl2onnx: pip install 'pyfunq[flavours]'")


def converted(model: Any, x: Any, **options: Any) -> Any:
    with quiet():
        return skl2onnx.to_onnx(model, x[:1].astype(np.float32), options={id(model): options} if options else None)


async def test_answers_by_output_name(log: LogModel, trial: Trial) -> None:
    x, y = load_iris(return_X_y=True)
    x = x[::15].astype(np.float32)
    model = LogisticRegression(max_iter=500).fit(x, y[::15])
    signature = infer_signature({"X": x}, {"label": y[::15], "probabilities": model.predict_proba(x)})
    uri = log("onnx_tensor", mlflow.onnx.log_model, onnx_model=converted(model, x, zipmap=False), signature=signature)
    answers = await trial.together(uri, [{"inputs": {"X": [row]}} for row in x.tolist()])
    expected = [
        {"label": [int(label)], "probabilities": [row]}
        for label, row in zip(model.predict(x), model.predict_proba(x).tolist(), strict=True)
    ]
    assert_same(answers, expected)
    all_ = await trial.one(uri, {"inputs": {"X": x.tolist()}})
    assert all_["label"] == model.predict(x).tolist()
    said = await trial.refusal(uri, {"inputs": {"X": [[1.0]]}})
    assert "input X" in said
    assert "(-1, 4)" in said


async def test_frames(log: LogModel, trial: Trial) -> None:
    x, y = load_iris(return_X_y=True)
    frame = pd.DataFrame(x, columns=["a", "b", "c", "d"])
    model = LinearRegression().fit(x, y)
    signature = infer_signature(frame, pd.DataFrame({"variable": model.predict(x)}))
    uri = log("onnx_frame", mlflow.onnx.log_model, onnx_model=converted(model, x), signature=signature)
    expected = model.predict(x)
    assert_same(await trial.rows(uri, frame.iloc[:20]), [{"variable": v} for v in expected[:20].tolist()])
    assert_same((await trial.batch(uri, frame))["variable"].tolist(), expected.tolist())
    assert re.search(r"column '?b\b", await trial.refusal(uri, split(frame.iloc[[0]].assign(b="high"))))
