"""Preparing: loads and warms, behind the version that serves, what its URI has come to stand for; then switches."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotLoadable, PyFunQError
from pyfunq.signature import Signature
from worker.frames import build_frame, read_inputs
from worker.loading import LoadedModel
from worker.model_cache import Identity, ModelCache
from worker.model_desk import ModelDesk
from worker.serving import Serving
from worker.warming import warm

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_AT_ONCE = 4
_LONGEST_PAUSE_SECONDS = 300.0
_MOST_DOUBLINGS = 20
_SAMPLE = 200


@dataclass(slots=True)
class _Try:
    tries: int = 0
    due: float = 0.0


class Preparer:
    """A thread that looks what is wanted, and threads that load it."""

    def __init__(self, serving: Serving, cache: ModelCache, desk: ModelDesk, *, pause_seconds: float) -> None:
        """`pause_seconds`: before a version that was not fit is tried again; doubles with each try."""
        self._serving = serving
        self._cache = cache
        self._desk = desk
        self._pause_seconds = pause_seconds
        self._tries: dict[tuple[str, Identity], _Try] = {}
        self._preparing: set[tuple[str, Identity]] = set()
        self._slots = threading.Semaphore(_AT_ONCE)
        self._stop = threading.Event()
        self._looked_at = desk.clock()
        self._thread = threading.Thread(target=self._run, name="pyfunq-models", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._serving.news.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def preload(self, model_uris: list[str], seconds: float) -> None:
        """Has these in memory, and warm, when it returns; what fails or takes longer is logged, and goes on behind."""
        threads = [threading.Thread(target=self._have, args=(uri,), daemon=True) for uri in model_uris]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if late := sum(thread.is_alive() for thread in threads):
            log.warning("%d models are still being loaded after %g s; this process begins without them", late, seconds)

    def look(self) -> None:
        """Begins to prepare what is wanted and does not serve, and says what does."""
        served = self._serving.served()
        for asked in self._desk.asked(list(served), self._looked_at):
            if asked.warm_at is not None:
                self._looked_at = max(self._looked_at, asked.warm_at)
                self._forget_tries(asked.model_uri)
            if asked.model_uri not in served:
                if asked.warm_at is not None:
                    self._in_background(self._have, asked.model_uri)
            elif (wanted := self._desk.wanted(asked)) is None:
                self._serving.stop(asked.model_uri)
            else:
                self._follow(asked.model_uri, served[asked.model_uri], wanted.version)
        self._desk.report(self._serving.models())

    def _run(self) -> None:
        while not self._stop.is_set():
            self._serving.news.wait(_LOOK_SECONDS)
            self._serving.news.clear()
            try:
                self.look()
            except PyFunQError as exc:
                log.debug("cannot look which versions are wanted: %s", exc.code)
            except Exception as exc:  # this thread must outlive whatever it meets
                if self._stop.is_set():
                    return
                log.error("looking which versions are wanted failed with %s", type(exc).__name__)

    def _follow(self, model_uri: str, served: ModelVersion, wanted: ModelVersion) -> None:
        self._serving.want(model_uri, wanted)
        key = (model_uri, wanted.identity)
        due = self._tries.get(key, _Try()).due
        if served.identity != wanted.identity and key not in self._preparing and time.monotonic() >= due:
            self._preparing.add(key)
            self._in_background(self._prepare, model_uri, wanted)

    def _in_background(self, work: Callable[..., None], *args: object) -> None:
        def run() -> None:
            try:
                work(*args)
            except Exception as exc:
                if not self._stop.is_set():  # afterwards there is no ledger any more
                    log.error("preparing a model failed with %s", type(exc).__name__)

        threading.Thread(target=run, name="pyfunq-load", daemon=True).start()

    def _have(self, model_uri: str) -> None:
        """In memory and warm, where no version serves yet."""
        try:
            with self._slots, self._serving.use(model_uri, self._desk.look_up(model_uri)) as model:
                if reason := warm(model):
                    log.warning("%s, which serves %s: %s", model.version, model_uri, reason)
        except PyFunQError as exc:
            log.warning("%s is not in memory: %s", model_uri, exc)

    def _prepare(self, model_uri: str, version: ModelVersion) -> None:
        key = (model_uri, version.identity)
        tried = self._tries.setdefault(key, _Try())
        tried.tries += 1
        pause = min(_LONGEST_PAUSE_SECONDS, self._pause_seconds * 2 ** min(tried.tries - 1, _MOST_DOUBLINGS))
        try:
            with self._slots:
                self._switch_when_fit(model_uri, version, pause)
            del self._tries[key]
        except PyFunQError as exc:
            log.warning("%s is not ready for %s, tried again in %g s: %s", version, model_uri, pause, exc)
        finally:  # also after what nobody foresaw it waits before it is tried again
            tried.due = time.monotonic() + pause
            self._preparing.discard(key)

    def _switch_when_fit(self, model_uri: str, version: ModelVersion, pause: float) -> None:
        if (seconds := self._desk.ended_in_load(version)) is not None:
            raise ModelNotLoadable(f"a process of this host ended while it tried; tried again in {seconds:.0f} s")
        self._desk.begin_load(model_uri, version, pause)
        try:
            with ExitStack() as in_use:
                served = self._serving.served().get(model_uri)
                old = in_use.enter_context(self._cache.use(served)) if served is not None else None
                new = in_use.enter_context(self._cache.use(version))
                if reason := warm(new, old) or self._misfit(model_uri, new, old):
                    raise ModelNotLoadable(reason)
                if self._serving.is_wanted(model_uri, version):
                    self._serving.switch(model_uri, new)
        except PyFunQError as exc:
            self._desk.end_load(version, exc.message)
            raise
        self._desk.end_load(version, None)

    def _misfit(self, model_uri: str, new: LoadedModel, old: LoadedModel | None) -> str | None:
        """Why the new version does not take what is queued for the old one, which was checked against its signature."""
        if old is None or new.signature is None or new.signature == old.signature:
            return None
        reason = "it has a signature, unlike the one before"
        if old.signature is not None:
            found = Signature.from_json(new.signature).why_not_for(Signature.from_json(old.signature))
            if found is None:
                return None
            reason = found
        queued = self._desk.queued_inputs(model_uri, _SAMPLE)
        unfit = sum(not _fits(new, *each) for each in queued)
        return f"{reason}; {unfit} of {len(queued)} jobs looked at, which are queued, would fail" if unfit else None

    def _forget_tries(self, model_uri: str) -> None:
        for key in [key for key in self._tries if key[0] == model_uri and key not in self._preparing]:
            del self._tries[key]


def _fits(model: LoadedModel, input_format: str, payload: bytes) -> bool:
    if input_format == "reference":
        return False  # that its rows fit would have to be read from the file
    try:
        (read,) = read_inputs(input_format, [payload], model.schema)
        if isinstance(read, PyFunQError):
            return False
        build_frame(input_format, [read.content], model.schema)
    except PyFunQError:
        return False
    return True
