"""The words: statuses, transitions, batches."""

from datetime import UTC, datetime
from typing import Any

import pytest

from pyfunq.errors import PyFunQError
from pyfunq.ids import id_time, new_id, oldest_id_at
from pyfunq.job import TRANSITIONS, Batch, JobError, JobStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_final_statuses_are_those_without_a_way_out() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    assert {status for status in JobStatus if status.is_final} == {s for s, after in TRANSITIONS.items() if not after}


def test_every_status_can_be_reached_from_queued() -> None:
    reached, frontier = set(), {JobStatus.QUEUED}
    while frontier:
        reached |= frontier
        frontier = {after for status in frontier for after in TRANSITIONS[status]} - reached
    assert reached == set(JobStatus)


def batch(**change: Any) -> Batch:
    fields: dict[str, Any] = {
        "id": new_id(),
        "model_uri": "models:/m/1",
        "created_at": NOW,
        "submitted_at": NOW,
        "error": None,
        "jobs": 3,
        "rows": 30,
        "rows_finished": 30,
        "counts": {JobStatus.SUCCEEDED: 2, JobStatus.FAILED: 1},
    }
    return Batch(**{**fields, **change})


@pytest.mark.parametrize(
    ("change", "final"),
    [
        ({}, True),
        ({"submitted_at": None}, False),
        ({"submitted_at": None, "error": JobError(code="x", message="y")}, True),
        ({"counts": {JobStatus.SUCCEEDED: 2, JobStatus.RUNNING: 1}}, False),
    ],
)
def test_a_batch_is_final_when_all_of_it_is_submitted_and_final(change: dict[str, Any], final: bool) -> None:
    assert batch(**change).is_final is final


def test_ids_sort_by_time_and_tell_it() -> None:
    before = datetime.now(UTC).timestamp()
    ids = [new_id() for _ in range(1000)]
    after = datetime.now(UTC).timestamp()
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    assert before - 0.002 <= id_time(ids[0]).timestamp() <= after
    assert oldest_id_at(before - 1) < ids[0] < oldest_id_at(after + 1)
    assert oldest_id_at(-5).int == 0


def test_every_error_has_a_code_of_its_own_and_a_text() -> None:
    def below(kind: type[PyFunQError]) -> list[type[PyFunQError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in below(sub))]

    kinds = below(PyFunQError)
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(kind().message for kind in kinds)
    assert {kind.fault for kind in kinds} <= {"caller", "model", "operator", "dependency"}
