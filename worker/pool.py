"""Celery's prefork pool, for which neither a death before the first connection nor an unread answer is in the way."""

import billiard.pool
from celery.concurrency.prefork import TaskPool

_UNREAD_ANSWERS_TENTHS = 20


class ReplacingPool(TaskPool):  # type: ignore[misc]
    def on_start(self) -> None:
        """A child that ends waits for its parent to read its answers, for 30 s unless it is told otherwise.

        A parent that stops in the moment between a message's way to a child and the child's word that it has it reads
        none. Nothing hangs on them: what became of the jobs is in the ledger.
        """
        billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = _UNREAD_ANSWERS_TENTHS
        super().on_start()

    def did_start_ok(self) -> bool:
        """Celery asks once, when it has first connected; then it replaces what has died, as at any other time."""
        return True
