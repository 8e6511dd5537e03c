"""LightGBM: the scikit-learn API, whose classes may be texts, and a Booster."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature

from tests.flavours.conftest import LogModel, Trial, assert_same, split

lightgbm = pytest.importorskip("lightgbm", reason="needs lightgbm: pip install 'pyfunq[flavours]'")


@pytest.fixture(scope="session")
def data() -> tuple[pd.DataFrame, Any]:
    chance = np.random.default_rng(3)
    x = pd.DataFrame({"age": chance.uniform(18, 90, 300), "income": chance.normal(50, 20, 300)})
    x.loc[::7, "income"] = np.nan
    return x, np.where(x["age"] > 60, "old", np.where(x["income"].fillna(0) > 40, "rich", "poor"))


async def test_classifier_of_texts(log: LogModel, trial: Trial, data: Any) -> None:
    x, y = data
    model = lightgbm.LGBMClassifier(n_estimators=10, verbose=-1).fit(x, y)
    signature = infer_signature(x, model.predict(x))
    uri = log("lightgbm_classifier", mlflow.lightgbm.log_model, lgb_model=model, signature=signature, scores=True)
    some = x.iloc[::10]
    assert some["income"].isna().any()
    assert await trial.rows(uri, some) == model.predict(some).tolist()
    assert (await trial.batch(uri, x))["prediction"].tolist() == model.predict(x).tolist()
    assert_same(await trial.scores(uri, some), model.predict_proba(some).max(axis=1).tolist())
    said = await trial.refusal(uri, split(x.iloc[[0]].assign(age="old")))
    assert "age" in said


async def test_booster(log: LogModel, trial: Trial, data: Any) -> None:
    x, y = data
    booster = lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(x, y == "old"), 10)
    local = booster.predict(x)
    uri = log("lightgbm_booster", mlflow.lightgbm.log_model, lgb_model=booster, signature=infer_signature(x, local))
    assert_same(await trial.rows(uri, x.iloc[:30]), local[:30].tolist())
    assert_same((await trial.batch(uri, x))["prediction"].tolist(), local.tolist())
