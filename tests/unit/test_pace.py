"""How many rows a call may have: what workers make of the time that calls took."""

import random
from collections.abc import Callable
from itertools import groupby

import pytest

from worker.pace import Paces

URI, MOST = "models:/m/1", 10_000


def settle(takes: Callable[[int], float], calls: int = 60, *, paces: Paces | None = None) -> list[int]:
    """The sizes of a process's calls, one after another, that have as many rows as it said; others have one row."""
    paces = paces or Paces(longest_seconds=0.05, most_rows=MOST)
    said = [MOST]
    for _ in range(calls):
        assert paces.news(URI, 1, takes(1)) is None
        rows = said[-1]
        said.append(paces.news(URI, rows, takes(rows)) or rows)
    return [rows for rows, _ in groupby(said)]


@pytest.mark.parametrize(
    ("fixed", "a_row", "fewest", "most"),
    [
        (0.0005, 0.5e-6, MOST, MOST),  # a linear model
        (0.003, 12e-6, 3_500, 4_500),  # a forest
        (0.001, 0.1e-3, 400, 600),
        (0.0, 0.01, 100, 100),  # one that can do no better
        (1.0, 1e-6, MOST, MOST),  # a call costs far more than its rows
        (0.1, 0.1e-3, 3_200, 5_000),  # a fifth of a call's time at most is the call's own
    ],
)
def test_calls_get_the_rows_that_take_as_long_as_they_may(fixed: float, a_row: float, fewest: int, most: int) -> None:
    said = settle(lambda rows: fixed + a_row * rows)
    assert fewest <= said[-1] <= most
    assert len(said) <= 5


def test_calls_of_one_size_do_not_say_what_their_rows_take() -> None:
    paces = Paces(longest_seconds=0.05, most_rows=MOST)
    assert {paces.news(URI, rows, 1.0) for rows in [5_000, MOST] * 10} == {None}


def test_noise_is_no_news() -> None:
    noise = random.Random(4)  # noqa: S311
    said = settle(lambda rows: (0.003 + 12e-6 * rows) * noise.uniform(0.9, 1.2), 2_000)
    assert len(said) <= 7


def test_a_model_that_is_slow_for_a_while_gets_its_rows_back() -> None:
    paces = Paces(longest_seconds=0.05, most_rows=MOST)
    usual = settle(lambda rows: 0.003 + 12e-6 * rows, paces=paces)[-1]
    slow = settle(lambda rows: 5 * (0.003 + 12e-6 * rows), paces=paces)[-1]
    assert slow < usual / 2
    again = settle(lambda rows: 0.003 + 12e-6 * rows, 400, paces=paces)[-1]
    assert usual / 1.5 < again < usual * 1.5


def test_a_model_that_gets_faster_gets_its_rows_back_from_the_fewest() -> None:
    paces = Paces(longest_seconds=0.05, most_rows=MOST)
    assert settle(lambda rows: 0.01 * rows, paces=paces)[-1] == 100
    # This process has said so, and its calls have no more rows.
    rows = 100
    for _ in range(60):
        rows = paces.news(URI, rows, 1e-6 * rows) or rows
    assert rows == MOST


def test_a_call_that_comes_to_cost_more_than_its_rows_gets_more_of_them() -> None:
    paces = Paces(longest_seconds=0.05, most_rows=MOST)
    assert settle(lambda rows: 0.001 + 12e-6 * rows, paces=paces)[-1] < 5_000
    assert settle(lambda rows: 0.2 + 12e-6 * rows, 800, paces=paces)[-1] > 8_000


def test_small_calls_beside_which_others_ran_do_not_hide_what_rows_take() -> None:
    def takes(rows: int) -> float:
        return 0.003 + 12e-6 * rows if rows > 1 else next(beside)

    beside = iter([0.003] + [0.05] * 100)
    assert settle(takes)[-1] < 5_000


def test_few_rows_and_single_calls_say_nothing() -> None:
    paces = Paces(longest_seconds=0.05, most_rows=MOST)
    assert {paces.news(URI, 255, 9.0) for _ in range(100)} == {None}
    assert [paces.news(URI, 1_100, 39.0) for _ in range(3)] == [None, None, 100]


def test_models_have_paces_of_their_own() -> None:
    paces = Paces(longest_seconds=0.05, most_rows=MOST)
    for model, a_row, said in (("slow", 0.001, 100), ("fast", 1e-6, MOST)):
        assert [paces.news(f"models:/{model}/1", rows, a_row * rows) for rows in (1, *[1_000] * 3)][-1] == said
