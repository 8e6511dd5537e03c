"""The model versions in a process's memory: bounded in count and bytes, never dropped while in use."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotLoadable
from worker import metrics
from worker.artifacts import ModelFiles
from worker.loading import LoadedModel

log = logging.getLogger(__name__)

Identity = tuple[str, str, int, str]


class Loader(Protocol):
    def open(self, version: ModelVersion) -> ModelFiles: ...
    def load(self, version: ModelVersion, files: ModelFiles) -> LoadedModel: ...


@dataclass(frozen=True, slots=True)
class _Failure:
    error: ModelNotLoadable
    until: float


class ModelCache:
    """Least recently used versions go first when a bound is passed. Safe for the threads of a process."""

    def __init__(
        self,
        loader: Loader,
        *,
        max_count: int,
        max_bytes: int,
        failure_seconds: float,
        dropped: Callable[[ModelVersion], None] = lambda _: None,
    ) -> None:
        """`dropped` is told of each version that left memory."""
        self._loader = loader
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._failure_seconds = failure_seconds
        self._dropped = dropped
        self._lock = threading.Lock()
        self._loading: dict[Identity, threading.Lock] = {}
        self._awaited: dict[Identity, int] = {}
        self._reserved: dict[Identity, int] = {}
        self._models: OrderedDict[Identity, LoadedModel] = OrderedDict()
        self._pinned: frozenset[Identity] = frozenset()
        self._failures: dict[Identity, _Failure] = {}

    @contextmanager
    def use(self, version: ModelVersion) -> Iterator[LoadedModel]:
        """The version, held in memory while the block runs.

        Loads it if need be: once, with other users of the same version waiting. Raises ModelNotLoadable (again,
        without trying, for a while after a failure) and RegistryUnavailable.
        """
        model = self._take(version) or self._load_and_take(version)
        try:
            yield model
        finally:
            with self._lock:
                model.users -= 1
                gone = self._evict()
            self._close(gone)

    def holds(self, version: ModelVersion) -> bool:
        """Whether it can be used without being loaded."""
        return version.identity in self._models

    def peek(self, version: ModelVersion) -> LoadedModel | None:
        """The version if it is in memory; it may leave any time, and this is no use of it."""
        return self._models.get(version.identity)

    def versions(self) -> list[ModelVersion]:
        """Those in memory, least recently used first."""
        with self._lock:
            return [model.version for model in self._models.values()]

    def close(self) -> None:
        """Lets go of the models that nobody uses; the others go with this process."""
        with self._lock:
            gone = [self._models.pop(i) for i in [i for i, m in self._models.items() if m.users == 0]]
        for model in gone:
            model.close()

    def pin(self, versions: Iterable[ModelVersion]) -> None:
        """From now on these versions, and no others, stay in memory once they are there, whatever the bounds."""
        self._pinned = frozenset(version.identity for version in versions)

    def _take(self, version: ModelVersion) -> LoadedModel | None:
        with self._lock:
            model = self._models.get(version.identity)
            if model is not None:
                model.users += 1
                self._models.move_to_end(version.identity)
            return model

    def _load_and_take(self, version: ModelVersion) -> LoadedModel:
        with self._loader_of(version.identity):
            model = self._take(version)
            if model is None:
                model = self._load(version)
                with self._lock:
                    model.users = 1
                    self._models[version.identity] = model
                    gone = self._evict()
                self._close(gone)
            return model

    @contextmanager
    def _loader_of(self, identity: Identity) -> Iterator[None]:
        """One at a time a version; the lock is kept as long as somebody waits for it."""
        with self._lock:
            lock = self._loading.setdefault(identity, threading.Lock())
            self._awaited[identity] = self._awaited.get(identity, 0) + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._awaited[identity] -= 1
                if not self._awaited[identity]:
                    del self._awaited[identity], self._loading[identity]

    def _load(self, version: ModelVersion) -> LoadedModel:
        failed = self._failures.get(version.identity)
        if failed is not None and time.monotonic() < failed.until:
            raise failed.error
        started = time.monotonic()
        try:
            model = self._load_files(version, self._loader.open(version))
        except ModelNotLoadable as exc:
            self._failures[version.identity] = _Failure(exc, time.monotonic() + self._failure_seconds)
            metrics.not_loaded()
            raise
        self._failures.pop(version.identity, None)
        model.load_seconds = time.monotonic() - started
        metrics.loaded(model.load_seconds)
        log.info("loaded %s (%d bytes) in %.2f s", version, model.size_bytes, model.load_seconds)
        return model

    def _load_files(self, version: ModelVersion, files: ModelFiles) -> LoadedModel:
        try:
            with self._room_for(version, files.size_bytes):
                model = self._loader.load(version, files)
        except BaseException:
            files.close()
            raise
        model.closing.append(files.close)
        return model

    @contextmanager
    def _room_for(self, version: ModelVersion, size_bytes: int) -> Iterator[None]:
        """Others go before it is loaded, so that not even meanwhile there are more than the bounds allow."""
        with self._lock:
            self._reserved[version.identity] = size_bytes
            gone = self._evict()
        self._close(gone)
        try:
            yield
        finally:
            with self._lock:
                del self._reserved[version.identity]

    def _evict(self) -> list[LoadedModel]:
        """Takes out what the bounds do not allow. Call with the lock held; close what comes back without it."""
        idle = [i for i, m in self._models.items() if m.users == 0 and i not in self._pinned]
        count = len(self._models) + len(self._reserved)
        size_bytes = sum(m.size_bytes for m in self._models.values()) + sum(self._reserved.values())
        gone: list[LoadedModel] = []
        while idle and (count > self._max_count or size_bytes > self._max_bytes):
            gone.append(self._models.pop(idle.pop(0)))
            count, size_bytes = count - 1, size_bytes - gone[-1].size_bytes
        metrics.cached(sum(m.size_bytes for m in self._models.values()), len(self._models))
        return gone

    def _close(self, gone: list[LoadedModel]) -> None:
        metrics.evicted(len(gone))
        for model in gone:
            log.info("dropped %s from memory", model.version)
            model.close()
            self._dropped(model.version)
