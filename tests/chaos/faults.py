"""The faults: each a small function in a table with a weight, chosen by one seeded generator, a second apart."""

import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import psutil
import redis
from mlflow.exceptions import MlflowException

from pyfunq.client import Client
from pyfunq.errors import ServerFailed
from tests.chaos.cluster import READY_SECONDS, Cluster, Component
from tests.chaos.load import POISON_ATTEMPTS, TOKENS_A_RECORD, Record, submit_poison
from tests.chaos.models import MODELS, VERSIONS, champion, promote
from tests.chaos.verdict import Blow

PERIOD_SECONDS = 1.0
SNAPSHOT_EVERY = 5
STOPPED_AT_ONCE = 2
MLFLOW_AWAY_SECONDS = 20.0
_BUSY_TRIES = 10


@dataclass(slots=True)
class Attack:
    """One run's faults. What takes longer than a moment goes on in a thread while the next fault comes."""

    cluster: Cluster
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    blows: list[Blow] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    """From when to when Redis or Postgres was away (seconds since the epoch)."""
    ended_by_themselves: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What the harness itself could not do."""
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(12))
    _under_way: list[Future[None]] = field(default_factory=list)
    _bases: "count[int]" = field(default_factory=lambda: count(TOKENS_A_RECORD * 1000, TOKENS_A_RECORD))
    _poisoner: Client | None = None
    _record: Record | None = None
    _snapshot: threading.Lock = field(default_factory=threading.Lock)
    _given_up: threading.Event = field(default_factory=threading.Event)
    one_worker: threading.Lock = field(default_factory=threading.Lock)
    """Held while a worker is away: with none left nothing could be rescued, which is no news."""
    stopped: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(STOPPED_AT_ONCE))

    def run(self, seconds: float, say: Callable[[str], None]) -> None:
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            begun = time.monotonic()
            number += 1
            if number % SNAPSHOT_EVERY == 1:
                _remember_redis(self)
            chosen = self._strike()
            say(f"{number:>4}  {chosen}")
            for what in self.heal():
                say(f"      {what} had ended by itself and is started again")
            time.sleep(max(0.0, PERIOD_SECONDS - (time.monotonic() - begun)))

    def heal(self) -> list[str]:
        """Starts again what ended though nobody ended it; says what that was."""
        ended = self.cluster.take_ended()
        said = [f"{component.name} (return code {component.running.returncode()})" for component in ended]
        self.ended_by_themselves.extend(said)
        for component in ended:
            self.later(partial(self._restore, component))
        return said

    def _restore(self, component: Component) -> None:
        try:
            self.begin(component)
        finally:
            component.hold.release()

    def begin(self, component: Component) -> None:
        """Starts it; a worker is there when its processes beat. One that ends before is found by `heal`."""
        component.begin()
        if component.name in self.cluster.worker_names():
            with suppress(ServerFailed):
                component.running.wait_until(
                    lambda: self._given_up.is_set() or self.cluster.ready(component.name), READY_SECONDS
                )

    def finish(self) -> None:
        """Waits for the faults that are under way, and until everything runs again."""
        for future in self._under_way:
            try:
                future.result()
            except (ServerFailed, OSError, psutil.Error, redis.RedisError, MlflowException) as exc:
                self.broken.append(f"{type(exc).__name__}: {exc}")
        give_up = time.monotonic() + READY_SECONDS
        while not all(map(self.cluster.ready, self.cluster.worker_names())):
            self.heal()
            if time.monotonic() > give_up:
                self.broken.append("the workers did not come back")
                break
            time.sleep(0.5)
        if self._poisoner is not None:
            self._poisoner.close()

    def give_up(self) -> None:
        """Ends the threads, so that none starts anything after the end."""
        self._given_up.set()
        self._threads.shutdown(cancel_futures=True)

    def pause(self, seconds: float) -> None:
        self._given_up.wait(seconds)

    def _strike(self) -> str:
        """Tries faults until one finds its target ready for it."""
        while True:
            (fault,) = self.rng.choices(FAULTS, [f.weight for f in FAULTS])
            if fault.act(self):
                self.counts[fault.name] += 1
                return fault.name

    def later(self, act: Callable[[], None]) -> bool:
        self._under_way.append(self._threads.submit(act))
        return True

    def holding(self, component: Component, act: Callable[[], None]) -> bool:
        """Runs `act` in a thread while nobody else touches the component; False where somebody does already."""
        if not component.hold.acquire(blocking=False):
            return False
        if not component.runs():
            component.hold.release()
            return False

        def held() -> None:
            begun = time.time()
            try:
                act()
            finally:
                if component.name in ("redis", "postgres"):
                    self.outages.append((begun, time.time()))
                component.hold.release()

        return self.later(held)

    def poison(self) -> tuple[Client, Record]:
        if self._poisoner is None or self._record is None:
            self._poisoner = Client(self.cluster.settings, max_attempts=POISON_ATTEMPTS)
            base = next(self._bases)
            self._record = Record(self.cluster.records / f"{base}.jsonl", base)
        return self._poisoner, self._record

    def child(self) -> psutil.Process | None:
        """A predicting process, one that has jobs if there is any within a moment."""
        for _ in range(_BUSY_TRIES):
            children = [
                child
                for name in self.cluster.worker_names()
                if not self.cluster.components[name].hold.locked()  # while it starts, Celery takes that for a failure
                for child in self.cluster.children(name)
            ]
            busy = self.cluster.busy_pids()
            if found := [c for c in children if c.pid in busy]:
                return self.rng.choice(found)
        return self.rng.choice(children) if children else None


def _kill_child(attack: Attack) -> bool:
    child = attack.child()
    if child is None:
        return False
    attack.blows.append(Blow("kill -9 of a child", time.time(), [child.pid]))
    with suppress(psutil.NoSuchProcess):
        child.kill()
    return True


def _stop_child(attack: Attack) -> bool:
    child = attack.child()
    if child is None or not attack.stopped.acquire(blocking=False):
        return False
    attack.blows.append(Blow("SIGSTOP of a child", time.time(), [child.pid]))
    with suppress(psutil.NoSuchProcess):
        child.suspend()

    def go_on() -> None:
        attack.pause(2 * attack.cluster.settings.stale_seconds)
        with suppress(psutil.NoSuchProcess):
            child.resume()
        attack.stopped.release()

    return attack.later(go_on)


def _without_worker(end: Callable[[Attack, Component], None]) -> Callable[[Attack], bool]:
    """Ends one worker and starts it again, while the others are there."""

    def fault(attack: Attack) -> bool:
        name = attack.rng.choice(attack.cluster.worker_names())
        component = attack.cluster.components[name]
        others = [other for other in attack.cluster.worker_names() if other != name]
        if not all(map(attack.cluster.ready, others)) or not attack.one_worker.acquire(blocking=False):
            return False

        def act() -> None:
            try:
                end(attack, component)
                attack.begin(component)
            finally:
                attack.one_worker.release()

        if not attack.holding(component, act):
            attack.one_worker.release()
            return False
        return True

    return fault


def _kill(attack: Attack, worker: Component) -> None:
    children = [child.pid for child in attack.cluster.children(worker.name)]
    attack.blows.append(Blow("kill -9 of a worker", time.time(), children))
    worker.send(signal.SIGKILL)


def _drain(attack: Attack, worker: Component) -> None:
    worker.running.stop()


def _kill_program(name: str, seconds: float) -> Callable[[Attack], bool]:
    def fault(attack: Attack) -> bool:
        names = [n for n in attack.cluster.components if n.startswith(name)]
        component = attack.cluster.components[attack.rng.choice(names)]
        pause = attack.rng.uniform(0.0, seconds)

        def act() -> None:
            component.send(signal.SIGKILL)
            attack.pause(pause)
            component.begin()

        return attack.holding(component, act)

    return fault


def _restart_postgres(attack: Attack) -> bool:
    component = attack.cluster.components["postgres"]
    pause = attack.rng.uniform(0.0, 1.5)

    def act() -> None:
        component.send(signal.SIGQUIT)  # as `pg_ctl restart -m immediate` does
        attack.pause(pause)
        component.begin()

    return attack.holding(component, act)


def _stop_mlflow(attack: Attack) -> bool:
    component = attack.cluster.components["mlflow"]

    def act() -> None:
        component.running.stop()
        attack.pause(MLFLOW_AWAY_SECONDS)
        component.begin()

    return attack.holding(component, act)


def _flush_redis(attack: Attack) -> bool:
    with suppress(redis.RedisError), redis.Redis.from_url(attack.cluster.settings.redis, socket_timeout=2) as client:
        client.flushall()
        return True
    return False


def _remember_redis(attack: Attack) -> None:
    """Keeps the state of now, to be put back later; its end may be torn, which Redis mends."""
    with attack._snapshot:
        older = attack.cluster.home / "redis-older"
        new = attack.cluster.home / "redis-newer"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for path in (attack.cluster.home / "redis").glob("appendonly*"):
            if path.is_dir():
                shutil.copytree(path, new / path.name)
            else:
                shutil.copy2(path, new)
        shutil.rmtree(older, ignore_errors=True)
        new.rename(older)


def _restore_redis(attack: Attack) -> bool:
    component = attack.cluster.components["redis"]

    def act() -> None:
        component.send(signal.SIGKILL)
        with attack._snapshot:
            for path in (attack.cluster.home / "redis-older").iterdir():
                target = attack.cluster.home / "redis" / path.name
                shutil.rmtree(target, ignore_errors=True)
                if path.is_dir():
                    shutil.copytree(path, target)
                else:
                    shutil.copy2(path, target)
        component.begin()

    return attack.holding(component, act)


def _promote(attack: Attack) -> bool:
    if not attack.cluster.components["mlflow"].runs():
        return False
    model = attack.rng.choice(MODELS)

    def act() -> None:
        uri = attack.cluster.settings.mlflow
        with suppress(MlflowException):  # it has been stopped meanwhile
            now = champion(uri, model)
            promote(uri, model, next(v for v in VERSIONS if v != now))

    return attack.later(act)


def _poison(attack: Attack) -> bool:
    model = attack.rng.choice(MODELS)
    if not attack.cluster.components["postgres"].runs():
        return False
    client, record = attack.poison()
    return attack.later(lambda: submit_poison(client, record, model))


@dataclass(frozen=True, slots=True)
class Fault:
    """`act` returns False, having done nothing, where its target is not there to be hit."""

    name: str
    weight: int
    act: Callable[[Attack], bool]


FAULTS = (
    Fault("kill -9 of a child", 6, _kill_child),
    Fault("SIGSTOP of a child for twice the stale time", 5, _stop_child),
    Fault("kill -9 of a worker", 3, _without_worker(_kill)),
    Fault("rolling restart of a worker", 3, _without_worker(_drain)),
    Fault("kill -9 of the beat", 2, _kill_program("beat", 3.0)),
    Fault("kill -9 of a producer", 2, _kill_program("producer", 0.5)),
    Fault("Redis killed and started", 2, _kill_program("redis", 1.5)),
    Fault("Redis flushed", 2, _flush_redis),
    Fault("Redis put back to an older state", 1, _restore_redis),
    Fault("Postgres restarted, immediate", 3, _restart_postgres),
    Fault(f"MLflow stopped for {MLFLOW_AWAY_SECONDS:g} s", 1, _stop_mlflow),
    Fault("promotion", 4, _promote),
    Fault("poison job", 3, _poison),
)
