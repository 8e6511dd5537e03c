"""PyTorch: tensors of several shapes, and DataFrames."""

import re
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature

from tests.flavours.conftest import LogModel, Trial, assert_same, split

torch = pytest.importorskip("torch", reason="needs PyTorch, of which a CPU build will do")


def images(n: int) -> Any:
    return np.random.default_rng(3).random((n, 8, 8), dtype=np.float32)


def local(model: Any, x: Any) -> Any:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("serialization", ["pickle", "pt2"])
async def test_tensors_of_images(log: LogModel, trial: Trial, serialization: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    x = images(12)
    how = (
        {"serialization_format": serialization}
        if serialization == "pickle"
        else {"serialization_format": "pt2", "input_example": x}
    )
    uri = log(
        f"torch_images_{serialization}",
        mlflow.pytorch.log_model,
        pytorch_model=model,
        signature=infer_signature(x, local(model, x)),
        **how,
    )
    answers = await trial.together(uri, [{"inputs": [image]} for image in x.tolist()])
    assert_same(answers, [[row] for row in local(model, x).tolist()])
    assert_same(await trial.one(uri, {"instances": x.tolist()}), local(model, x).tolist())
    frame = pd.DataFrame({"image": [image.ravel().tolist() for image in x]})
    assert_same((await trial.batch(uri, frame)).to_numpy().tolist(), local(model, x).tolist())
    said = await trial.refusal(uri, {"inputs": [[[0.5] * 8] * 7]})
    assert said.startswith("invalid_input")
    assert "(-1, 8, 8)" in said
    assert "(1, 7, 8)" in said
    assert "expected float32" in await trial.refusal(uri, {"inputs": [[["a"] * 8] * 8]})


async def test_frames(log: LogModel, trial: Trial) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    frame = pd.DataFrame(np.random.default_rng(3).random((12, 3)), columns=["a", "b", "c"])
    expected = local(model, frame.to_numpy(np.float32, copy=True))
    uri = log(
        "torch_frames",
        mlflow.pytorch.log_model,
        pytorch_model=model,
        serialization_format="pickle",
        signature=infer_signature(frame, pd.DataFrame(expected)),
    )
    assert_same(await trial.rows(uri, frame), [{"0": float(a), "1": float(b)} for a, b in expected])
    assert_same((await trial.batch(uri, frame)).to_numpy().tolist(), expected.tolist())
    assert re.search(r"column '?b\b", await trial.refusal(uri, split(frame.iloc[[0]].assign(b="high"))))
