"""Model URIs: the canonical form, what is refused, and agreement with MLflow's own parser and validation."""

import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.utils.validation import (
    _validate_model_alias_name,
    _validate_model_alias_name_reserved,
    _validate_model_name,
)

from pyfunq.errors import InvalidModelURI, ModelNotAllowed
from pyfunq.model_uri import DEFAULT_PATTERNS, ModelURI, check_allowed, parse_model_uri

MODEL_ID = "m-" + "0123456789abcdef" * 2

CANONICAL = [
    ("models:/iris/7", "models:/iris/7", ModelURI("version", name="iris", version=7)),
    ("models:/iris/007", "models:/iris/7", ModelURI("version", name="iris", version=7)),
    ("MODELS:/iris/7", "models:/iris/7", ModelURI("version", name="iris", version=7)),
    (
        "models:/iris/production",
        "models:/iris/Production",
        ModelURI("stage", name="iris", stage="Production"),
    ),
    ("models:/iris/STAGING", "models:/iris/Staging", ModelURI("stage", name="iris", stage="Staging")),
    ("models:/iris/Archived", "models:/iris/Archived", ModelURI("stage", name="iris", stage="Archived")),
    ("models:/iris/none", "models:/iris/None", ModelURI("stage", name="iris", stage="None")),
    ("models:/iris/Latest", "models:/iris/latest", ModelURI("latest", name="iris")),
    ("models:/iris@champion", "models:/iris@champion", ModelURI("alias", name="iris", alias="champion")),
    ("models:/iris@Champion", "models:/iris@Champion", ModelURI("alias", name="iris", alias="Champion")),
    ("models:/my model, v2 (é)/1", "models:/my model, v2 (é)/1", None),
    ("models:/a..b/1", "models:/a..b/1", None),
    (f"models:/{MODEL_ID}", f"models:/{MODEL_ID}", ModelURI("model_id", model_id=MODEL_ID)),
    ("runs:/abc123/model", "runs:/abc123/model", ModelURI("run", run_id="abc123", path="model")),
    ("runs:/abc123/a/b c", "runs:/abc123/a/b c", ModelURI("run", run_id="abc123", path="a/b c")),
]

MALFORMED = [
    "",
    " models:/iris/1",
    "models:/iris/1 ",
    "models:",
    "models:/",
    "models:/iris",
    "models:/iris/",
    "models:/iris/1/",
    "models:/iris//1",
    "models://iris/1",
    "models://profile@host/iris/1",
    "models:///iris/1",
    "models:iris/1",
    "models:/ /1",
    "models:/../x",
    "models:/../1",
    "models:/./1",
    "models:/..x/1",
    "models:/iris/..",
    "models:/iris/1?x=1",
    "models:/iris?x=1",
    "models:/iris#1/1",
    "models:/iris/0",
    "models:/iris/000",
    "models:/iris/-1",
    "models:/iris/+1",
    "models:/iris/1.0",
    "models:/iris/1_0",
    "models:/iris/٧",
    "models:/iris/99999999999",
    "models:/iris/champion",
    "models:/iris/Deleted_Internal",
    "models:/iris@",
    "models:/@champion",
    "models:/iris@latest",
    "models:/iris@LATEST",
    "models:/iris@v3",
    "models:/iris@V12",
    "models:/iris@a b",
    "models:/iris@a.b",
    "models:/a@b@c",
    "models:/iris@champion/1",
    "models:/a:b/1",
    "models:/a\\b/1",
    "models:/iris\n/1",
    "models:/iris\x00/1",
    "models:/iris\u2028x/1",
    "models:/iris\ud800/1",
    "models:/" + "n" * 257 + "/1",
    "models:/" + "n" * 600 + "/1",
    "models:/m-0123",
    "models:/" + MODEL_ID.upper(),
    "runs:/",
    "runs:/abc",
    "runs:/abc/",
    "runs://abc/model",
    "runs:/a b/model",
    "runs:/abc//model",
    "runs:/abc/model/",
    "runs:/abc/../../other/model",
    "runs:/abc/./model",
    "runs:/abc/a\\..\\b",
    "runs:/abc/%2e%2e/model",
    "runs:/abc/model?x=1",
]

FOREIGN = [
    "file:/tmp/model",
    "file:///tmp/model",
    "s3://bucket/key",
    "http://user:secret@host/model",
    "dbfs:/model",
    "mlflow-artifacts:/1/2",
    "mlflow-artifacts://host/1",
    "prompts:/x/1",
    "C:\\model",
    "iris",
    "./iris",
    "/tmp/model",
    "../models:/iris/1",
]


@pytest.mark.parametrize(("text", "canonical", "expected"), CANONICAL)
def test_canonical(text: str, canonical: str, expected: ModelURI | None) -> None:
    uri = parse_model_uri(text)
    assert str(uri) == canonical
    if expected is not None:
        assert uri == expected


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed(text: str) -> None:
    with pytest.raises(InvalidModelURI):
        parse_model_uri(text)


