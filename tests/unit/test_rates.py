"""How often callers may ask: buckets that fill with time, counts that go back down."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from producer.api.callers import Caller
from producer.api.problems import Problem
from producer.api.rates import Rates, new_turn
from pyfunq.api_keys import ApiKey, Scope
from pyfunq.ids import new_id


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def caller(per_second: float | None, key_id: UUID | None = None) -> Caller:
    return Caller(
        ApiKey(
            id=key_id or new_id(),
            tenant_id=1,
            tenant="acme",
            name="test",
            prefix="pfq_x",
            scopes=frozenset(Scope),
            per_second=per_second,
            created_at=datetime.now(UTC),
        )
    )


def ask(rates: Rates, who: Caller) -> Any:
    """A request that ends at once; the headers of its answer."""
    scope: dict[str, Any] = {}
    turn = new_turn(scope)
    rates.begin(scope, who)
    rates.begin(scope, who)  # whoever asks twice in one request is counted once
    assert turn.end is not None
    turn.end()
    return dict(turn.headers)


def test_two_seconds_worth_at_once_and_then_as_the_rate_says() -> None:
    clock = Clock()
    rates, who = Rates(per_second=None, at_once=1, clock=clock), caller(10.0)
    left = [ask(rates, who)[b"ratelimit"] for _ in range(20)]
    assert (left[0], left[-1]) == (b'"requests";r=19;t=1', b'"requests";r=0;t=2')
    with pytest.raises(Problem) as refused:
        ask(rates, who)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
    clock.now += 0.125
    ask(rates, who)
    with pytest.raises(Problem):
        ask(rates, who)
    clock.now += 1_000
    assert ask(rates, who)[b"ratelimit"] == b'"requests";r=19;t=1'


def test_less_than_one_a_second_says_how_long_to_wait() -> None:
    rates, who = Rates(per_second=None, at_once=1, clock=Clock()), caller(0.1)
    assert ask(rates, who)[b"ratelimit-policy"] == b'"requests";q=1;w=10'
    with pytest.raises(Problem) as refused:
        ask(rates, who)
    assert refused.value.headers["Retry-After"] == "10"


def test_the_keys_own_rate_goes_before_the_default_and_none_says_nothing() -> None:
    assert ask(Rates(per_second=None, at_once=1), caller(None)) == {}
    assert b"q=4" in ask(Rates(per_second=2.0, at_once=1), Caller(None))[b"ratelimit-policy"]
    assert b"q=20" in ask(Rates(per_second=2.0, at_once=1), caller(10.0))[b"ratelimit-policy"]


def test_a_changed_rate_counts_at_once() -> None:
    rates, key_id = Rates(per_second=None, at_once=1), new_id()
    ask(rates, caller(1.0, key_id))
    assert b"q=200" in ask(rates, caller(100.0, key_id))[b"ratelimit-policy"]


def test_requests_under_way_are_counted_by_key() -> None:
    rates, one, two = Rates(per_second=None, at_once=2), caller(None), caller(None)
    turns = []
    for _ in range(2):
        scope: dict[str, Any] = {}
        turns.append(new_turn(scope))
        rates.begin(scope, one)
    with pytest.raises(Problem):
        ask(rates, one)
    ask(rates, two)
    assert turns[0].end is not None
    turns[0].end()
    ask(rates, one)
