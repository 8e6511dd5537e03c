"""Inputs encoded at once are what each is alone, and what is refused alone is never accepted in company."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfunq.errors import InvalidInput
from pyfunq.inputs import encode_input
from pyfunq.many_inputs import FEW, LikeBefore, encode_alike
from pyfunq.signature import Signature

NAMES = ["a", "b"]
SIGNATURES = [
    None,
    Signature.from_json(json.dumps([{"name": n, "type": "double", "required": True} for n in NAMES])),
    Signature.from_json(
        json.dumps([{"name": "a", "type": "long", "required": True}, {"name": "b", "type": "string", "required": True}])
    ),
    Signature.from_json(json.dumps([{"type": "double", "required": True}, {"type": "double", "required": True}])),
    Signature.from_json(json.dumps([{"name": n, "type": "long", "required": False} for n in NAMES])),
    Signature.from_json(
        json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 2]}, "name": None}])
    ),
]
NORMAL = st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=2), min_size=1, max_size=3)
CELL = st.one_of(
    *(st.floats(), st.integers(-(2**70), 2**70), st.booleans(), st.none(), st.text(st.characters(), max_size=2)),
    *(st.just("\ud800"), st.lists(st.integers(0, 1), max_size=1), st.just(object())),
)
ODD = st.lists(st.one_of(st.lists(CELL, max_size=3), st.tuples(CELL, CELL), CELL), max_size=2)


def one(form: str, names: list[str], rows: list[Any]) -> dict[str, Any]:
    if form == "dataframe_split":
        return {form: {"columns": names, "data": rows}}
    if form == "dataframe_records":
        return {form: [dict(zip(names, row, strict=False)) if isinstance(row, list) else row for row in rows]}
    return {form: rows}


def alone(given: Any, signature: Signature | None) -> Any:
    try:
        return encode_input(given, None, signature=signature, max_bytes=200)
    except InvalidInput:
        return None


FORMS = st.sampled_from(["dataframe_split", "dataframe_records", "instances"])


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(SIGNATURES),
    FORMS,
    st.lists(NORMAL, min_size=FEW, max_size=FEW + 3),
    st.lists(st.tuples(FORMS, st.permutations(NAMES), st.one_of(ODD, NORMAL)), max_size=1),
    st.integers(0, FEW),
)
def test_together_and_alone_are_the_same(
    signature: Signature | None, form: str, many: list[Any], odd: list[tuple[str, list[str], Any]], at: int
) -> None:
    inputs = [one(form, NAMES, rows) for rows in many]
    for other_form, names, rows in odd:
        inputs.insert(at, one(other_form, names, rows))
    together = encode_alike(inputs, None, signature=signature, max_bytes=200)
    if together is not None:
        assert together == [alone(given, signature) for given in inputs]


@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records"])
@pytest.mark.parametrize("signature", SIGNATURES[:2])
def test_what_is_alike_is_encoded_together(form: str, signature: Signature | None) -> None:
    inputs = [one(form, NAMES, [[float(i), 2.0]]) for i in range(FEW)]
    params = {"b": 1, "a": [2]}
    together = encode_alike(inputs, params, signature=signature, max_bytes=1000)
    assert together == [encode_input(given, params, signature=signature, max_bytes=1000) for given in inputs]
    assert encode_alike(inputs, {"a": object()}, signature=signature, max_bytes=1000) is None


def test_records_of_one_key_too() -> None:
    inputs = [{"dataframe_records": [{"a": i}, {"a": None}]} for i in range(FEW)]
    together = encode_alike(inputs, None, signature=None, max_bytes=1000)
    assert together == [encode_input(given, None, signature=None, max_bytes=1000) for given in inputs]


# One after another.

ROW = [[1, 2.5]]
DOUBLES = SIGNATURES[1]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.just(DOUBLES), st.sampled_from(SIGNATURES)),
            st.one_of(st.just("dataframe_split"), FORMS),
            st.one_of(st.just(NAMES), st.permutations(NAMES)),
            st.one_of(NORMAL, ODD),
        ),
        min_size=2,
        max_size=6,
    )
)
def test_what_is_encoded_like_others_before_is_what_it_is_alone(
    inputs: list[tuple[Signature | None, str, list[str], Any]],
) -> None:
    like_before = LikeBefore()
    for signature, form, names, rows in inputs:
        given = one(form, names, rows)
        encoded = like_before.encode(given, signature, 200)
        expected = alone(given, signature)
        assert encoded is None or encoded == expected
        if expected is not None:
            like_before.remember(given, expected, signature)


def after(signature: Signature | None, rows: Any = ROW) -> LikeBefore:
    """Has seen these rows."""
    like_before = LikeBefore()
    given = one("dataframe_split", NAMES, rows)
    like_before.remember(given, encode_input(given, None, signature=signature, max_bytes=1000), signature)
    return like_before


@pytest.mark.parametrize("rows", [ROW, [[0, -(2**63)], [2**64 - 1, 1e300]], [[-0.0, 5e-324]]])
@pytest.mark.parametrize("signature", [None, DOUBLES])
def test_numbers_in_the_same_columns_are_encoded_like_those_before(signature: Signature | None, rows: Any) -> None:
    given = one("dataframe_split", NAMES, rows)
    encoded = after(signature).encode(given, signature, 1000)
    assert encoded is not None
    assert encoded == encode_input(given, None, signature=signature, max_bytes=1000)


def test_it_remembers_only_inputs_of_which_numbers_are_all_that_matters() -> None:
    given = one("dataframe_split", NAMES, ROW)
    for first in (given, one("dataframe_split", [], [[]])):
        assert LikeBefore().encode(first, None, 1000) is None, "there was nothing before"
    whole = one("dataframe_split", NAMES, [[1, 2]])
    for signature in (SIGNATURES[4], SIGNATURES[5]):
        assert after(signature, [[1, 2]]).encode(whole, signature, 1000) is None
    records = one("dataframe_records", NAMES, ROW)
    like_before = LikeBefore()
    like_before.remember(records, encode_input(records, None, signature=None, max_bytes=1000), None)
    assert like_before.encode(given, None, 1000) is None
    assert like_before.encode(records, None, 1000) is None


@pytest.mark.parametrize(
    "rows",
    [
        *([[1.0, odd]] for odd in (float("nan"), float("inf"), -float("inf"), True, "1", None, [1], {}, object())),
        *([[1.0, 2**64]], [[-(2**63) - 1, 1.0]], [[1e308, 1e308]]),
        *([(1.0, 2.0)], ([1.0, 2.0],), [[1.0]], [[1.0, 2.0], [1.0, 2.0, 3.0]], [[]], [], None, {}),
    ],
)
@pytest.mark.parametrize("signature", [None, DOUBLES])
def test_other_rows_are_not_like_those_before(signature: Signature | None, rows: Any) -> None:
    assert after(signature).encode(one("dataframe_split", NAMES, rows), signature, 1000) is None


@pytest.mark.parametrize("too_large", [10**70, 10**400], ids=["70", "400"])
def test_no_integer_is_too_large_to_be_refused(too_large: int) -> None:
    for rows in ([[too_large, 1.5]], [[too_large, 1]]):
        assert after(None).encode(one("dataframe_split", NAMES, rows), None, 1000) is None


@pytest.mark.parametrize(
    "other",
    [
        one("dataframe_split", ["b", "a"], ROW),
        one("dataframe_split", ["a"], [[1]]),
        one("dataframe_split", ["a", "c"], ROW),
        {"dataframe_split": {"columns": ("a", "b"), "data": ROW}},
        {"dataframe_split": {"data": ROW}},
        {"dataframe_split": {"columns": NAMES}},
        {"dataframe_split": {"columns": NAMES, "data": ROW, "index": [0]}},
        {"dataframe_split": [NAMES, ROW]},
        {"dataframe_split": {"columns": NAMES, "data": ROW}, "params": {"k": 1}},
        {"dataframe_split": {"columns": NAMES, "data": ROW}, "params": None},
        one("dataframe_records", NAMES, ROW),
        one("instances", NAMES, ROW),
        {},
        None,
    ],
)
def test_inputs_of_another_form_are_not_like_those_before(other: Any) -> None:
    assert after(None).encode(other, None, 1000) is None


def test_another_signature_is_another_matter_even_if_it_says_the_same() -> None:
    given = one("dataframe_split", NAMES, ROW)
    assert DOUBLES is not None
    same_words = Signature(DOUBLES.columns)
    assert same_words == DOUBLES
    for before, now in ((DOUBLES, same_words), (DOUBLES, None), (None, DOUBLES)):
        assert after(before).encode(given, now, 1000) is None


def test_what_is_too_large_is_not_like_those_before() -> None:
    given = one("dataframe_split", NAMES, ROW)
    size = encode_input(given, None, signature=None, max_bytes=1000).size
    assert after(None).encode(given, None, size) is not None
    assert after(None).encode(given, None, size - 1) is None


def test_what_was_remembered_does_not_change_with_the_callers_list() -> None:
    names = list(NAMES)
    given = one("dataframe_split", names, ROW)
    like_before = LikeBefore()
    like_before.remember(given, encode_input(given, None, signature=None, max_bytes=1000), None)
    names[0] = "c"
    assert like_before.encode(given, None, 1000) is None