@pytest.mark.parametrize("text", FOREIGN)
def test_foreign_schemes_are_never_loaded(text: str) -> None:
    with pytest.raises(ModelNotAllowed) as caught:
        parse_model_uri(text)
    assert "secret" not in caught.value.message


def test_message_says_what_was_expected() -> None:
    with pytest.raises(InvalidModelURI, match=r"models:/iris@<alias>"):
        parse_model_uri("models:/iris/champion")
    with pytest.raises(InvalidModelURI, match="Production"):
        parse_model_uri("models:/iris/champion")


@pytest.mark.parametrize(
    ("text", "mutable"),
    [
        ("models:/iris/1", False),
        ("models:/iris/Production", True),
        ("models:/iris/latest", True),
        ("models:/iris@a", True),
        (f"models:/{MODEL_ID}", False),
        ("runs:/abc/model", False),
    ],
)
def test_is_mutable(text: str, mutable: bool) -> None:
    assert parse_model_uri(text).is_mutable is mutable


@pytest.mark.parametrize(
    ("text", "patterns", "allowed"),
    [
        ("models:/iris/1", DEFAULT_PATTERNS, True),
        ("models:/iris@a", DEFAULT_PATTERNS, True),
        ("runs:/abc/model", DEFAULT_PATTERNS, False),
        ("runs:/abc/model", ("models:/iris*",), False),
        ("runs:/abc/models:/iris", ("models:/iris*",), False),
        ("runs:/abc/model", ("models:/*", "runs:/abc/*"), True),
        ("runs:/abcd/model", ("runs:/abc/*",), False),
        ("models:/iris2/1", ("models:/iris/*", "models:/iris@*"), False),
        ("models:/iris2/1", ("models:/iris?/1",), True),
        ("models:/iris/1", ("models:/Iris/*",), False),
        ("models:/iris/production", ("models:/iris/Production",), True),
        ("models:/a[b]/1", ("models:/a[b]/*",), True),
        ("models:/ab/1", ("models:/a[b]/*",), False),
        ("models:/a.b/1", ("models:/a.b/*",), True),
        ("models:/axb/1", ("models:/a.b/*",), False),
        ("models:/iris/1", ("iris",), False),
        ("models:/iris/1", (), False),
    ],
)
def test_check_allowed(text: str, patterns: tuple[str, ...], allowed: bool) -> None:
    try:
        uri = parse_model_uri(text)
    except InvalidModelURI:
        assert not allowed
        return
    if allowed:
        check_allowed(uri, patterns)
        return
    with pytest.raises(ModelNotAllowed) as caught:
        check_allowed(uri, patterns)
    assert str(uri) in caught.value.message
    assert "PYFUNQ_ALLOWED_MODELS" in caught.value.message


_ODD = ["#", "%2e", "\\", ":", "//", "é", "[", "*", " ", "\n", MODEL_ID]
PIECES = st.lists(
    st.sampled_from(
        ["models:/", "runs:/", "iris", "/", "@", "1", "0", "latest", "production", "v1", "..", ".", "?", *_ODD]
    ),
    max_size=8,
).map("".join)
NAMES = st.text(max_size=12).map("models:/{}/1".format)
ALIASES = st.text(max_size=12).map("models:/x@{}".format)


@given(st.text(max_size=30) | PIECES | st.text(max_size=30).map("models:/".__add__))
@example("models:/iris\udfff/1")
def test_any_text_parses_to_a_fixed_point_or_to_one_of_two_errors(text: str) -> None:
    try:
        uri = parse_model_uri(text)
    except (InvalidModelURI, ModelNotAllowed):
        return
    assert parse_model_uri(str(uri)) == uri
    str(uri).encode()


@given(PIECES | NAMES | ALIASES)
def test_what_parses_means_the_same_to_mlflow(text: str) -> None:
    try:
        uri = parse_model_uri(text)
    except (InvalidModelURI, ModelNotAllowed):
        return
    if uri.kind == "run":
        return
    theirs = _parse_model_uri(str(uri))
    ours = (uri.model_id, uri.name, uri.stage, uri.alias)
    assert (theirs.model_id, theirs.name, theirs.stage, theirs.alias) == ours
    assert theirs.version == (None if uri.version is None else str(uri.version))
    if uri.name is not None:
        _validate_model_name(uri.name)
    if uri.alias is not None:
        _validate_model_alias_name(uri.alias)
        _validate_model_alias_name_reserved(uri.alias)


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12))
def test_every_name_that_mlflow_registers_can_be_asked_for(name: str) -> None:
    try:
        _validate_model_name(name)
    except MlflowException:
        with pytest.raises(InvalidModelURI):
            parse_model_uri(f"models:/{name}/1")
        return
    if set("\\@?#").isdisjoint(name):
        assert parse_model_uri(f"models:/{name}/1").name == name


def test_import_is_light() -> None:
    code = (
        "import sys, pyfunq.model_uri, pyfunq.results; "
        "sys.exit(bool({'mlflow', 'pandas', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
