"""Celery's prefork pool, which replaces who died at once, and stops without waiting for what nobody reads."""

from typing import Any

import billiard.pool
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool

_UNREAD_ANSWERS_TENTHS = 20
_REAPED_SECONDS = 0.05


class _PatientPool(AsynPool):  # type: ignore[misc]
    def _event_process_exit(self, hub: Any, process: Any) -> None:
        """Looks again for a child whose pipe was closed by its death before it could be reaped; Celery would in 5 s."""
        super()._event_process_exit(hub, process)
        if process in self._pool and self._state == billiard.pool.RUN:
            hub.call_later(_REAPED_SECONDS, self._event_process_exit, hub, process)


class ReplacingPool(TaskPool):  # type: ignore[misc]
    Pool = _PatientPool

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
