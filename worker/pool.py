"""Celery's prefork pool, for which a process that died before the first connection to Redis is no reason to end."""

from celery.concurrency.prefork import TaskPool


class ReplacingPool(TaskPool):  # type: ignore[misc]
    def did_start_ok(self) -> bool:
        """Celery asks once, when it has first connected; then it replaces what has died, as at any other time."""
        return True
