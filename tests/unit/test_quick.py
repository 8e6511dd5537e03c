"""The shorter way to a prediction: the same as MLflow's, and taken for right frames alone."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.pyfunc import PyFuncModel, PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from sklearn.ensemble import VotingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import all_estimators

from pyfunq.entries import ClaimedJob, ModelTags, ModelVersion
from pyfunq.ids import new_id
from worker.frames import build_frame
from worker.loading import LoadedModel
from worker.quick import _BY_NUMBERS, prediction_of
from worker.run_batch import Model, predict

WIDE = Schema([ColSpec("double", f"x{n}") for n in range(7)])
MIXED = Schema([ColSpec("double", "d"), ColSpec("float", "f"), ColSpec("long", "n"), ColSpec("integer", "i")])
TWO = Schema([ColSpec("double", "a"), ColSpec("double", "b")])
TENSOR = Schema([TensorSpec(np.dtype("float64"), (-1, 2))])
K = ParamSchema([ParamSpec("k", "long", 1)])

Save = Callable[..., PyFuncModel]


class Summed(PythonModel):
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        return model_input.to_numpy().sum(axis=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Saves a model and loads it as a worker does."""

    def save(model: Any, signature: ModelSignature | None, **options: Any) -> PyFuncModel:
        path = str(tmp_path_factory.mktemp("models") / "model")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(model, PythonModel):
                mlflow.pyfunc.save_model(path, python_model=model, signature=signature, pip_requirements=[])
            else:
                options |= {"pip_requirements": [], "serialization_format": "cloudpickle"}
                mlflow.sklearn.save_model(model, path, signature=signature, **options)
            return mlflow.pyfunc.load_model(path)

    return save


def split(schema: Schema, rows: list[list[Any]]) -> pd.DataFrame:
    return build_frame("split", [(schema.input_names(), rows)], schema)  # type: ignore[return-value]


def some(schema: Schema) -> pd.DataFrame:
    """Rows to learn from."""
    values = np.random.default_rng(7).integers(-5, 5, (40, len(schema.inputs)))
    return split(schema, values.tolist())


def regression(schema: Schema) -> LinearRegression:
    x = some(schema)
    return LinearRegression().fit(x, x.to_numpy() @ np.linspace(0.1, 0.7, x.shape[1]) + x.iloc[:, 0] ** 2)


@pytest.fixture(scope="module")
def probabilities(saved: Save) -> PyFuncModel:
    x = some(WIDE)
    model = LogisticRegression().fit(x, x.sum(axis=1) > 0)
    return saved(model, ModelSignature(WIDE), pyfunc_predict_fn="predict_proba")


@pytest.fixture(scope="module")
def mixed(saved: Save) -> PyFuncModel:
    return saved(regression(MIXED), ModelSignature(MIXED))


