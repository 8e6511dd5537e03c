"""Params: what MLflow takes passes, what it would drop or refuse is named."""

from typing import Any

import pytest
from mlflow.models import infer_signature
from mlflow.types import ParamSchema, ParamSpec

from pyfunq.errors import InvalidInput
from worker.params import check_params

SCHEMA = ParamSchema(
    [
        ParamSpec("factor", "double", 1.0),
        ParamSpec("count", "long", 1),
        ParamSpec("since", "datetime", "2024-01-01"),
        ParamSpec("weights", "double", [1.0], shape=(-1,)),
    ]
)
WHO = infer_signature(["a"], params={"who": {"name": "a", "age": 1}}).params


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"factor": 1, "count": 3},
        {"factor": 0.5, "weights": [1, 2.5]},
        {"weights": []},
        {"since": "2024-05-06T07:08:09"},
    ],
)
def test_taken(params: Any) -> None:
    check_params(params, SCHEMA)


def test_objects() -> None:
    check_params({"who": {"name": "b", "age": 2}}, WHO)
    with pytest.raises(InvalidInput, match="param who: expected an object of age, name, found an object of name"):
        check_params({"who": {"name": "secret"}}, WHO)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"factor": "secret"}, "param factor: expected double, found text"),
        ({"factor": 1.0, "count": 1.5}, "param count: expected long, found number"),
        ({"count": True}, "param count: expected long, found boolean"),
        ({"count": [987654]}, "param count: expected long, found a list of integer"),
        ({"weights": 987654.5}, "param weights: expected a list of double, found number"),
        ({"weights": [1, "secret"]}, "param weights: expected a list of double, found a list of integer, text"),
        ({"since": "secret"}, "param since: expected datetime, found text"),
        ({"factr": 1, "factor": 2}, "params that the model does not take: factr"),
    ],
)
def test_refused(params: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_params(params, SCHEMA)
    assert caught.value.message == said
    assert caught.value.field == "params"


def test_a_model_without_params() -> None:
    check_params({}, None)
    with pytest.raises(InvalidInput, match="the model takes no params"):
        check_params({"factor": 1}, None)
