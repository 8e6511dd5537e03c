"""Upkeep: registry watch and rescue, begun by the beat, or by any worker process when the beat is silent; webhooks."""

import logging
import threading
import time
from collections.abc import Callable

from redis import Redis
from redis.exceptions import RedisError

from pyfunq.errors import PyFunQError, RegistryUnavailable
from pyfunq.queue import TASK_REGISTRY_WATCH, TASK_RESCUE
from worker import metrics
from worker.process import WorkerProcess
from worker.registry_watch import look, write
from worker.rescue import ended_siblings, rescue, rescue_crashed
from worker.webhooks import Courier

log = logging.getLogger(__name__)

_SIBLINGS_SECONDS = 1.0
_BEAT_SILENT_INTERVALS = 2
_BEAT_SILENT_SECONDS = 5.0
_WATCH_LATE_SECONDS = 1.0
_AGAIN_SECONDS = 0.1
_COMPLAIN_SECONDS = 60.0
_WEBHOOKS_SECONDS = 1.0
_COMPLAINT = "complaint of the registry"


def registry_watch(process: WorkerProcess) -> str:
    """Asks the registry what the model URIs in use mean now, and writes what changed."""
    asked_at = process.run(process.ledger.clock())
    known = process.run(process.ledger.resolutions())
    started = time.monotonic()
    try:
        findings = look(process.registry, known, process.settings.confidence)
    except RegistryUnavailable as exc:
        metrics.watched(time.monotonic() - started, answered=False)
        _complain(process, f"{exc}; the last resolutions stay")
        return "registry unavailable"
    metrics.watched(time.monotonic() - started, answered=not findings.unanswered)
    process.run(write(process.ledger, findings, asked_at))
    if findings.unanswered:
        _complain(process, f"no answer about {len(findings.unanswered)} model URIs, which stay as they are")
    return str(findings)


def _complain(process: WorkerProcess, what: str) -> None:
    """Once a minute, whichever processes run the watch."""
    if process.run(process.ledger.begin_upkeep(_COMPLAINT, at_most_every_seconds=_COMPLAIN_SECONDS)):
        log.warning("registry watch: %s", what)


def rescue_jobs(process: WorkerProcess) -> str:
    """Puts back, publishes again and ends what a crash or a deadline left behind."""
    with Redis.from_url(process.settings.redis, socket_timeout=5, socket_connect_timeout=5) as redis:
        return str(rescue(process, redis, process.publisher))


def begun_elsewhere(process: WorkerProcess, name: str, interval_seconds: float) -> bool:
    """Whether somebody else runs this now: two beats, or a beat and its stand-in, do no harm."""
    return not process.run(process.ledger.begin_upkeep(name, at_most_every_seconds=interval_seconds / 2))


class StandIn:
    """Threads of each worker process that do what the beat should have begun, and look after its siblings.

    A process that died without a word is noticed by the others of its host within about a second. The registry watch
    has a thread of its own: while MLflow is away, it waits for that. Webhooks that are due are delivered by
    whoever comes first.
    """

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        self._stop = threading.Event()
        self._looked_at_beat = time.monotonic()
        self._courier = Courier(process.ledger, process.settings.webhook_rules)
        watch_seconds = process.settings.registry_watch_seconds + _WATCH_LATE_SECONDS
        self._threads = [
            threading.Thread(target=self._run, args=(name, work, pause), name=name, daemon=True)
            for name, work, pause in (
                ("pyfunq-upkeep", self._look_after_siblings_and_beat, _SIBLINGS_SECONDS),
                ("pyfunq-registry", self._watch_registry, watch_seconds),
                ("pyfunq-webhooks", self._deliver_webhooks, _WEBHOOKS_SECONDS),
            )
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5)
        self._process.run(self._courier.close())

    def _run(self, name: str, work: Callable[[], float], pause: float) -> None:
        """`work` says after how many seconds it is to be done again."""
        while not self._stop.wait(pause):
            pause = _SIBLINGS_SECONDS
            try:
                pause = work()
            except (PyFunQError, RedisError, OSError) as exc:
                log.debug("%s waits: %s", name, type(exc).__name__)
            except Exception as exc:  # this thread must outlive whatever it meets
                log.error("%s failed with %s", name, type(exc).__name__)

    def _look_after_siblings_and_beat(self) -> float:
        self._look_after_siblings()
        if time.monotonic() - self._looked_at_beat > _BEAT_SILENT_SECONDS:
            self._looked_at_beat = time.monotonic()
            self._stand_in_for_beat()
        return _SIBLINGS_SECONDS

    def _look_after_siblings(self) -> None:
        if not ended_siblings(self._process):
            return
        put_back, dead = rescue_crashed(self._process, self._process.publisher)
        log.warning("a worker process of this host ended: %d jobs put back, %d dead", put_back, dead)

    def _stand_in_for_beat(self) -> None:
        if self._overdue(TASK_RESCUE, self._process.settings.rescue_seconds):
            log.warning("the beat is silent; rescue here: %s", rescue_jobs(self._process))

    def _overdue(self, name: str, interval_seconds: float) -> bool:
        patience = interval_seconds * _BEAT_SILENT_INTERVALS + _BEAT_SILENT_SECONDS
        return self._process.run(self._process.ledger.begin_upkeep(name, at_most_every_seconds=patience))

    def _watch_registry(self) -> float:
        """Takes over soon: where all processes are busy with long calls, the beat's task waits for them.

        Reading when it is due costs little, and happens about once an interval; only who finds it due tries to begin.
        """
        ledger, run = self._process.ledger, self._process.run
        patience = self._process.settings.registry_watch_seconds + _WATCH_LATE_SECONDS
        due = run(ledger.upkeep_due(TASK_REGISTRY_WATCH, at_most_every_seconds=patience))
        if due > 0:
            return due
        if not run(ledger.begin_upkeep(TASK_REGISTRY_WATCH, at_most_every_seconds=patience)):
            return _AGAIN_SECONDS
        log.debug("the registry watch is late; here: %s", registry_watch(self._process))
        return patience

    def _deliver_webhooks(self) -> float:
        self._process.run(self._courier.deliver_due())
        return _WEBHOOKS_SECONDS
