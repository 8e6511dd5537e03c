"""Error texts: they say what went wrong in the model, and hold none of the job's input values."""

import io
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pydantic
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import _validate_prediction_input
from mlflow.types import ColSpec, Schema
from mlflow.types.type_hints import _validate_data_against_type_hint
from sklearn.linear_model import LinearRegression

from worker.error_text import is_refusal, model_error_text


def split(*rows: list[Any]) -> list[tuple[str, bytes]]:
    columns = [f"c{i}" for i in range(len(rows[0]))]
    return [("split", orjson.dumps({"columns": columns, "data": list(rows)}))]


def raised(call: Any, *args: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call(*args)
    return caught.value


def test_sklearn_cannot_convert_a_text() -> None:
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    exc = raised(model.predict, np.array([["secret-name"]], dtype=object))
    assert model_error_text(exc, split(["secret-name"])) == "ValueError: could not convert string to float: '…'"


def test_a_key_error_and_a_message_without_values() -> None:
    assert model_error_text(KeyError("secret"), split(["secret"])) == "KeyError: '…'"
    assert model_error_text(KeyError("M"), split(["M"])) == "KeyError: '…'"
    text = "X has 3 features, but LinearRegression is expecting 4 features as input."
    assert model_error_text(ValueError(text), split([0.5, "abc"])) == f"ValueError: {text}"
    assert model_error_text(ValueError(), split([1])) == "ValueError"


def test_mlflows_schema_errors_hold_the_whole_frame() -> None:
    frame = pd.DataFrame({"name": ["Jane Q. Public, 12 Elm St"] * 2, "salary": [123456.789, 98765.4321]})
    schema = Schema([ColSpec("string", "name"), ColSpec("long", "salary")])
    exc = raised(_validate_prediction_input, frame, None, schema, None)
    assert "Jane" in str(exc)
    assert "123456.789" in str(exc)
    said = model_error_text(exc, split(*frame.to_numpy().tolist()))
    for value in ("Jane", "Public", "Elm", "123456", "98765"):
        assert value not in said
    assert "salary" in said
    assert "float64" in said


def test_numbers_rounded_by_a_repr_are_hidden() -> None:
    values = [0.123456789, 1234.5678, 3e-09, 42]
    exc = ValueError(f"bad row {np.array(values)} {pd.Series(values)!r} {values[0]:.2f}")
    said = model_error_text(exc, split(values))
    for digits in ("0.12", "1.23", "3.00", "42", "4.2"):
        assert digits not in said
    assert "float64" in said


def test_texts_in_every_disguise_are_hidden() -> None:
    long = "The patient complained of severe headaches since Tuesday morning and could not sleep"
    rows = [long, "tab\there", "quote'd", "CamelCase", "a b c", "2024-05-06T07:08:09", "c2VjcmV0IGJ5dGVz"]
    exc = ValueError(
        f"{pd.Series([long])!r} {long!r} {rows[1]!r} {rows[2]!r} camelcase a b c "
        f"{pd.Timestamp(rows[5])} {b'secret bytes'!r} The patie..."
    )
    said = model_error_text(exc, split(rows)).lower()
    for word in ("patie", "headache", "sleep", "here", "quote", "camel", "a b c", "2024", "secret"):
        assert word not in said


def test_inputs_of_arrow_and_tensor_jobs_are_known_too() -> None:
    table = pa.table({"a": ["secret"], "n": [4711], "l": pa.array([[0.25]])})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    tensor = orjson.dumps({"inputs": {"x": [[815]], "y": [["hidden"]]}})
    exc = ValueError("secret 4711 0.25 815 hidden kept 99")
    said = model_error_text(exc, [("arrow", sink.getvalue()), ("tensor", tensor)])
    assert said == "ValueError: … … … … … kept 99"


def test_one_line_of_at_most_500_characters() -> None:
    said = model_error_text(ValueError("first\n\tsecond\x1b[31m" + " word" * 1000), split([1]))
    assert said.startswith("ValueError: first second [31m word")
    assert len(said) == 500
    assert said.isprintable()
    huge = ValueError("x" * 19_990 + " secretvalue")
    assert "secr" not in model_error_text(huge, split(["secretvalue"]))


def test_an_exception_that_cannot_be_shown() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert model_error_text(Broken(), split([1])) == "Broken: its message cannot be read"


def test_absurd_numbers_in_a_message_do_no_harm() -> None:
    text = "1e999 " + "9" * 400 + " 1e-999 -3. ٣"
    assert model_error_text(ValueError(text), split([2, 1.5])) == f"ValueError: {text}"


class Town(pydantic.BaseModel):
    name: str


class Person(pydantic.BaseModel):
    name: str
    height: float
    town: Town | None = None


@pytest.mark.parametrize(
    ("rows", "hint", "said"),
    [
        ([{"name": "se'cret"}] * 2, list[Person], "`list[Person]`: height: Field required"),
        (
            [{"height": "9876", "town": {"name": 9876}}],
            list[Person],
            "`list[Person]`: name: Field required; height: Input should be a valid number; "
            "town.name: Input should be a valid string",
        ),
        (["secret", 9876], list[str], "`list[str]`: Expected type str, but got int"),
    ],
)
def test_a_type_hint_that_the_input_does_not_fit(rows: list[Any], hint: Any, said: str) -> None:
    exc = raised(_validate_data_against_type_hint, rows, hint)
    text = model_error_text(exc, [("tensor", orjson.dumps({"inputs": rows}))])
    assert text == f"MlflowException: Failed to validate data against type hint {said}"
    assert is_refusal(exc)


def test_what_is_refused_before_the_model_sees_it() -> None:
    schema = Schema([ColSpec("double", "a")])
    refused = raised(_validate_prediction_input, pd.DataFrame({"b": ["secret"]}), None, schema, None)
    assert is_refusal(refused)
    assert not is_refusal(MlflowException("secret"))
    assert not is_refusal(ValueError("Failed to validate data against type hint"))


def test_params_are_hidden_like_inputs() -> None:
    exc = ValueError("no user secret-name, level 9876")
    assert (
        model_error_text(exc, [("params", b'{"user":"secret-name","level":9876}')]) == "ValueError: no user …, level …"
    )