@pytest.fixture(scope="module")
def plain(saved: Save) -> PyFuncModel:
    return saved(regression(TWO), ModelSignature(TWO))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The frames that MLflow was asked to check and predict."""
    frames: list[Any] = []
    whole = PyFuncModel.predict

    def predict(self: PyFuncModel, data: Any, params: dict[str, Any] | None = None) -> Any:
        frames.append(data)
        return whole(self, data, params)

    monkeypatch.setattr(PyFuncModel, "predict", predict)
    return frames


def assert_same_bits(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) is np.ndarray
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


DOUBLES = st.one_of(st.floats(-1e9, 1e9), st.integers(-(2**53), 2**53))
FLOATS = st.floats(-1e6, 1e6, width=32)
LONGS, INTEGERS = st.integers(-(2**53), 2**53), st.integers(-(2**31), 2**31 - 1)
CHECK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@CHECK
@given(st.lists(st.lists(DOUBLES, min_size=7, max_size=7), min_size=1, max_size=40))
def test_of_doubles_the_prediction_is_mlflows(
    probabilities: PyFuncModel, asked: list[Any], rows: list[list[float]]
) -> None:
    expected = probabilities.predict(split(WIDE, rows))
    asked.clear()
    assert_same_bits(prediction_of(probabilities)(split(WIDE, rows), None), expected)
    assert asked == []


@CHECK
@given(st.lists(st.tuples(DOUBLES, FLOATS, LONGS, INTEGERS).map(list), min_size=1, max_size=40))
def test_of_mixed_numbers_the_prediction_is_mlflows(
    mixed: PyFuncModel, asked: list[Any], rows: list[list[float]]
) -> None:
    expected = mixed.predict(split(MIXED, rows))
    asked.clear()
    assert_same_bits(prediction_of(mixed)(split(MIXED, rows), None), expected)
    assert asked == []


_NOT_TRIED = {
    *("MultiTaskElasticNet", "MultiTaskElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV"),  # of several outputs
    *("PassiveAggressiveClassifier", "PassiveAggressiveRegressor"),  # they warn that they will be gone
    "OrthogonalMatchingPursuitCV",  # wants more columns
}
_OF_NUMBERS = [
    (name, kind)
    for name, kind in all_estimators(["classifier", "regressor"])
    if kind.__module__.startswith(_BY_NUMBERS) and name not in _NOT_TRIED
]


def fitted(kind: Any, x: Any) -> Any:
    values = np.asarray(x)
    target = np.digitize(values[:, :3].sum(axis=1), [6, 9]) + 1
    estimator = kind()
    settable = estimator.get_params()
    few = {"n_estimators": 5, "max_iter": 300, "random_state": 1}
    estimator.set_params(**{name: value for name, value in few.items() if name in settable})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(x, target)


@pytest.mark.parametrize(("name", "kind"), _OF_NUMBERS, ids=[name for name, _ in _OF_NUMBERS])
def test_estimators_that_are_given_an_array_predict_of_it_what_they_predict_of_the_frame(
    name: str, kind: Any, saved: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    positive = some(WIDE).abs()  # some naive Bayes classifiers take no other numbers
    model = saved(fitted(kind, positive), ModelSignature(WIDE))
    draw = np.random.default_rng(3)
    noise = 0.0 if name == "CategoricalNB" else 0.9
    sizes = [(rows, 7) for rows in (1, 2, 3, 64, 257)]
    frames = [split(WIDE, (draw.integers(0, 4, size) + noise * draw.random(size)).tolist()) for size in sizes]
    given: list[type] = []
    expected = [model.predict(frame) for frame in frames]
    of_kind = kind.predict
    monkeypatch.setattr(kind, "predict", lambda self, x: given.append(type(x)) or of_kind(self, x))
    predict = prediction_of(model)
    for frame, right in zip(frames, expected, strict=True):
        assert_same_bits(predict(frame, None), right)
    assert set(given) == {np.ndarray}


def test_the_model_keeps_the_names_that_it_learned(plain: PyFuncModel) -> None:
    prediction_of(plain)(split(TWO, [[1.0, 2.0]]), None)
    assert list(plain.get_raw_model().feature_names_in_) == ["a", "b"]


def test_an_estimator_that_learned_other_names_than_the_signature_has_says_so(saved: Save) -> None:
    model = saved(LinearRegression().fit(some(TWO)[["b", "a"]], range(40)), ModelSignature(TWO))
    frame = split(TWO, [[1.0, 2.0]])
    with pytest.raises(ValueError, match="feature names should match"):
        prediction_of(model)(frame, None)


def test_an_estimator_that_learned_without_names_is_not_told_any(saved: Save) -> None:
    x = some(TWO)
    model = saved(LinearRegression().fit(x.to_numpy(), x["a"]), ModelSignature(TWO))
    frame = split(TWO, [[1.0, 2.0]])
    with pytest.warns(UserWarning, match="fitted without feature names"):
        expected = model.predict(frame)
    assert_same_bits(prediction_of(model)(frame, None), expected)


class Own(LinearRegression):
    """A class that is not scikit-learn's may look at more than the numbers."""

    def predict(self, X: Any) -> Any:
        return np.array([len(X.columns)] * len(X), dtype=float)


