"""Example inputs: what is made from a signature, or taken from the model's own, is something that submit takes."""

import json
from typing import Any

import pytest

from producer.examples import example_from, first_row, made_from
from pyfunq.inputs import encode_input
from pyfunq.signature import Signature

EVERY_TYPE = [
    {"type": kind, "name": kind, "required": True}
    for kind in ("double", "float", "long", "integer", "boolean", "string", "binary", "datetime")
]
NESTED = [
    {"type": "array", "items": {"type": "double"}, "name": "a", "required": True},
    {"type": "object", "properties": {"x": {"type": "long"}, "y": {"type": "string"}}, "name": "o", "required": True},
    {"type": "map", "values": {"type": "boolean"}, "name": "m", "required": False},
]


def tensor(dtype: str, *shape: int, name: str | None = None) -> dict[str, Any]:
    spec = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}
    return spec | ({"name": name} if name else {})


@pytest.mark.parametrize(
    "specs",
    [
        EVERY_TYPE,
        NESTED,
        [{"type": "string", "required": True}],
        [{"type": "double", "required": True}, {"type": "long", "required": True}],
        [{"type": "object", "properties": {"x": {"type": "long"}}, "required": True}],
        [tensor("float64", -1, 4)],
        [tensor("uint8", -1, 2, 2, name="image"), tensor("str", -1, name="title")],
    ],
)
def test_a_made_example_is_one_row_that_fits(specs: list[dict[str, Any]]) -> None:
    signature = Signature.from_json(json.dumps(specs))
    example, is_own = example_from(None, specs, None, signature)
    assert example is not None
    assert not is_own
    assert encode_input(example, signature=signature, max_bytes=10_000).rows == 1
    json.dumps(example, allow_nan=False)


def test_a_made_example_has_the_shape_of_the_types() -> None:
    assert made_from(NESTED) == {
        "dataframe_split": {"columns": ["a", "o", "m"], "data": [[[1.0], {"x": 1, "y": "text"}, {"key": True}]]}
    }
    assert made_from([tensor("int64", -1, 2)]) == {"inputs": [[1, 1]]}
    assert made_from([tensor("float32", -1, 224, 224, 3)]) is None


def test_params_come_with_their_defaults() -> None:
    params = [{"name": "k", "type": "long", "default": 3, "shape": None}]
    example, _ = example_from(None, EVERY_TYPE, params, None)
    assert example is not None
    assert example["params"] == {"k": 3}


@pytest.mark.parametrize(
    ("own", "row"),
    [
        (
            {"dataframe_split": {"index": [0, 1], "columns": ["x"], "data": [[1], [2]]}},
            {"dataframe_split": {"columns": ["x"], "data": [[1]]}},
        ),
        (
            {"dataframe_records": [{"x": 1}, {"x": 2}], "params": {"k": 1}},
            {"dataframe_records": [{"x": 1}], "params": {"k": 1}},
        ),
        ({"inputs": {"x": [1, 2]}}, {"inputs": {"x": [1, 2]}}),
        ({"inputs": ["a", "b"]}, {"inputs": ["a"]}),
    ],
)
def test_of_the_models_own_example_the_first_row_is_enough(own: dict[str, Any], row: dict[str, Any]) -> None:
    assert first_row(own) == row
    assert example_from(own, None, None, None) == (row, True)


@pytest.mark.parametrize(
    "own",
    [
        {"dataframe_split": {"columns": ["other"], "data": [[1]]}},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"dataframe_split": {"columns": ["x"], "data": [["y" * 20_000]]}},
    ],
)
def test_an_example_that_submit_would_refuse_is_replaced(own: dict[str, Any]) -> None:
    specs = [{"type": "double", "name": "x", "required": True}]
    example, is_own = example_from(own, specs, None, Signature.from_json(json.dumps(specs)))
    assert example == {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}
    assert not is_own


def test_without_a_signature_nothing_is_made_up() -> None:
    assert example_from(None, None, None, None) == (None, False)
    assert example_from({"messages": []}, [], None, None) == (None, False)
