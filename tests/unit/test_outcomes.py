"""What callers get for each way in which a job can end."""

import pytest

from pyfunq.entries import StoredResult
from pyfunq.errors import JobCancelled, JobDead, JobExpired, JobFailed
from pyfunq.ids import new_id
from pyfunq.job import JobError, JobStatus
from pyfunq.outcomes import batch_part, decoded


def stored(status: JobStatus, payload: bytes | None = None, error: JobError | None = None) -> StoredResult:
    return StoredResult(status=status, format=payload and "json", payload=payload, error=error)


def test_predictions() -> None:
    assert decoded("job", stored(JobStatus.SUCCEEDED, b"[1, null]")) == [1, None]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (JobStatus.FAILED, JobFailed),
        (JobStatus.CANCELLED, JobCancelled),
        (JobStatus.EXPIRED, JobExpired),
        (JobStatus.DEAD, JobDead),
    ],
)
def test_errors_say_how_and_why(status: JobStatus, kind: type[JobFailed]) -> None:
    with pytest.raises(JobFailed, match=f"job 7 {status}: too bad") as caught:
        decoded("job 7", stored(status, error=JobError(code="some_code", message="too bad")))
    assert type(caught.value) is kind
    assert caught.value.error_code == "some_code"


def test_a_result_that_is_no_longer_kept() -> None:
    with pytest.raises(JobFailed, match="no longer kept"):
        decoded("job", stored(JobStatus.SUCCEEDED))


def test_shares_of_a_batch() -> None:
    batch = new_id()
    good = batch_part(batch, 0, 2, stored(JobStatus.SUCCEEDED, b"[1,2]"))
    assert (good.index, good.rows, good.result, good.error) == (0, 2, [1, 2], None)
    bad = batch_part(batch, 1, 2, stored(JobStatus.FAILED, error=JobError(code="x", message="y")))
    assert bad.result is None
    assert f"job 1 of batch {batch} failed: y" in str(bad.error)
    assert "is still queued" in str(batch_part(batch, 2, 2, stored(JobStatus.QUEUED)).error)
