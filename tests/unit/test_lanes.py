"""Lanes and their queues: what waits where, and what goes before it."""

import pytest

from pyfunq.job import Lane
from pyfunq.lanes import first_queue, lane_of, queues_before, queues_of

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
