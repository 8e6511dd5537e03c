"""The queues of a lane: which job waits in which, and what that means for who waits for whom."""

import re
from collections.abc import Sequence

from pyfunq.job import Lane

BULK_QUEUES = 8
"""Backlogs in different queues share the workers; those in the same one are first come, first served."""
_OWN = "model."
_OWN_NAME = re.compile(r"model(\.[A-Za-z0-9_-]+)+")
_OWN_BULK = re.compile(r"(.+)\.bulk(?:\.[0-9]+)?")
_RESERVED = {"bulk", "first"}
_LONGEST_NAME = 100


def is_own_queue(name: str) -> bool:
    """Whether it can name a queue of a model's own: `model.`, and letters, digits, `.`, `-` and `_`.

    Its interactive jobs wait in `model.x`, its bulk jobs in `model.x.bulk`, so no part of a name is `bulk` or `first`.
    """
    return bool(_OWN_NAME.fullmatch(name)) and len(name) <= _LONGEST_NAME and _RESERVED.isdisjoint(name.split("."))


def line(lane: str, own: str | None = None) -> str:
    """What a lane's jobs wait in: the lane itself or, for a model with a queue of its own, that lane's part of it."""
    if own is None:
        return str(lane)
    return f"{own}.{Lane.BULK}" if lane == Lane.BULK else own


def queues_of(line: str) -> list[str]:
    """The queues of a line, apart from `first_queue`; what is no line is a queue itself."""
    is_bulk = lane_of(line) == Lane.BULK and line_of(line) == line
    return [line, *(f"{line}.{n}" for n in range(1, BULK_QUEUES))] if is_bulk else [str(line)]


def lane_of(queue: str) -> str:
    if queue.startswith(_OWN):
        return str(Lane.BULK if _OWN_BULK.fullmatch(queue) else Lane.INTERACTIVE)
    return queue.partition(".")[0]


def own_of(queue: str) -> str | None:
    """The queue of a model's own that this is a part of; None for everybody's."""
    if not queue.startswith(_OWN):
        return None
    bulk = _OWN_BULK.fullmatch(queue)
    return bulk[1] if bulk else queue.removesuffix(".first")


def line_of(queue: str) -> str:
    return line(lane_of(queue), own_of(queue))


def moved(queue: str, own: str | None) -> str:
    """The queue of the same lane and number in a model's own or, without one, among everybody's; see `repage`."""
    return line(lane_of(queue), own) + queue.removeprefix(line_of(queue))


def first_queue(line: str) -> str:
    """Goes before a line, wherever that is taken from: for jobs that lost their process once, and waited already."""
    return f"{own_of(line) or lane_of(line)}.first"


def queues_taken(names: Sequence[str]) -> list[str]:
    """What a worker takes from that was started for these lanes and models' own queues, in its order."""
    lines: list[str] = []
    for name in names:
        lines += [name, line(Lane.BULK, name)] if own_of(name) == name else [name]
    return list(dict.fromkeys([*map(first_queue, lines), *(queue for line in lines for queue in queues_of(line))]))


def queues_before(queue: str | None, queues: Sequence[str]) -> list[str]:
    """Of the queues that a worker takes from, in their order: those that it looks at before any of the queue's line."""
    if queue is None or queue.endswith(".first") or queue not in queues:
        return []
    same = [q for q in queues if line_of(q) == line_of(queue) and not q.endswith(".first")]
    return list(queues[: queues.index(same[0])])
