"""The queues of a lane: which job waits in which, and what that means for who waits for whom."""

from collections.abc import Sequence

from pyfunq.job import Lane

BULK_QUEUES = 8
"""Backlogs in different queues share the workers; those in the same one are first come, first served."""


def queues_of(lane: str) -> list[str]:
    """The queues that a lane's jobs wait in, apart from `first_queue`; what is no lane is a queue itself."""
    return [lane, *(f"{lane}.{n}" for n in range(1, BULK_QUEUES))] if lane == Lane.BULK else [lane]


def lane_of(queue: str) -> str:
    return queue.partition(".")[0]


def first_queue(lane: str) -> str:
    """Goes before a lane, wherever that is taken from: for jobs that lost their process once, and waited already."""
    return f"{lane}.first"


def queues_before(queue: str | None, queues: Sequence[str]) -> list[str]:
    """Of the queues that a worker takes from, in their order: those that it looks at before any of the queue's lane."""
    if queue is None or queue.endswith(".first") or queue not in queues:
        return []
    same = [q for q in queues if lane_of(q) == lane_of(queue) and q != first_queue(lane_of(q))]
    return list(queues[: queues.index(same[0])])
