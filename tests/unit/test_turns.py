"""The order of queues."""

from collections import Counter
from collections.abc import Sequence

from pyfunq.lanes import queues_taken
from pyfunq.turns import PASSED_OVER, PriorityWithTurns

QUEUES = ["control", "interactive.first", "bulk.first", "interactive", "bulk", "bulk.1", "bulk.2"]


def served(waiting: dict[str, int], messages: int, queues: Sequence[str] = QUEUES) -> list[str]:
    """Whose message each one is, while none of the queues runs empty that is in `waiting`."""
    turns = PriorityWithTurns([])
    turns.update(queues)
    taken = []
    for _ in range(messages):
        queue = next((q for q in turns.consume(len(queues)) if waiting.get(q)), None)
        if queue is None:
            break
        waiting[queue] -= 1
        turns.rotate(queue)
        taken.append(queue)
    return taken


def test_the_first_goes_first() -> None:
    assert served({"bulk": 3, "interactive": 3, "control": 1}, 7) == ["control"] + ["interactive"] * 3 + ["bulk"] * 3


def test_none_is_passed_over_for_ever() -> None:
    counts = Counter(served({"bulk": 10**6, "interactive": 10**6}, 110 * 10))
    assert counts == {"interactive": PASSED_OVER * 100, "bulk": 100}
    waiting = {"bulk": 5, "interactive": 10**6, "control": 10**6}
    assert set(served(dict(waiting), 200)) == set(waiting)


def test_a_queue_whose_turn_it_is_holds_nobody_up_while_it_is_empty() -> None:
    assert served({"interactive": 100}, 200) == ["interactive"] * 100


def test_the_queues_of_a_lane_take_turns() -> None:
    assert served({"bulk": 100, "bulk.1": 2, "bulk.2": 3}, 8) == (["bulk", "bulk.1", "bulk.2"] * 2 + ["bulk", "bulk.2"])
    assert served({"bulk.2": 5, "bulk": 1}, 6) == ["bulk", *["bulk.2"] * 5]


def test_what_goes_first_goes_before_all_queues_of_its_lane() -> None:
    assert served({"bulk.2": 1, "interactive": 1, "bulk.first": 2}, 4) == ["bulk.first"] * 2 + ["interactive", "bulk.2"]


def test_a_lane_is_passed_over_as_a_whole() -> None:
    taken = served({"bulk": 10**6, "bulk.1": 10**6, "interactive": 10**6}, 11 * 20)
    assert Counter(taken) == {"interactive": 200, "bulk": 10, "bulk.1": 10}


def test_models_own_queues_are_lines_of_their_own() -> None:
    queues = queues_taken(["model.7", "model.8"])
    waiting = {"model.7.bulk.2": 3, "model.7.bulk": 2, "model.8": 2, "model.7": 1, "model.8.first": 1}
    assert served(waiting, 9, queues) == [
        *("model.8.first", "model.7", "model.7.bulk", "model.7.bulk.2", "model.7.bulk", "model.7.bulk.2"),
        *("model.7.bulk.2", "model.8", "model.8"),
    ]
