"""Forests whose trees are asked one after another, without the bookkeeping that takes longer than the trees.

It imports the standard library alone: `model_program` reads it by path.
"""

import sys
from collections.abc import Iterable
from typing import Any


def in_turn() -> None:
    """Has scikit-learn's forests of one job (`n_jobs`) ask their trees themselves, if a model brought them.

    They leave it to joblib, and give it with each tree their configuration and the warning filters, which it sets for
    that tree and resets: half of the time of a call of 100 trees with 64 rows. In the calling thread both hold anyway.
    """
    forests, parallel = sys.modules.get("sklearn.ensemble._forest"), sys.modules.get("sklearn.utils.parallel")
    if forests is None or parallel is None or getattr(forests, "Parallel", None) is not parallel.Parallel:
        return

    class InTurn(parallel.Parallel):  # type: ignore[misc,name-defined]
        def __call__(self, iterable: Iterable[Any]) -> Any:
            if self.n_jobs != 1 or self.verbose:
                return super().__call__(iterable)
            return [getattr(task, "function", task)(*args, **options) for task, args, options in iterable]

    forests.Parallel = InTurn  # type: ignore[attr-defined]
