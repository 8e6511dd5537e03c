"""scikit-learn: pickle and skops, numbers, and pipelines of text, times and categories."""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from tests.flavours.conftest import LogModel, Trial, assert_same, split


@pytest.fixture(scope="session")
def iris() -> tuple[pd.DataFrame, Any]:
    data = load_iris(as_frame=True)
    return data.data.rename(columns=lambda c: c.removesuffix(" (cm)").replace(" ", "_")), data.target


def named(target: Any) -> Any:
    return load_iris().target_names[target]


@pytest.mark.parametrize("serialization", ["cloudpickle", "pickle", "skops"])
@pytest.mark.parametrize("kind", ["logistic_regression", "random_forest"])
async def test_classifiers(log: LogModel, trial: Trial, iris: Any, kind: str, serialization: str) -> None:
    x, y = iris
    model: Any = {
        "logistic_regression": LogisticRegression(max_iter=500),
        "random_forest": RandomForestClassifier(20, random_state=0),
    }[kind].fit(x, named(y))
    # MLflow's own list of types that skops may load lacks the forest's trees.
    trusted = (
        {"skops_trusted_types": ["sklearn.tree._tree.Tree"]}
        if (kind, serialization) == ("random_forest", "skops")
        else {}
    )
    uri = log(
        f"sklearn_{kind}_{serialization}",
        mlflow.sklearn.log_model,
        sk_model=model,
        serialization_format=serialization,
        signature=infer_signature(x, model.predict(x)),
        scores=True,
        **trusted,
    )
    some = x.iloc[::10]
    assert await trial.rows(uri, some) == model.predict(some).tolist()
    assert (await trial.batch(uri, x))["prediction"].tolist() == model.predict(x).tolist()
    assert_same(await trial.scores(uri, some), model.predict_proba(some).max(axis=1).tolist())
    assert "petal_width" in await trial.refusal(uri, split(x.iloc[[0], :3]))
    assert "sepal_length" in await trial.refusal(uri, split(x.iloc[[0]].assign(sepal_length="wide")))


async def test_probabilities_as_the_prediction(log: LogModel, trial: Trial, iris: Any) -> None:
    x, y = iris
    model = RandomForestClassifier(20, random_state=0).fit(x, y)
    uri = log(
        "sklearn_proba",
        mlflow.sklearn.log_model,
        sk_model=model,
        serialization_format="cloudpickle",
        signature=infer_signature(x, model.predict_proba(x)),
        pyfunc_predict_fn="predict_proba",
    )
    assert_same(await trial.rows(uri, x.iloc[::10]), model.predict_proba(x.iloc[::10]).tolist())
    assert_same((await trial.batch(uri, x)).to_numpy().tolist(), model.predict_proba(x).tolist())


async def test_integers_and_numpy_signature(log: LogModel, trial: Trial) -> None:
    x, y = load_wine(return_X_y=True)
    model = LogisticRegression(max_iter=5000).fit(StandardScaler().fit_transform(x), y)
    uri = log(
        "sklearn_tensor",
        mlflow.sklearn.log_model,
        sk_model=model,
        serialization_format="cloudpickle",
        signature=infer_signature(x, y),
        scores=True,
    )
    rows = StandardScaler().fit_transform(x)[::20]
    answers = await trial.together(uri, [{"inputs": [row]} for row in rows.tolist()])
    assert answers == [[y] for y in model.predict(rows).tolist()]
    assert await trial.one(uri, {"instances": rows.tolist()}) == model.predict(rows).tolist()
    frame = pd.DataFrame(rows, columns=[f"x{i}" for i in range(rows.shape[1])])
    assert (await trial.batch(uri, frame))["prediction"].tolist() == model.predict(rows).tolist()
    assert_same(await trial.scores(uri, frame), model.predict_proba(rows).max(axis=1).tolist())
    said = await trial.refusal(uri, {"inputs": [[1.0, 2.0]]})
    assert "(-1, 13)" in said
    assert "(1, 2)" in said


