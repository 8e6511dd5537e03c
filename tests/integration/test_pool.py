"""The worker's process pool, on its own: how it stops."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from kombu.asynchronous import Hub, set_event_loop

from worker.pool import ReplacingPool


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    set_event_loop(hub)
    yield hub
    set_event_loop(None)
    hub.close()


def test_a_stop_does_not_wait_for_answers_that_nobody_reads(hub: Hub, tmp_path: Path) -> None:
    app = Celery("pool", set_as_current=False)
    pool = ReplacingPool(limit=1, app=app, threads=False, initargs=(app, "pool@here"))
    pool.start()
    try:
        pool.register_with_event_loop(hub)
        loop = hub.create_loop()
        job = pool.apply_async(Path.touch, (tmp_path / "ran",))
        while job._write_to is None:
            next(loop)
        assert not job._accepted, "its word has not been read"
        pool.flush()  # as Celery does when its consumer stops
    finally:
        begun = time.monotonic()
        pool.stop()
    assert time.monotonic() - begun < 10
    assert (tmp_path / "ran").exists()
