"""Serving: the one version that a process answers each model URI with, until the next one is ready."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyfunq.entries import ModelVersion, Wanted
from pyfunq.errors import ModelNotLoadable
from worker.loading import LoadedModel
from worker.model_cache import Identity, ModelCache
from worker.model_desk import ModelDesk

log = logging.getLogger(__name__)

Guard = Callable[[Callable[[], Any]], Any]


def _at_once(load: Callable[[], Any]) -> Any:
    return load()


class Serving:
    """Keyed by registry URI, over a cache keyed by version. Safe for the threads of a process."""

    def __init__(self, cache: ModelCache, desk: ModelDesk, *, pinned: Iterable[str] = ()) -> None:
        """`pinned`: model URIs whose versions stay in memory."""
        self._cache = cache
        self._desk = desk
        self._pinned = frozenset(pinned)
        self._lock = threading.Lock()
        self._served: dict[str, ModelVersion] = {}
        self._wanted: dict[str, Identity] = {}
        self._told: dict[Identity, ModelNotLoadable] = {}
        self.news = threading.Event()
        """Set when a model URI came to stand for a version that does not serve yet."""

    @contextmanager
    def use(self, model_uri: str, wanted: Wanted, guard: Guard = _at_once) -> Iterator[LoadedModel]:
        """The version that serves the URI here, held in memory while the block runs.

        That is the wanted one as soon as it has been made ready; until then the one before, if there is any in memory
        or one that some process could load. `guard` runs what may load. Raises ModelNotLoadable, RegistryUnavailable.
        """
        with ExitStack() as in_use:
            yield self._enter(in_use, model_uri, wanted, guard)

    def served(self) -> dict[str, ModelVersion]:
        """Model URI to the version in memory that serves it."""
        with self._lock:
            return dict(self._served)

    def models(self) -> dict[str, LoadedModel]:
        """Likewise, as they are in memory."""
        found = {uri: self._cache.peek(version) for uri, version in self.served().items()}
        return {uri: model for uri, model in found.items() if model is not None}

    def is_wanted(self, model_uri: str, version: ModelVersion) -> bool:
        """Whether the URI still stands for the version, as far as this process knows."""
        return self._wanted.get(model_uri) == version.identity

    def want(self, model_uri: str, version: ModelVersion) -> None:
        if self._wanted.get(model_uri) != version.identity:
            self._wanted[model_uri] = version.identity
            self.news.set()

    def switch(self, model_uri: str, model: LoadedModel) -> None:
        """From now on the URI is answered with this model."""
        with self._lock:
            before = self._served.get(model_uri)
            self._served[model_uri] = model.version
            pins = [version for uri, version in self._served.items() if uri in self._pinned]
        self._cache.pin(pins)
        log.info("%s is now %s%s", model_uri, model.version, f", was {before}" if before else "")
        self._desk.made_ready(model_uri, model)

    def stop(self, model_uri: str) -> None:
        """Serves the URI no more; its version stays in memory as long as there is room."""
        with self._lock:
            self._served.pop(model_uri, None)
            self._wanted.pop(model_uri, None)

    def left_memory(self, version: ModelVersion) -> None:
        with self._lock:
            for model_uri in [uri for uri, served in self._served.items() if served.identity == version.identity]:
                del self._served[model_uri]

    def _enter(self, in_use: ExitStack, model_uri: str, wanted: Wanted, guard: Guard) -> LoadedModel:
        self.want(model_uri, wanted.version)
        served = self._served.get(model_uri)
        turn = wanted.in_turn()
        if served is not None and self._cache.holds(served):
            turn.insert(0, served)
        for version in turn[:-1]:
            try:
                return self._take(in_use, model_uri, version, guard)
            except ModelNotLoadable:
                continue
        return self._take(in_use, model_uri, turn[-1], guard)

    def _take(self, in_use: ExitStack, model_uri: str, version: ModelVersion, guard: Guard) -> LoadedModel:
        using = self._cache.use(version)
        if self._cache.holds(version):
            model = in_use.enter_context(using)
        else:
            model = self._load(lambda: guard(lambda: in_use.enter_context(using)), model_uri, version)
        served = self._served.get(model_uri)
        if served is None or served.identity != version.identity:
            self.switch(model_uri, model)
        return model

    def _load(self, load: Callable[[], LoadedModel], model_uri: str, version: ModelVersion) -> LoadedModel:
        try:
            return load()
        except ModelNotLoadable as exc:
            if self._told.get(version.identity) is not exc:  # the cache says the same again for a while
                self._told[version.identity] = exc
                self._desk.not_loaded(model_uri, version, exc.message)
            raise