def parts_of(frame: pd.DataFrame) -> pd.DataFrame:
    when = frame["ordered_at"]
    return pd.DataFrame({"weekday": when.dt.day_of_week, "hour": when.dt.hour})


@pytest.fixture(scope="session")
def orders() -> tuple[pd.DataFrame, Any]:
    """A text, a time, a category and a number, with values missing of the latter two."""
    chance = np.random.default_rng(5)
    n = 240
    late = chance.random(n) < 0.5
    words = np.where(late, "where is my parcel, still waiting", "thank you, arrived quickly")
    frame = pd.DataFrame(
        {
            "comment": [f"{w} {i}" for i, w in enumerate(words)],
            "ordered_at": pd.Timestamp("2026-01-01") + pd.to_timedelta(chance.integers(0, 60 * 24 * 90, n), unit="min"),
            "carrier": pd.Series(chance.choice(["north", "south", "east"], n)).where(chance.random(n) < 0.8),
            "weight": pd.Series(chance.normal(5, 2, n)).where(chance.random(n) < 0.8),
        }
    )
    return frame, np.where(late, "late", "in time")


@pytest.fixture(scope="session")
def orders_model(log: LogModel, orders: Any) -> tuple[str, Any]:
    frame, label = orders
    columns = ColumnTransformer(
        [
            ("text", TfidfVectorizer(), "comment"),
            ("time", FunctionTransformer(parts_of), ["ordered_at"]),
            ("category", OneHotEncoder(handle_unknown="ignore"), ["carrier"]),
            ("number", SimpleImputer(add_indicator=True), ["weight"]),
        ]
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=2000)).fit(frame, label)
    uri = log(
        "sklearn_orders",
        mlflow.sklearn.log_model,
        sk_model=model,
        serialization_format="cloudpickle",
        signature=infer_signature(frame, model.predict(frame)),
        scores=True,
    )
    return uri, model


async def test_text_times_and_missing_categories(trial: Trial, orders: Any, orders_model: Any) -> None:
    (frame, _), (uri, model) = orders, orders_model
    some = frame.iloc[:24]
    assert some["carrier"].isna().any()
    assert await trial.rows(uri, some) == model.predict(some).tolist()
    assert (await trial.batch(uri, frame))["prediction"].tolist() == model.predict(frame).tolist()
    assert_same(await trial.scores(uri, some), model.predict_proba(some).max(axis=1).tolist())


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("ordered_at", "yesterday"),
        ("ordered_at", "2026-01-01T00:00:00+01:00"),
        ("comment", 9876543),
        ("weight", "heavy"),
    ],
)
async def test_a_value_of_the_wrong_type_is_named_by_its_column(
    trial: Trial, orders: Any, orders_model: Any, column: str, value: Any
) -> None:
    input_ = split(orders[0].iloc[[0]])
    input_["dataframe_split"]["data"][0][list(orders[0]).index(column)] = value
    said = await trial.refusal(orders_model[0], input_)
    assert said.startswith("invalid_input")
    assert column in said
    assert str(value) not in said


async def test_without_a_signature_a_frame_is_given_as_it_is(log: LogModel, trial: Trial, iris: Any) -> None:
    x, y = iris
    model = LogisticRegression(max_iter=500).fit(x, y)
    uri = log("sklearn_bare", mlflow.sklearn.log_model, sk_model=model, serialization_format="cloudpickle", scores=True)
    some = x.iloc[::10]
    assert await trial.rows(uri, some) == model.predict(some).tolist()
    assert (await trial.batch(uri, x))["prediction"].tolist() == model.predict(x).tolist()
    assert_same(await trial.scores(uri, some), model.predict_proba(some).max(axis=1).tolist())
    said = await trial.refusal(uri, split(x.iloc[[0], :3]))
    assert said.startswith("model_raised")
    assert "petal_width" in said
