"""Requirements: read from a model's files, and compared with what is installed here."""

from importlib.metadata import version
from pathlib import Path

import pytest

from pyfunq.requirements import Unmet, read_requirements, requirement_for, unmet

HERE = version("packaging")


def test_requirements_txt_counts_without_pips_options_and_comments(tmp_path: Path) -> None:
    (tmp_path / "conda.yaml").write_text("dependencies: [{pip: [other==1]}]\n")
    (tmp_path / "requirements.txt").write_text(
        "# logged by MLflow\n"
        "--index-url https://user:secret@index.example/simple\n"
        "-c constraints.txt\n"
        "mlflow==3.17.2\n\n"
        "xgboost==3.1  # the booster\n"
        "hashed==1.0 \\\n    --hash=sha256:abc \\\n    --hash=sha256:def\n"
        "own @ https://files.example/own-1.0.tar.gz#egg=own\n"
        'old==1; python_version < "3"\n'
    )
    assert read_requirements(tmp_path) == [
        "mlflow==3.17.2",
        "xgboost==3.1",
        "hashed==1.0",
        "own @ https://files.example/own-1.0.tar.gz#egg=own",
        'old==1; python_version < "3"',
    ]


def test_without_it_condas_pip_part_counts_and_without_both_nothing(tmp_path: Path) -> None:
    assert read_requirements(tmp_path) == []
    (tmp_path / "conda.yaml").write_text(
        "name: e\ndependencies:\n- python=3.11\n- pip<=26\n- pip:\n  - numpy==2\n  - '-r x'\n"
    )
    assert read_requirements(tmp_path) == ["numpy==2"]
    (tmp_path / "conda.yaml").write_text("dependencies:\n- python=3.11\n")
    assert read_requirements(tmp_path) == []


@pytest.mark.parametrize(
    "met",
    [
        "packaging",
        f"packaging=={HERE}",
        f"Packaging>=20,!={HERE}.post9",
        'not-there==1; python_version < "3"',
        'not-there==1; sys_platform == "amiga"',
        "packaging @ https://files.example/packaging.tar.gz",
        f"wheels/packaging-{HERE}-py3-none-any.whl",
    ],
)
def test_what_is_installed_is_met(met: str) -> None:
    assert unmet([met]) == []


def test_what_is_not_is_named_with_what_is_here() -> None:
    wanted = ["packaging==1.0", "not-there==1", "wheels/packaging-1.0-py3-none-any.whl", "git+https://git.example/x"]
    found = unmet(["packaging", *wanted])
    assert found == [
        Unmet("packaging==1.0", HERE),
        Unmet("not-there==1", None),
        Unmet("wheels/packaging-1.0-py3-none-any.whl", HERE),
        Unmet("git+https://git.example/x", None),
    ]
    assert [str(one) for one in found[:2]] == [f"packaging==1.0 (installed: {HERE})", "not-there==1 (installed: none)"]


@pytest.mark.parametrize(
    ("module", "requirement"),
    [
        ("xgboost", "xgboost==3.1"),
        ("xgboost.sklearn", "xgboost==3.1"),
        ("sklearn.linear_model", "scikit-learn==1.9"),
        ("my_own_pkg", "my-own.pkg>=2"),
        ("cv2", "opencv-python-headless==4"),
        ("elsewhere", None),
        ("x", None),
    ],
)
def test_a_module_is_traced_to_the_requirement_that_brings_it(module: str, requirement: str | None) -> None:
    listed = [
        "git+https://git.example/x",
        "xgboost==3.1",
        "scikit-learn==1.9",
        "my-own.pkg>=2",
        "opencv-python-headless==4",
    ]
    assert requirement_for(module, listed) == requirement


def test_passwords_in_urls_are_not_shown() -> None:
    assert str(Unmet("own @ https://user:secret@files.example/own.tar.gz", None)) == (
        "own @ https://…@files.example/own.tar.gz (installed: none)"
    )
