"""The points at which a crash matters, by name: nothing happens there unless a test put something there."""

from collections.abc import Callable
from enum import StrEnum


class FaultPoint(StrEnum):
    BEFORE_COMMIT = "before commit"
    """A submit is on its way to Postgres; its caller was told nothing."""
    BEFORE_PUBLISH = "before publish"
    """The jobs are accepted; no message names them yet."""
    BEFORE_CLAIM = "before claim"
    """A worker process has a message and none of its jobs."""
    AFTER_CLAIM = "after claim"
    """The jobs are running; the model has not been called."""
    PREDICTING = "predicting"
    """The model has answered; no result is recorded."""
    BEFORE_ACK = "before ack"
    """The results are committed; nobody was told, and the message is not acknowledged."""
    DRAINING = "draining"
    """A worker is stopping; what it does not finish is not given back yet."""


_hook: Callable[[FaultPoint], None] | None = None


def reach(point: FaultPoint) -> None:
    if _hook is not None:
        _hook(point)


def on_reach(hook: Callable[[FaultPoint], None] | None) -> None:
    """Calls `hook` at every point that this process, and its children, reach from now on."""
    global _hook
    _hook = hook
