"""Lanes and their queues: what waits where, and what goes before it."""

import pytest

from pyfunq.job import Lane
from pyfunq.lanes import (
    first_queue,
    is_own_queue,
    lane_of,
    line,
    line_of,
    moved,
    own_of,
    queues_before,
    queues_of,
    queues_taken,
)

ALL = ["pyfunq.control", "interactive.first", "bulk.first", "interactive", *queues_of("bulk")]
BEFORE_BULK = ["pyfunq.control", "interactive.first", "bulk.first", "interactive"]


def test_a_lane_of_backlogs_has_eight_queues_and_any_other_has_one() -> None:
    assert queues_of("bulk") == ["bulk", "bulk.1", "bulk.2", "bulk.3", "bulk.4", "bulk.5", "bulk.6", "bulk.7"]
    assert queues_of("interactive") == ["interactive"]
    assert queues_of("bulk.3") == ["bulk.3"], "what is no lane is a queue itself"


@pytest.mark.parametrize("lane", Lane)
def test_every_queue_of_a_lane_leads_back_to_it(lane: Lane) -> None:
    assert {lane_of(queue) for queue in queues_of(lane)} == {lane}
    assert lane_of(first_queue(lane)) == lane


def test_what_goes_first_waits_in_one_queue_for_the_whole_lane() -> None:
    assert first_queue("bulk") == "bulk.first"
    assert first_queue("interactive") == "interactive.first"
    assert not {first_queue(lane) for lane in Lane} & {queue for lane in Lane for queue in queues_of(lane)}


@pytest.mark.parametrize("queue", queues_of("bulk"))
def test_before_a_backlog_goes_all_that_is_looked_at_before_any_backlog(queue: str) -> None:
    assert queues_before(queue, ALL) == BEFORE_BULK


def test_before_an_interactive_job_goes_little() -> None:
    assert queues_before("interactive", ALL) == ["pyfunq.control", "interactive.first", "bulk.first"]


@pytest.mark.parametrize("queue", [None, "bulk.first", "interactive.first", "bulk.8", "elsewhere"])
def test_nothing_is_known_to_go_before_these(queue: str | None) -> None:
    assert queues_before(queue, ALL) == []


def test_only_queues_that_a_worker_takes_from_count() -> None:
    assert queues_before("interactive", ["pyfunq.control", *queues_of("bulk")]) == []
    assert queues_before("bulk.3", ["pyfunq.control", "bulk.first", "bulk.3", "bulk.5", "interactive"]) == [
        "pyfunq.control",
        "bulk.first",
    ]
    assert queues_before("bulk.5", ["bulk.3", "interactive", "bulk.5"]) == [], "its lane begins with bulk.3"


@pytest.mark.parametrize("own", ["model.gpu", "model.a-b_C.7", "model.bulky", "model.firsts.x", "model.7"])
@pytest.mark.parametrize("lane", Lane)
def test_a_queue_of_a_models_own_has_both_lanes(own: str, lane: Lane) -> None:
    assert is_own_queue(own)
    queues = queues_of(line(lane, own))
    assert len(queues) == len(queues_of(lane))
    assert {(lane_of(q), own_of(q), line_of(q), first_queue(q)) for q in queues} == {
        (lane, own, line(lane, own), f"{own}.first")
    }
    assert own_of(f"{own}.first") == own
    assert [moved(q, None) for q in queues] == queues_of(lane)
    assert [moved(q, own) for q in queues_of(lane)] == queues
    assert [moved(q, "model.other") for q in queues] == queues_of(line(lane, "model.other"))
    assert [moved(q, own) for q in queues] == queues


@pytest.mark.parametrize(
    "name",
    [
        *("gpu", "model", "model.", "model..a", "model.a.", "model.bulk", "model.a.bulk", "model.a.bulk.3"),
        *("model.a.first", "interactive", "bulk.3", "Model.a", "model.a b", "model.a/b", "model.\u00e4", "model.a\n"),
        "model." + "x" * 100,
    ],
)
def test_what_names_no_queue_of_a_models_own(name: str) -> None:
    assert not is_own_queue(name)


def test_a_worker_takes_what_goes_first_then_its_lines_in_their_order() -> None:
    assert queues_taken(["interactive", "bulk"]) == ALL[1:]
    own = ["model.gpu", *queues_of("model.gpu.bulk")]
    assert queues_taken(["model.gpu"]) == ["model.gpu.first", *own]
    assert queues_taken(["model.gpu", "interactive"]) == ["model.gpu.first", "interactive.first", *own, "interactive"]
    assert queues_taken(["model.gpu.bulk"]) == ["model.gpu.first", *queues_of("model.gpu.bulk")]


def test_within_a_queue_of_its_own_interactive_goes_before_bulk() -> None:
    taken = queues_taken(["model.gpu"])
    assert queues_before("model.gpu.bulk.3", taken) == ["model.gpu.first", "model.gpu"]
    assert queues_before("model.gpu", taken) == ["model.gpu.first"]
    assert queues_before("model.gpu.first", taken) == []
