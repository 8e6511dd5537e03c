"""When a promotion or a warming is over, from what the ledger says."""

from datetime import UTC, datetime, timedelta

from producer.following import Followed, Seen, after_move, after_warming
from pyfunq.entries import LoadFailure, Serving

NOW = datetime(2026, 1, 1, tzinfo=UTC)
URI = "models:/m@a"


def serving(pid: int, version: str, uri: str = URI) -> Serving:
    return Serving(
        hostname="h", pid=pid, model_uri=uri, name="m", version=version, since=NOW, size_bytes=1, load_seconds=0.1
    )


def failure(pid: int, version: str, *, failed: float, next_try: float, reason: str | None = "broken") -> LoadFailure:
    return LoadFailure(
        hostname="h",
        pid=pid,
        model_uri=URI,
        name="m",
        version=version,
        reason=reason,
        tries=1,
        failed_at=NOW + timedelta(seconds=failed),
        next_try_at=NOW + timedelta(seconds=next_try),
    )


def seen(*rows: Serving | LoadFailure, processes: int = 3, at: float = 10) -> Seen:
    return Seen(
        at=NOW + timedelta(seconds=at),
        processes=frozenset(f"h:{pid}" for pid in range(1, processes + 1)),
        serving=tuple(r for r in rows if isinstance(r, Serving)),
        failures=tuple(r for r in rows if isinstance(r, LoadFailure)),
    )


def shape(followed: Followed) -> tuple[list[int], list[int], list[str]]:
    return [s.pid for s in followed.ready], [f.pid for f in followed.failed], list(followed.pending)


def test_a_move_concerns_the_processes_that_serve_the_uri() -> None:
    other = serving(3, "1", "models:/other/1")
    assert shape(after_move(seen(serving(1, "2"), serving(2, "1"), other), URI, "2", NOW)) == ([1], [], ["h:2"])
    assert shape(after_move(seen(serving(1, "2"), serving(2, "2"), other), URI, "2", NOW)) == ([1, 2], [], [])
    assert shape(after_move(seen(other), URI, "2", NOW)) == ([], [], [])


def test_who_failed_is_not_waited_for() -> None:
    looked = seen(serving(1, "2"), serving(2, "1"), failure(2, "2", failed=1, next_try=2))
    assert shape(after_move(looked, URI, "2", NOW)) == ([1], [2], [])


def test_a_failure_of_before_counts_while_it_is_not_tried_again() -> None:
    held_back = failure(1, "2", failed=-60, next_try=60)
    due = failure(1, "2", failed=-60, next_try=-1)
    assert shape(after_move(seen(serving(1, "1"), held_back), URI, "2", NOW)) == ([], [1], [])
    assert shape(after_move(seen(serving(1, "1"), due), URI, "2", NOW)) == ([], [], ["h:1"])


def test_what_is_being_tried_or_was_another_version_or_process_is_no_failure() -> None:
    trying = failure(1, "2", failed=1, next_try=60, reason=None)
    another = failure(1, "3", failed=1, next_try=60)
    ended = failure(9, "2", failed=1, next_try=60)
    assert shape(after_move(seen(serving(1, "1"), trying, another, ended), URI, "2", NOW)) == ([], [], ["h:1"])


def test_warming_concerns_every_process() -> None:
    looked = seen(serving(1, "2"), failure(2, "2", failed=1, next_try=60))
    assert shape(after_warming(looked, URI, "2", NOW)) == ([1], [2], ["h:3"])
    assert shape(after_warming(seen(serving(1, "1"), processes=1), URI, None, NOW)) == ([1], [], [])
    assert shape(after_warming(seen(serving(1, "1"), processes=1), URI, "2", NOW)) == ([], [], ["h:1"])


def test_who_serves_it_after_all_has_not_failed() -> None:
    looked = seen(serving(1, "2"), failure(1, "2", failed=1, next_try=60), processes=1)
    assert shape(after_warming(looked, URI, "2", NOW)) == ([1], [], [])