@pytest.mark.parametrize(
    "kind", [Own, lambda: VotingRegressor([("one", LinearRegression())])], ids=["own", "of others"]
)
def test_other_estimators_get_the_frame(saved: Save, kind: Callable[[], Any]) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    x = some(TWO)
    model = saved(kind().fit(x, x["a"]), ModelSignature(TWO))
    frame = split(TWO, [[1.0, 2.0], [3.0, 4.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(prediction_of(model)(frame, None), model.predict(frame))


def test_what_the_estimator_refuses_is_refused_in_the_same_words(plain: PyFuncModel) -> None:
    frame = split(TWO, [[1.0, 2.0], [None, 4.0]])
    with pytest.raises(ValueError, match="contains NaN") as expected:
        plain.predict(frame)
    with pytest.raises(ValueError, match="contains NaN") as found:
        prediction_of(plain)(frame, None)
    assert str(found.value) == str(expected.value)


def other_order(frame: pd.DataFrame) -> Any:
    return frame[["b", "a"]]


def narrower(frame: pd.DataFrame) -> Any:
    return frame.astype({"b": "float32"})


def one_more(frame: pd.DataFrame) -> Any:
    return frame.assign(c="x")


def of_a_class_of_its_own(frame: pd.DataFrame) -> Any:
    return type("Frame", (pd.DataFrame,), {})(frame)


def nullable(frame: pd.DataFrame) -> Any:
    return frame.astype({"b": "Float64"})


@pytest.mark.parametrize("change", [other_order, narrower, nullable, one_more, of_a_class_of_its_own])
def test_other_frames_are_for_mlflow_to_put_right(
    plain: PyFuncModel, asked: list[Any], change: Callable[[pd.DataFrame], Any]
) -> None:
    frame = split(TWO, [[1.0, 2.0], [3.0, 5.0]])
    predict = prediction_of(plain)
    right = predict(frame, None)
    assert asked == []
    wrong = change(frame)
    np.testing.assert_allclose(predict(wrong, None), right)
    assert [id(one) for one in asked] == [id(wrong)]


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.astype({"b": "int64"}),
        lambda frame: frame.assign(b="two"),
        lambda frame: frame[["a"]],
    ],
    ids=["integers", "texts", "one fewer"],
)
def test_what_mlflow_refuses_is_refused(
    plain: PyFuncModel, asked: list[Any], change: Callable[[pd.DataFrame], Any]
) -> None:
    wrong = change(split(TWO, [[1.0, 2.0], [3.0, 5.0]]))
    with pytest.raises(mlflow.MlflowException, match="schema"):
        prediction_of(plain)(wrong, None)
    assert len(asked) == 1


@pytest.mark.parametrize("params", [{}, {"k": 1}])
def test_params_are_for_mlflow_to_check(plain: PyFuncModel, asked: list[Any], params: dict[str, Any]) -> None:
    frame = split(TWO, [[1.0, 2.0]])
    predict = prediction_of(plain)
    assert_same_bits(predict(frame, params), predict(frame, None))
    assert [id(one) for one in asked] == [id(frame)]


UNNAMED = Schema([ColSpec("double"), ColSpec("double")])
WITH_TEXT = Schema([*TWO.inputs, ColSpec("string", "c", required=False)])


@pytest.mark.parametrize(
    ("make", "signature", "given"),
    [
        (lambda: regression(TWO), ModelSignature(TWO, params=K), TWO),
        (lambda: LinearRegression().fit(some(TWO).to_numpy(), range(40)), ModelSignature(TENSOR), TWO),
        (lambda: LinearRegression().fit(some(UNNAMED), range(40)), ModelSignature(UNNAMED), UNNAMED),
        (lambda: regression(TWO), ModelSignature(WITH_TEXT), TWO),
        (lambda: regression(TWO), None, TWO),
        (Summed, ModelSignature(TWO), TWO),
    ],
    ids=["params", "tensor", "no names", "text", "no signature", "Python model"],
)
def test_other_models_frames_are_always_checked(
    saved: Save, asked: list[Any], make: Callable[[], Any], signature: ModelSignature | None, given: Schema
) -> None:
    loaded = saved(make(), signature)
    frame = split(given, [[1.0, 2.0], [3.0, 5.0]])
    found = prediction_of(loaded)(frame, None)
    assert [id(one) for one in asked] == [id(frame)]
    assert_same_bits(found, loaded.predict(frame))


def twice(x: pd.DataFrame) -> pd.DataFrame:
    x["a"] *= 2
    x.columns.name = "seen"
    return x


def test_what_a_model_does_to_its_frame_is_not_seen_by_its_scores_nor_by_others(saved: Save) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    steps = make_pipeline(FunctionTransformer(twice), LogisticRegression())
    steps.fit(pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [0.0, 1, 0, 1]}), [0, 0, 1, 1])
    model = saved(steps, ModelSignature(TWO))
    schema = model.metadata.get_input_schema()
    version = ModelVersion(name="a", version="1", created_ms=0, source="", run_id=None, experiment_id=None)
    job = ClaimedJob(
        id=new_id(),
        attempt=1,
        model_uri="models:/a/1",
        queue="bulk",
        rows=1,
        input_format="split",
        input=b'{"columns":["a","b"],"data":[[2.5,1.0]]}',
        params=None,
        version_id=1,
        confidence=True,
    )
    ends = []
    for call in (prediction_of(model), lambda frame, params: model.predict(frame, params=params)):
        raw = model.get_raw_model()
        loaded = LoadedModel(version, Path(), model.metadata, call, schema, None, raw.predict_proba, 1)
        ends += predict(Model(loaded, version, ModelTags(confidence=True)), [job])
    assert ends[0] == ends[1], "as through MLflow, which gives the model a copy"
    assert split(schema, [[1.0, 2.0]]).columns.name is None
