"""Upkeep: registry watch and rescue, begun by the beat, or by any worker process when the beat is silent."""

import logging
import threading
import time

from redis import Redis
from redis.exceptions import RedisError

from pyfunq.errors import PyFunQError, RegistryUnavailable
from pyfunq.queue import TASK_REGISTRY_WATCH, TASK_RESCUE
from worker.process import WorkerProcess
from worker.registry import changes, write_changes
from worker.rescue import ended_siblings, rescue, rescue_crashed

log = logging.getLogger(__name__)

_SIBLINGS_SECONDS = 1.0
_BEAT_SILENT_INTERVALS = 2
_BEAT_SILENT_SECONDS = 5.0


def registry_watch(process: WorkerProcess) -> str:
    """Asks the registry what the model URIs in use mean now, and writes what changed."""
    known = process.run(process.ledger.resolutions())
    try:
        changed, same = changes(process.registry, known, process.settings.confidence)
    except RegistryUnavailable as exc:
        log.warning("registry watch: %s; the last resolutions stay", exc)
        return "registry unavailable"
    process.run(write_changes(process.ledger, changed, same))
    return f"{len(same)} same, {len(changed)} changed"


def rescue_jobs(process: WorkerProcess) -> str:
    """Puts back, publishes again and ends what a crash or a deadline left behind."""
    with Redis.from_url(process.settings.redis, socket_timeout=5, socket_connect_timeout=5) as redis:
        return str(rescue(process, redis, process.publisher))


def begun_elsewhere(process: WorkerProcess, name: str, interval_seconds: float) -> bool:
    """Whether somebody else runs this now: two beats, or a beat and its stand-in, do no harm."""
    return not process.run(process.ledger.begin_upkeep(name, at_most_every_seconds=interval_seconds / 2))


class StandIn:
    """A thread of each worker process that does what the beat should have begun, and looks after its siblings.

    A process that died without a word is noticed by the others of its host within about a second.
    """

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pyfunq-upkeep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        looked_at_beat = time.monotonic()
        while not self._stop.wait(_SIBLINGS_SECONDS):
            try:
                self._look_after_siblings()
                if time.monotonic() - looked_at_beat > _BEAT_SILENT_SECONDS:
                    looked_at_beat = time.monotonic()
                    self._stand_in_for_beat()
            except (PyFunQError, RedisError, OSError) as exc:
                log.debug("upkeep waits: %s", type(exc).__name__)
            except Exception as exc:  # this thread must outlive whatever it meets
                log.error("upkeep failed with %s", type(exc).__name__)

    def _look_after_siblings(self) -> None:
        if not ended_siblings(self._process):
            return
        put_back, dead = rescue_crashed(self._process, self._process.publisher)
        log.warning("a worker process of this host ended: %d jobs put back, %d dead", put_back, dead)

    def _stand_in_for_beat(self) -> None:
        settings = self._process.settings
        if self._overdue(TASK_RESCUE, settings.rescue_seconds):
            log.warning("the beat is silent; rescue here: %s", rescue_jobs(self._process))
        if self._overdue(TASK_REGISTRY_WATCH, settings.registry_watch_seconds):
            log.warning("the beat is silent; registry watch here: %s", registry_watch(self._process))

    def _overdue(self, name: str, interval_seconds: float) -> bool:
        patience = interval_seconds * _BEAT_SILENT_INTERVALS + _BEAT_SILENT_SECONDS
        return self._process.run(self._process.ledger.begin_upkeep(name, at_most_every_seconds=patience))
