"""The jobs that a submit returns: a sequence whose jobs are made when they are looked at."""

import pickle
from datetime import UTC, datetime

import pytest

from pyfunq.entries import NewJob
from pyfunq.ids import id_time, new_id
from pyfunq.inputs import EncodedInput
from pyfunq.job import Job, JobStatus
from pyfunq.submitted import SubmittedJobs

BATCH = new_id()
SOON = datetime(2030, 1, 1, tzinfo=UTC)


def new_job(n: int, queue: str = "interactive") -> NewJob:
    return NewJob(
        id=new_id(),
        model_uri="models:/a/1",
        input=EncodedInput(format="split", payload=b"{}" * 1_000, params=b"{}", rows=n + 1),
        queue=queue,
        max_attempts=3,
        expires_at=SOON,
        batch_id=BATCH,
        timeout_seconds=7.5,
        retries=2,
    )


@pytest.fixture
def new() -> list[NewJob]:
    return [new_job(n) for n in range(5)]


@pytest.fixture
def jobs(new: list[NewJob]) -> SubmittedJobs:
    return SubmittedJobs(new)


def test_a_job_is_what_was_submitted(new: list[NewJob], jobs: SubmittedJobs) -> None:
    assert jobs[1] == Job(
        id=new[1].id,
        status=JobStatus.QUEUED,
        model_uri="models:/a/1",
        lane="interactive",
        rows=2,
        attempt=0,
        max_attempts=3,
        created_at=id_time(new[1].id),
        expires_at=SOON,
        timeout_seconds=7.5,
        retries=2,
        batch_id=BATCH,
    )


def test_it_has_the_order_and_number_of_the_inputs(new: list[NewJob], jobs: SubmittedJobs) -> None:
    ids = [job.id for job in new]
    assert len(jobs) == 5
    assert [job.id for job in jobs] == ids
    assert [job.id for job in reversed(jobs)] == ids[::-1]
    assert jobs[-1].id == ids[-1]
    assert jobs[-5].id == ids[0]
    assert jobs.index(jobs[3]) == 3
    assert jobs[2] in jobs
    for beyond in (5, -6):
        with pytest.raises(IndexError):
            jobs[beyond]


@pytest.mark.parametrize("part", [slice(1, 3), slice(None, None, -2), slice(-2, None), slice(9, None)])
def test_a_part_of_it_is_one_too(new: list[NewJob], jobs: SubmittedJobs, part: slice) -> None:
    found = jobs[part]
    assert isinstance(found, SubmittedJobs)
    assert [job.id for job in found] == [job.id for job in new[part]]


def test_it_equals_a_list_of_its_jobs_and_no_other(new: list[NewJob], jobs: SubmittedJobs) -> None:
    assert jobs == list(jobs)
    assert list(jobs) == jobs
    assert jobs == SubmittedJobs(new)
    assert jobs != list(jobs)[:-1]
    assert jobs != list(jobs)[::-1]
    assert jobs != 5
    assert SubmittedJobs([]) == []
    assert not SubmittedJobs([])
    assert repr(jobs) == repr(list(jobs))
    with pytest.raises(TypeError, match="unhashable"):
        hash(jobs)


@pytest.mark.parametrize(
    ("queue", "lane"), [("bulk", "bulk"), ("bulk.3", "bulk"), ("bulk.first", "bulk"), ("interactive", "interactive")]
)
def test_a_job_has_the_lane_of_its_queue(queue: str, lane: str) -> None:
    assert SubmittedJobs([new_job(0, queue)])[0].lane == lane


def test_it_keeps_no_inputs(new: list[NewJob], jobs: SubmittedJobs) -> None:
    """A million jobs that somebody waits for later are some megabytes."""
    assert len(pickle.dumps(jobs)) < len(new[0].input.payload)


def test_there_is_nothing_in_none() -> None:
    with pytest.raises(IndexError):
        SubmittedJobs([])[0]
    assert list(SubmittedJobs([])[1:]) == []
