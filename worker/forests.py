"""Forests whose trees are asked one after another, without the bookkeeping that takes longer than the trees.

It imports the standard library alone: `model_program` reads it by path.
"""

import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def in_turn() -> None:
    """Has scikit-learn's forests of one job (`n_jobs`) ask their trees themselves, if a model brought them.

    They leave it to joblib, and give it with each tree their configuration and the warning filters, which it sets for
    that tree and resets; and each tree looks whether it was fitted and has as many columns, which the forest has done.
    That is two thirds of the time of a call of 100 trees with 64 rows. In the calling thread all of it holds.
    """
    forests, parallel = sys.modules.get("sklearn.ensemble._forest"), sys.modules.get("sklearn.utils.parallel")
    if forests is None or parallel is None or getattr(forests, "Parallel", None) is not parallel.Parallel:
        return
    delayed = parallel.delayed

    class InTurn(parallel.Parallel):  # type: ignore[misc,name-defined]
        def __call__(self, iterable: Iterable[Task]) -> Any:
            if self.n_jobs != 1 or self.verbose:
                return super().__call__(delayed(task)(*args, **options) for task, args, options in iterable)
            return [task(*args, **options) for task, args, options in iterable]

    forests.Parallel = InTurn  # type: ignore[attr-defined]
    forests.delayed = _task_of  # type: ignore[attr-defined]
    if (trees := sys.modules.get("sklearn.tree._classes")) and _answers_as_its_estimator(trees):
        forests._accumulate_prediction = _accumulating(forests._accumulate_prediction, trees)  # type: ignore[attr-defined]


def _task_of(function: Callable[..., Any]) -> Callable[..., Task]:
    return lambda *args, **options: (function, args, options)


def _answers_as_its_estimator(trees: ModuleType) -> bool:
    """Whether the inner tree has the probabilities. In older releases it has the numbers of samples."""
    try:
        import numpy as np

        fitted = trees.DecisionTreeClassifier().fit([[0.0]] * 3, [0, 1, 1])
        row = np.zeros((1, 1), dtype=np.float32)
        return bool((fitted.tree_.predict(row)[:, : fitted.n_classes_] == fitted.predict_proba(row)).all())
    except Exception:
        return False


def _accumulating(whole: Callable[..., None], trees: ModuleType) -> Callable[..., None]:
    """For scikit-learn's `_accumulate_prediction`: of its own trees with one output the inner tree is asked."""
    regressors = {trees.DecisionTreeRegressor, trees.ExtraTreeRegressor}
    methods: dict[type, Any] = {kind: kind.predict for kind in regressors}
    methods |= {kind: kind.predict_proba for kind in (trees.DecisionTreeClassifier, trees.ExtraTreeClassifier)}

    def accumulate(predict: Any, rows: Any, out: list[Any], lock: Any) -> None:
        tree: Any = getattr(predict, "__self__", None)
        method = methods.get(type(tree))
        if method is None or getattr(predict, "__func__", None) is not method or tree.n_outputs_ != 1:
            whole(predict, rows, out, lock)
            return
        found = tree.tree_.predict(rows)
        with lock:
            out[0] += found[:, 0] if type(tree) in regressors else found[:, : tree.n_classes_]

    return accumulate
