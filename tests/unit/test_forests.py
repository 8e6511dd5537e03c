"""Forests that ask their trees in turn answer as those that leave it to joblib, which others go on doing."""

import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn
from scipy.sparse import csr_matrix
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.ensemble import _forest as forests
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.parallel import Parallel

from worker.forests import in_turn

ORIGINAL = SimpleNamespace(**vars(forests))
X = np.random.default_rng(0).normal(size=(60, 4))
CLASSES = np.digitize(X[:, 0] + X[:, 1] ** 2, [0.0, 1.0])
NUMBERS = X @ [1.0, -2.0, 0.5, 3.0]
TWO = np.column_stack([CLASSES, X[:, 2] > 0])


@pytest.fixture(autouse=True)
def left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Parallel", "delayed", "_accumulate_prediction"):
        monkeypatch.setattr(forests, name, getattr(ORIGINAL, name))


@pytest.fixture
def by_joblib(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The number of jobs of each call that joblib got."""
    calls: list[int | None] = []
    call = joblib.Parallel.__call__

    def counted(self: Any, iterable: Any) -> Any:
        calls.append(self.n_jobs)
        return call(self, iterable)

    monkeypatch.setattr(joblib.Parallel, "__call__", counted)
    return calls


@pytest.mark.parametrize(
    ("kind", "y"),
    [
        (RandomForestClassifier, CLASSES),
        (ExtraTreesClassifier, np.array(["a", "b", "c"])[CLASSES]),
        (RandomForestClassifier, TWO),
        (RandomForestRegressor, NUMBERS),
        (ExtraTreesRegressor, np.column_stack([NUMBERS, CLASSES])),
    ],
)
@pytest.mark.parametrize("rows", [1, 60])
def test_the_answers_are_those_of_joblib_bit_for_bit(kind: Any, y: Any, rows: int, by_joblib: list[int | None]) -> None:
    forest = kind(20, random_state=0).fit(X, y)
    methods = [name for name in ("predict", "predict_proba") if hasattr(forest, name)]
    expected = [getattr(forest, name)(X[:rows]) for name in methods]
    assert by_joblib, "scikit-learn asks joblib"
    by_joblib.clear()
    in_turn()
    found = [getattr(forest, name)(X[:rows]) for name in methods]
    assert by_joblib == []
    # Of several outputs the probabilities are an array each.
    for one, other in zip(map(as_list, found), map(as_list, expected), strict=True):
        assert [(array.dtype, array.tobytes()) for array in one] == [(array.dtype, array.tobytes()) for array in other]


@pytest.mark.parametrize("kind", [RandomForestClassifier, RandomForestRegressor])
@pytest.mark.parametrize("rows", [np.where(X > 1.5, np.nan, X), csr_matrix(X)], ids=["missing", "sparse"])
def test_neither_missing_nor_sparse_nor_weighted_rows_change_that(kind: Any, rows: Any) -> None:
    forest = kind(20, random_state=0).fit(rows, CLASSES, sample_weight=np.linspace(0.1, 3.0, len(CLASSES)))
    expected = forest.predict(rows)
    in_turn()
    assert forest.predict(rows).tobytes() == expected.tobytes()


def test_trees_of_one_output_are_not_asked_what_their_forest_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def whole(predict: Any, *others: Any) -> None:
        asked.append(predict.__self__)
        ORIGINAL._accumulate_prediction(predict, *others)

    monkeypatch.setattr(forests, "_accumulate_prediction", whole)
    in_turn()
    RandomForestClassifier(3, random_state=0).fit(X, CLASSES).predict(X)
    RandomForestRegressor(3, random_state=0).fit(X, NUMBERS).predict(X)
    assert asked == []
    two = RandomForestClassifier(3, random_state=0).fit(X, TWO)
    two.predict(X)
    assert asked == two.estimators_


class OwnTree(DecisionTreeClassifier):
    def predict_proba(self, rows: Any, check_input: bool = True) -> Any:
        return 1 - super().predict_proba(rows, check_input)


def test_trees_that_are_not_scikit_learns_own_have_their_say() -> None:
    in_turn()
    forest = RandomForestClassifier(5, random_state=0).fit(X, CLASSES)
    plain = forest.predict_proba(X)
    for tree in forest.estimators_[:2]:
        tree.__class__ = OwnTree
    others = [1 - forest.estimators_[n].tree_.predict(X.astype(np.float32)) for n in (0, 1)]
    trees = others + [tree.predict_proba(X) for tree in forest.estimators_[2:]]
    np.testing.assert_allclose(forest.predict_proba(X), sum(trees) / 5)
    assert not np.allclose(forest.predict_proba(X), plain)


def test_where_the_inner_tree_has_something_else_its_estimator_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In older releases it had how many samples of each class a leaf has."""
    predict_proba = DecisionTreeClassifier.predict_proba
    monkeypatch.setattr(
        DecisionTreeClassifier, "predict_proba", lambda *args, **named: predict_proba(*args, **named) * 3
    )
    in_turn()
    assert forests._accumulate_prediction is ORIGINAL._accumulate_prediction
    assert forests.Parallel is not Parallel


def as_list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("option", [{"n_jobs": 2}, {"verbose": 1}])
def test_a_forest_of_several_jobs_or_one_that_reports_its_progress_is_left_to_joblib(
    option: dict[str, int], by_joblib: list[int | None], capfd: pytest.CaptureFixture[str]
) -> None:
    forest = RandomForestClassifier(5, random_state=0).fit(X, CLASSES)
    expected = forest.predict(X)
    in_turn()
    by_joblib.clear()
    np.testing.assert_array_equal(forest.set_params(**option).predict(X), expected)
    assert by_joblib == [option.get("n_jobs", 1)]
    assert ("Done" in capfd.readouterr().err) == ("verbose" in option)


def test_trees_see_the_configuration_and_the_warning_filters_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    in_turn()
    forest = RandomForestClassifier(3, random_state=0).fit(X, CLASSES)
    seen = []
    predict_proba = DecisionTreeClassifier.predict_proba

    def look(self: Any, rows: Any, check_input: bool = True) -> Any:
        seen.append((sklearn.get_config()["assume_finite"], list(warnings.filters)))
        return predict_proba(self, rows, check_input)

    monkeypatch.setattr(DecisionTreeClassifier, "predict_proba", look)
    with sklearn.config_context(assume_finite=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        forest.predict(X)
        assert seen == [(True, list(warnings.filters))] * 3


def test_what_a_tree_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    in_turn()
    forest = RandomForestClassifier(3, random_state=0).fit(X, CLASSES)
    with pytest.raises(ValueError, match="infinity"):
        forest.predict(np.full((1, 4), np.inf))


def test_it_is_done_once_and_not_where_there_is_no_scikit_learn() -> None:
    in_turn()
    once = forests.Parallel
    in_turn()
    assert forests.Parallel is once is not Parallel
    program = "import sys; from worker.forests import in_turn; in_turn(); sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
