"""The Celery tasks: thin, each naming what it calls.

What they call is imported when a worker runs them, so that the beat, Flower and the CLI stay light.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from celery import Celery
from redis import Redis

from pyfunq.errors import RegistryUnavailable
from pyfunq.queue import TASK_PREDICT, TASK_REGISTRY_WATCH, TASK_RESCUE, Publisher

if TYPE_CHECKING:
    from worker.process import WorkerProcess

log = logging.getLogger(__name__)


def register(app: Celery, process: "Callable[[], WorkerProcess]") -> None:
    """Adds the tasks to the app; `process` gives this process's WorkerProcess, made when it is first needed."""

    @app.task(name=TASK_PREDICT, max_retries=3)
    def predict(page_id: str) -> str:
        """Predicts the queued jobs of a page. The page's id is all that is believed of a message."""
        from worker.run_batch import run_page

        return run_page(process(), UUID(page_id))

    @app.task(name=TASK_REGISTRY_WATCH)
    def registry_watch() -> str:
        """Asks the registry what the model URIs in use mean now, and writes what changed."""
        from worker.registry import changes, write_changes

        here = process()
        known = here.run(here.ledger.resolutions())
        try:
            changed, same = changes(here.registry, known, here.settings.confidence)
        except RegistryUnavailable as exc:
            log.warning("registry watch: %s; the last resolutions stay", exc)
            return "registry unavailable"
        here.run(write_changes(here.ledger, changed, same))
        return f"{len(same)} same, {len(changed)} changed"

    @app.task(name=TASK_RESCUE)
    def rescue() -> str:
        """Puts back, publishes again and ends what a crash or a deadline left behind."""
        from worker.rescue import rescue as run_rescue

        here = process()
        publisher = Publisher(app)
        try:
            with Redis.from_url(here.settings.redis, socket_timeout=5, socket_connect_timeout=5) as redis:
                return str(run_rescue(here, redis, publisher))
        finally:
            publisher.close()
