"""Few warning filters, which show what Python shows by default; an operator's stay."""

import subprocess
import sys

import pytest

_PROGRAM = """
import warnings
import mlflow.sklearn, sklearn.ensemble
from worker.warning_filters import keep_few
keep_few()
print(len(warnings.filters))
for kind in (UserWarning, RuntimeWarning, FutureWarning, DeprecationWarning, ImportWarning, ResourceWarning):
    for _ in range(2):
        warnings.warn(f"told of {kind.__name__}", kind)
"""


def run(*options: str) -> tuple[int, list[str]]:
    """The number of filters, and the warnings that were shown."""
    done = subprocess.run([sys.executable, *options, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    return int(done.stdout), [line.rpartition(" ")[2] for line in done.stderr.splitlines() if "told of" in line]


def test_one_filter_shows_what_python_shows_by_default() -> None:
    assert run() == (1, ["UserWarning", "RuntimeWarning", "FutureWarning"])


@pytest.mark.parametrize("option", ["ignore::RuntimeWarning", "always::ImportWarning"])
def test_what_an_operator_asked_for_stays(option: str) -> None:
    filters, shown = run("-W", option)
    assert filters > 1
    assert ("RuntimeWarning" in shown) == (not option.startswith("ignore"))
    assert shown.count("ImportWarning") == (2 if option.startswith("always") else 0)
