"""The words: statuses, transitions, batches."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from pyfunq.errors import PyFunQError
from pyfunq.ids import new_id
from pyfunq.job import STATUSES, TRANSITIONS, Batch, Job, JobError, JobStatus, job_of

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


def test_every_error_has_a_code_of_its_own_and_a_text() -> None:
    def below(kind: type[PyFunQError]) -> list[type[PyFunQError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in below(sub))]

    kinds = below(PyFunQError)
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(kind().message for kind in kinds)
    assert {kind.fault for kind in kinds} <= {"caller", "model", "operator", "dependency"}


def test_a_job_that_is_made_quickly_is_a_job() -> None:
    known = {"id": new_id(), "status": JobStatus.QUEUED, "model_uri": "models:/m/1", "lane": "bulk", "rows": 2}
    known |= {"attempt": 1, "max_attempts": 3, "created_at": datetime.now(UTC)}
    for more in ({}, {"retries": 4, "worker": "w", "metadata": {"a": 1}}):
        quick, plain = job_of(**known, **more), Job(**known, **more)
        assert (type(quick), quick, repr(quick), hash(quick.id)) == (Job, plain, repr(plain), hash(plain.id))
        assert pickle.loads(pickle.dumps(quick)) == copy.deepcopy(quick) == plain
        assert replace(quick, rows=3) == replace(plain, rows=3) != quick
        with pytest.raises(FrozenInstanceError):
            quick.rows = 3
    with pytest.raises(TypeError, match="created_at"):
        job_of(**{name: value for name, value in known.items() if name != "created_at"})
    with pytest.raises(TypeError, match="colour"):
        job_of(**known, colour="red")


def test_statuses_go_by_their_names_in_the_ledger() -> None:
    assert {name: JobStatus(name) for name in STATUSES} == STATUSES
    assert set(STATUSES.values()) == set(JobStatus)
