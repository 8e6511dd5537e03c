"""The models in a process's memory: keyed by registry URI, bounded in count and bytes, never dropped while in use."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotLoadable
from worker.loading import LoadedModel, load

log = logging.getLogger(__name__)

Identity = tuple[str, str, int, str]


@dataclass(frozen=True, slots=True)
class _Failure:
    error: ModelNotLoadable
    until: float


class ModelCache:
    """Least recently used versions go first when a bound is passed. Safe for the threads of a process."""

    def __init__(
        self, *, max_count: int, max_bytes: int, failure_seconds: float, fetch: Callable[[ModelVersion], Path]
    ) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._failure_seconds = failure_seconds
        self._fetch = fetch
        self._lock = threading.Lock()
        self._loading: dict[Identity, threading.Lock] = {}
        self._models: OrderedDict[Identity, LoadedModel] = OrderedDict()
        self._by_uri: dict[str, Identity] = {}
        self._failures: dict[Identity, _Failure] = {}

    @contextmanager
    def use(self, model_uri: str, version: ModelVersion) -> Iterator[LoadedModel]:
        """The model that the URI stands for, held in memory while the block runs.

        Loads it if need be: once, with other users of the same version waiting. Raises ModelNotLoadable (again,
        without trying, for a while after a failure) and RegistryUnavailable.
        """
        model = self._take(model_uri, version) or self._load_and_take(model_uri, version)
        try:
            yield model
        finally:
            with self._lock:
                model.users -= 1
                self._evict()

    def loaded(self) -> dict[str, ModelVersion]:
        """Registry URI to the version that this process would use for it without loading."""
        with self._lock:
            return {uri: self._models[i].version for uri, i in self._by_uri.items() if i in self._models}

    def holds(self, version: ModelVersion) -> bool:
        """Whether it can be used without being loaded."""
        return version.identity in self._models

    def _take(self, model_uri: str, version: ModelVersion) -> LoadedModel | None:
        with self._lock:
            model = self._models.get(version.identity)
            if model is None:
                return None
            model.users += 1
            self._models.move_to_end(version.identity)
            if self._by_uri.get(model_uri) != version.identity:
                log.info("%s is now %s", model_uri, version)
                self._by_uri[model_uri] = version.identity
            return model

    def _load_and_take(self, model_uri: str, version: ModelVersion) -> LoadedModel:
        with self._lock:
            loading = self._loading.setdefault(version.identity, threading.Lock())
        with loading:
            model = self._take(model_uri, version)
            if model is None:
                model = self._load(version)
                self._keep(model_uri, model)
            return model

    def _keep(self, model_uri: str, model: LoadedModel) -> None:
        with self._lock:
            model.users = 1
            self._models[model.version.identity] = model
            self._by_uri[model_uri] = model.version.identity
            self._evict()

    def _load(self, version: ModelVersion) -> LoadedModel:
        failed = self._failures.get(version.identity)
        if failed is not None and time.monotonic() < failed.until:
            raise failed.error
        started = time.monotonic()
        try:
            model = load(version, self._fetch(version))
        except ModelNotLoadable as exc:
            self._failures[version.identity] = _Failure(exc, time.monotonic() + self._failure_seconds)
            raise
        self._failures.pop(version.identity, None)
        log.info("loaded %s (%d bytes) in %.2f s", version, model.size_bytes, time.monotonic() - started)
        return model

    def _evict(self) -> None:
        """Call with the lock held."""
        idle = [i for i, m in self._models.items() if m.users == 0]
        size = sum(m.size_bytes for m in self._models.values())
        while idle and (len(self._models) > self._max_count or size > self._max_bytes):
            gone = self._models.pop(idle.pop(0))
            size -= gone.size_bytes
            self._loading.pop(gone.version.identity, None)
            self._by_uri = {u: i for u, i in self._by_uri.items() if i in self._models}
            log.info("dropped %s from memory", gone.version)
