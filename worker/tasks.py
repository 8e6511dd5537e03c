"""The Celery tasks: thin, each naming what it calls.

What they call is imported when a worker runs them, so that the beat, Flower and the CLI stay light.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from celery import Celery, Task

from pyfunq.message import EARLY, TASK_PREDICT
from pyfunq.queue import TASK_REGISTRY_WATCH, TASK_RESCUE

if TYPE_CHECKING:
    from worker.process import WorkerProcess

_ELSEWHERE = "another process did it just now"


def register(app: Celery, process: "Callable[[], WorkerProcess]") -> None:
    """Adds the tasks to the app; `process` gives this process's WorkerProcess, made when it is first needed."""

    # Celery sends a message again whose process died, with this delay; what had been claimed is rescue's business.
    @app.task(name=TASK_PREDICT, bind=True, shared=False, max_retries=3, default_retry_delay=1)
    def predict(task: Task, page_id: str) -> str:
        """Predicts the queued jobs of a page. The page's id is all that is believed of a message."""
        from worker.page_run import run_page

        queue, early = task.request.delivery_info.get("routing_key"), bool(task.request.get(EARLY))
        return run_page(process(), UUID(page_id), queue, early=early)

    @app.task(name=TASK_REGISTRY_WATCH, shared=False)
    def registry_watch(at_once: bool = False) -> str:
        """`at_once`: although another may have run just now."""
        from worker import upkeep

        here = process()
        if not at_once and upkeep.begun_elsewhere(here, TASK_REGISTRY_WATCH, here.settings.registry_watch_seconds):
            return _ELSEWHERE
        return upkeep.registry_watch(here)

    @app.task(name=TASK_RESCUE, shared=False)
    def rescue() -> str:
        from worker import upkeep

        here = process()
        if upkeep.begun_elsewhere(here, TASK_RESCUE, here.settings.rescue_seconds):
            return _ELSEWHERE
        return upkeep.rescue_jobs(here)
