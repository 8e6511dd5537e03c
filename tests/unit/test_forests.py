"""Forests that ask their trees in turn answer as those that leave it to joblib, which others go on doing."""

import subprocess
import sys
import warnings
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.ensemble import _forest as forests
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.parallel import Parallel

from worker.forests import in_turn

X = np.random.default_rng(0).normal(size=(60, 4))
CLASSES = np.digitize(X[:, 0] + X[:, 1] ** 2, [0.0, 1.0])
NUMBERS = X @ [1.0, -2.0, 0.5, 3.0]
TWO = np.column_stack([CLASSES, X[:, 2] > 0])


@pytest.fixture(autouse=True)
def left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forests, "Parallel", Parallel)


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
