"""How many rows a call of a model may have so that who goes first need not wait long, from how long its calls take."""

import threading
from dataclasses import dataclass

_ENOUGH_ROWS = 256
"""Of a call that says something about the time a row takes, where larger ones are allowed."""
_ENOUGH_CALLS = 3
_FEWEST_ROWS = 100
_WEIGHT = 0.2
"""Of the last call in the mean of those of its size."""
_GROWTH = 1.01
_OTHER = 4
"""Sizes that far apart tell what a call takes from what its rows take."""
_FIXED_SHARE = 0.2
"""Of a call's time, at most this much is what it takes whatever its rows."""
_TOLERANCE = 1.4


class Paces:
    """Of the models that a process uses; safe for its threads."""

    def __init__(self, *, longest_seconds: float, most_rows: int) -> None:
        """`longest_seconds`: what a call may take. `most_rows`: what it may have however fast it is."""
        self._longest_seconds = longest_seconds
        self._most_rows = most_rows
        self._paces: dict[str, _Pace] = {}
        self._said: dict[str, int] = {}
        self._lock = threading.Lock()

    def news(self, model_uri: str, rows: int, seconds: float) -> int | None:
        """Learns of a call; how many rows one of the model may have, where that is something new."""
        with self._lock:
            pace = self._paces.setdefault(model_uri, _Pace())
            said = self._said.get(model_uri)
            enough_rows = _ENOUGH_ROWS if said is None else min(_ENOUGH_ROWS, said // 2)
            fitting = pace.learn(rows, seconds).rows_within(self._longest_seconds, enough_rows)
            if fitting is None:
                return None
            fitting = max(_FEWEST_ROWS, min(fitting, self._most_rows))
            if said is not None and said < fitting * _TOLERANCE and fitting < said * _TOLERANCE:
                return None
            self._said[model_uri] = fitting
            return fitting


@dataclass(slots=True)
class _Calls:
    """Those of about the same size."""

    rows: float = 0.0
    seconds: float = 0.0
    least: float = 0.0
    """The shortest, forgotten slowly: the time without what else ran on the cores."""
    number: int = 0

    def learn(self, rows: int, seconds: float) -> None:
        self.number += 1
        weight = max(_WEIGHT, 1 / self.number)
        self.rows += weight * (rows - self.rows)
        self.seconds += weight * (seconds - self.seconds)
        self.least = min(seconds, self.least * _GROWTH) if self.number > 1 else seconds


class _Pace:
    def __init__(self) -> None:
        self._sizes: dict[int, _Calls] = {}
        self._last = _Calls()

    def learn(self, rows: int, seconds: float) -> "_Pace":
        calls = self._sizes.setdefault(rows.bit_length(), _Calls())
        calls.learn(rows, seconds)
        self._last = calls
        return self

    def rows_within(self, seconds: float, enough_rows: int) -> int | None:
        """None: not known, or not by the last call.

        Without calls of another size nobody knows what a call takes whatever its rows; and if no small ones come,
        nobody waits. More than take so long where most of the time would go into that otherwise.
        """
        last = self._last
        if last.rows < enough_rows or last.number < _ENOUGH_CALLS:
            return None
        apart = {max(calls.rows / last.rows, last.rows / calls.rows): calls for calls in self._sizes.values()}
        if (furthest := max(apart)) < _OTHER:
            return None
        other = apart[furthest]
        a_row = (last.seconds - other.least) / (last.rows - other.rows)
        a_row = max(1e-9, min(last.seconds / last.rows, a_row))
        fixed = last.seconds - a_row * last.rows
        return int(max(seconds - fixed, fixed / _FIXED_SHARE - fixed) / a_row)
