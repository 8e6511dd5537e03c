"""XGBoost: the scikit-learn API, whose classes are numbers, and a Booster."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import LabelEncoder

from tests.flavours.conftest import LogModel, Trial, assert_same, quiet, split

xgboost = pytest.importorskip("xgboost", reason="needs xgboost: pip install 'pyfunq[flavours]'")


@pytest.fixture(scope="session")
def data() -> tuple[pd.DataFrame, Any]:
    chance = np.random.default_rng(3)
    x = pd.DataFrame({"age": chance.integers(18, 90, 300), "income": chance.normal(50, 20, 300)})
    x.loc[::7, "income"] = np.nan
    return x, (x["age"] > 60).astype(int) + (x["income"].fillna(0) > 40).astype(int)


async def test_classifier(log: LogModel, trial: Trial, data: Any) -> None:
    x, y = data
    model = xgboost.XGBClassifier(n_estimators=10, max_depth=3).fit(x, y)
    with quiet():  # of integer columns
        signature = infer_signature(x, model.predict(x))
    uri = log("xgboost_classifier", mlflow.xgboost.log_model, xgb_model=model, signature=signature, scores=True)
    some = x.iloc[::10]
    assert some["income"].isna().any()
    assert await trial.rows(uri, some) == model.predict(some).tolist()
    assert (await trial.batch(uri, x))["prediction"].tolist() == model.predict(x).tolist()
    assert_same(await trial.scores(uri, some), model.predict_proba(some).max(axis=1).tolist())
    said = await trial.refusal(uri, split(x.iloc[[0]].assign(age=1.5)))
    assert "age" in said
    assert "1.5" not in said


class TextLabels(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """XGBoost's own classifier takes the classes 0, 1, ... only."""

    def fit(self, x: Any, y: Any) -> "TextLabels":
        self.labels = LabelEncoder().fit(y)
        self.model = xgboost.XGBClassifier(n_estimators=10, max_depth=3).fit(x, self.labels.transform(y))
        return self

    def predict(self, x: Any) -> Any:
        return self.labels.inverse_transform(self.model.predict(x))

    def predict_proba(self, x: Any) -> Any:
        return self.model.predict_proba(x)


async def test_labels_that_are_texts_come_from_a_model_around_it(log: LogModel, trial: Trial, data: Any) -> None:
    x, y = data
    x = x.astype(float)
    model = TextLabels().fit(x, np.array(["low", "middle", "high"])[y])
    uri = log(
        "xgboost_texts",
        mlflow.sklearn.log_model,
        sk_model=model,
        serialization_format="cloudpickle",
        signature=infer_signature(x, model.predict(x)),
        scores=True,
    )
    some = x.iloc[::10]
    assert await trial.rows(uri, some) == model.predict(some).tolist()
    assert set((await trial.batch(uri, x))["prediction"]) == {"low", "middle", "high"}
    assert_same(await trial.scores(uri, some), model.predict_proba(some).max(axis=1).tolist())


@pytest.mark.parametrize("params", [None, {"output_margin": True}])
async def test_booster_with_params(log: LogModel, trial: Trial, data: Any, params: Any) -> None:
    x, y = data
    x = x.astype(float)
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(x, y > 1), 10)
    local = booster.predict(xgboost.DMatrix(x), **(params or {}))
    signature = infer_signature(x, local, params={"output_margin": False})
    uri = log("xgboost_booster", mlflow.xgboost.log_model, xgb_model=booster, signature=signature, scores=True)
    assert_same(await trial.rows(uri, x.iloc[:30], params), local[:30].tolist())
    if params is None:
        assert_same((await trial.batch(uri, x))["prediction"].tolist(), local.tolist())
        assert await trial.one(uri, split(x.iloc[:2])) == pytest.approx(local[:2].tolist())
