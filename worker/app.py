"""The worker's composition root: the Celery app, its signals and its beat schedule (`celery -A worker.app worker`)."""

import gc
import importlib
import logging
import os
import threading
from contextlib import suppress
from typing import Any

from celery.signals import (
    celeryd_after_setup,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from pyfunq.environment import load_settings
from pyfunq.lanes import queues_taken
from pyfunq.queue import CONTROL_QUEUE, TASK_REGISTRY_WATCH, TASK_RESCUE, make_app
from worker.draining import Drain, exit_after
from worker.pool import ReplacingPool
from worker.tasks import register
from worker.warning_filters import keep_few

# Read by MLflow when it first asks a server; its own defaults block a call for minutes when the server is away.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Imported before the fork, so that children share the memory, and the first model of the most common flavour loads in
# a tenth of a second instead of one.
_HEAVY_MODULES = ("mlflow.pyfunc", "mlflow.sklearn", "pandas", "pyarrow", "skops.io", "sklearn.ensemble")

for _name, _value in _MLFLOW_ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# Its pools report each second that Postgres is away, with a traceback; whoever asks the ledger says so in a line.
logging.getLogger("asyncpg").setLevel(logging.CRITICAL)

settings = load_settings()
app = make_app(settings)
app.conf.worker_pool = "worker.pool:ReplacingPool"
app.conf.worker_consumer = "worker.consumer:GroupingConsumer"
drain = Drain()
app.conf.beat_schedule = {
    name: {
        "task": name,
        "schedule": seconds,
        "options": {"queue": CONTROL_QUEUE, "expires": max(1.0, seconds * 2)},
    }
    for name, seconds in (
        (TASK_REGISTRY_WATCH, settings.registry_watch_seconds),
        (TASK_RESCUE, settings.rescue_seconds),
    )
}


class _ProcessHolder:
    """The WorkerProcess of the process that asks: made on first use, and never carried over a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Any = None
        self._stand_in: Any = None
        self._pid = 0
        self.queues: list[str] = []
        self.processes = 1

    def get(self) -> Any:
        from worker.process import WorkerProcess
        from worker.upkeep import StandIn

        with self._lock:
            if self._process is None or self._pid != os.getpid():
                self._process, self._pid = (
                    WorkerProcess(settings, drain, self.queues, processes=self.processes),
                    os.getpid(),
                )
                self._stand_in = StandIn(self._process)
            return self._process

    def close(self) -> None:
        with self._lock:
            if self._process is not None and self._pid == os.getpid():
                self._stand_in.close()
                self._process.close()
            self._process = self._stand_in = None


_holder = _ProcessHolder()
register(app, _holder.get)


@celeryd_after_setup.connect
def _take_control_tasks_first(sender: str, instance: Any, **_: Any) -> None:
    queues = instance.app.amqp.queues
    named = [name for name in queues.consume_from if name != CONTROL_QUEUE]
    _holder.queues = [CONTROL_QUEUE, *queues_taken(named)]
    queues.select(_holder.queues)
    if isinstance(instance.pool_cls, type) and issubclass(instance.pool_cls, ReplacingPool):
        _holder.processes = instance.concurrency or 1


@worker_init.connect
def _import_before_fork(**_: Any) -> None:
    for module in _HEAVY_MODULES:
        with suppress(ImportError):  # a worker image may do without scikit-learn
            importlib.import_module(module)
    gc.collect()
    gc.freeze()


@worker_process_init.connect
def _start_process(**_: Any) -> None:
    keep_few()
    _holder.get()


@worker_ready.connect
def _start_here(sender: Any, **_: Any) -> None:
    if not isinstance(sender.pool, ReplacingPool):  # threads: this process predicts itself
        keep_few()
        _holder.get()


@worker_shutting_down.connect
def _begin_to_drain(**_: Any) -> None:
    if not drain.begun:
        drain.begin(settings.drain_seconds)
        exit_after(settings.drain_seconds)


@worker_process_shutdown.connect
def _stop_process(**_: Any) -> None:
    _holder.close()


@worker_shutdown.connect
def _stop_parent(**_: Any) -> None:
    _holder.close()
