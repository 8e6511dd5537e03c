"""Which warnings a process that predicts shows: what Python shows by default, in as few filters as say it.

It imports the standard library alone: `model_program` reads it by path.
"""

import sys
import warnings

_NOT_SHOWN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def keep_few() -> None:
    """Replaces the filters that libraries added when they were imported; those that an operator set stay.

    scikit-learn sets all filters again for each tree of a forest that it asks: with the fifteen that MLflow, NumPy,
    SciPy and urllib3 leave, a forest of 100 trees takes twice as long for a call as with one. What a model sets
    when it is loaded comes after this, and holds.
    """
    if not sys.warnoptions:  # -W, PYTHONWARNINGS
        warnings.resetwarnings()
        warnings.simplefilter("ignore", _NOT_SHOWN)  # issubclass takes several
