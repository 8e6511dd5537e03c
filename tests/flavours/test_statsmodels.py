"""statsmodels: least squares with a constant, by arrays' names and by formula."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature

from tests.flavours.conftest import LogModel, Trial, assert_same, split

pytest.importorskip("statsmodels", reason="needs statsmodels: pip install 'pyfunq[flavours]'")


@pytest.fixture(scope="session")
def data() -> pd.DataFrame:
    chance = np.random.default_rng(3)
    frame = pd.DataFrame({"size": chance.uniform(20, 200, 60), "place": chance.choice(["town", "village"], 60)})
    return frame.assign(rent=9.0 * frame["size"] + 200 * (frame["place"] == "town") + chance.normal(0, 5, 60))


async def test_ols_with_const(log: LogModel, trial: Trial, data: Any) -> None:
    import statsmodels.api as sm

    x = sm.add_constant(data[["size"]])
    fitted = sm.OLS(data["rent"], x).fit()
    uri = log(
        "statsmodels_ols",
        mlflow.statsmodels.log_model,
        statsmodels_model=fitted,
        signature=infer_signature(x, fitted.predict(x)),
    )
    assert_same(await trial.rows(uri, x.iloc[:20]), fitted.predict(x).tolist()[:20])
    assert_same((await trial.batch(uri, x))["prediction"].tolist(), fitted.predict(x).tolist())
    assert "const" in await trial.refusal(uri, split(x.iloc[[0]][["size"]]))


async def test_formula_with_categories(log: LogModel, trial: Trial, data: Any) -> None:
    import statsmodels.formula.api as smf

    fitted = smf.ols("rent ~ size + C(place)", data).fit()
    x = data[["size", "place"]]
    uri = log(
        "statsmodels_formula",
        mlflow.statsmodels.log_model,
        statsmodels_model=fitted,
        signature=infer_signature(x, fitted.predict(x)),
    )
    assert_same(await trial.rows(uri, x.iloc[:20]), fitted.predict(x).tolist()[:20])
    assert_same((await trial.batch(uri, x))["prediction"].tolist(), fitted.predict(x).tolist())
