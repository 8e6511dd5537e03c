"""Objects, maps and arrays: converted as far as JSON leaves open, refused by the name of the place."""

from typing import Any

import orjson
import pandas as pd
import pytest
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType, Array, Map, Object, Property

from pyfunq.errors import InvalidInput
from pyfunq.inputs import as_table
from worker.frames import build_frame, read_input, read_inputs, table_input

TOWN = Object([Property("name", DataType.string), Property("number", DataType.long, required=False)])
PERSON = Object(
    [
        Property("name", DataType.string),
        Property("height", DataType.double),
        Property("nicknames", Array(DataType.string)),
        Property("town", TOWN, required=False),
    ]
)
PEOPLE = Schema([ColSpec(PERSON)])
ANN = {"name": "Ann", "height": 2, "nicknames": ["A"], "town": {"name": "Ulm", "number": 3.0}}
BOB = {"name": "Bob", "height": 1.5, "more": {"x": 1}}


def rows(schema: Schema, *inputs: Any, form: str = "inputs") -> list[Any]:
    contents = [read_input("tensor", orjson.dumps({form: input_}), schema).content for input_ in inputs]
    frame = build_frame("tensor", contents, schema)
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == [0]
    values: list[Any] = frame[0].tolist()
    return values


def test_a_row_is_an_object() -> None:
    ann = {**ANN, "height": 2.0}
    assert rows(PEOPLE, [ANN], [BOB, ANN]) == [ann, BOB, ann]
    assert type(rows(PEOPLE, [ANN])[0]["height"]) is float
    assert type(rows(PEOPLE, [ANN])[0]["town"]["number"]) is int
    assert rows(PEOPLE, ANN) == [ann], "one object is one row"
    assert rows(PEOPLE, [ANN], form="instances") == [ann]


def test_columns_are_put_together_to_objects() -> None:
    first, second = (
        orjson.dumps({"columns": columns, "data": [values]})
        for columns, values in ((["name", "height"], ["Ann", 2]), (["height", "name", "more"], [1.5, "Bob", 1]))
    )
    inputs: list[Any] = list(read_inputs("split", [first, second], PEOPLE))
    assert inputs[0].key == inputs[1].key
    frame = build_frame("split", [read.content for read in inputs], PEOPLE)
    assert frame[0].tolist() == [{"name": "Ann", "height": 2.0}, {"height": 1.5, "name": "Bob", "more": 1}]
    table = as_table(pd.DataFrame({"name": ["Ann"], "height": [2], "nicknames": [["A"]]}))
    frame = build_frame("arrow", [table_input(table, PEOPLE).content], PEOPLE)
    assert frame[0].tolist() == [{"name": "Ann", "height": 2.0, "nicknames": ["A"]}]


def test_a_column_of_objects_is_one() -> None:
    payload = orjson.dumps({"columns": ["person"], "data": [[ANN]]})
    frame = build_frame("split", [read_input("split", payload, PEOPLE).content], PEOPLE)
    assert frame[0].tolist() == [{**ANN, "height": 2.0}]
    payload = orjson.dumps({"columns": ["town"], "data": [[{"name": "Ulm"}]]})
    frame = build_frame("split", [read_input("split", payload, PEOPLE).content], PEOPLE)
    assert frame[0].tolist() == [{"town": {"name": "Ulm"}}]


def test_maps_lists_and_anything() -> None:
    assert rows(Schema([ColSpec(Map(DataType.double))]), [{"a": 1}, {"b": 2.5}]) == [{"a": 1.0}, {"b": 2.5}]
    assert rows(Schema([ColSpec(Array(DataType.double))]), [[1, 2], [3]], [[4]]) == [[1.0, 2.0], [3.0], [4.0]]
    assert rows(Schema([ColSpec(AnyType())]), [{"a": 1}, [2], None]) == [{"a": 1}, [2], None]


@pytest.mark.parametrize(
    ("person", "said"),
    [
        ("secret", "column 0: expected an object, found text"),
        ({"height": "secret"}, "column height: expected double, found text"),
        ({"height": True}, "column height: expected double, found boolean"),
        ({"name": 987654}, "column name: expected string, found integer"),
        ({"nicknames": "secret"}, "column nicknames: expected a list, found text"),
        ({"nicknames": ["a", 5]}, "column nicknames[1]: expected string, found integer"),
        ({"town": {"number": 1.5}}, "column town.number: expected long, found a number with a fraction"),
        ({"town": ["secret"]}, "column town: expected an object, found list"),
    ],
)
def test_what_cannot_fit_is_named(person: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        rows(PEOPLE, [ANN, person])
    assert caught.value.message == said


def test_in_a_column_of_a_name() -> None:
    schema = Schema([ColSpec(Array(DataType.double), "v"), ColSpec(TOWN, "town")])
    payload = orjson.dumps({"columns": ["v", "town"], "data": [[[1, "secret"], {"name": "Ulm"}]]})
    with pytest.raises(InvalidInput) as caught:
        build_frame("split", [read_input("split", payload, schema).content], schema)
    assert (caught.value.message, caught.value.field) == ("column v[1]: expected double, found text", "v[1]")


def test_nulls_are_left_to_the_model() -> None:
    assert rows(PEOPLE, [{"name": None, "nicknames": [None], "town": None}]) == [
        {"name": None, "nicknames": [None], "town": None}
    ]
