"""The model files on this host: downloaded once, shared by its processes, bounded in bytes, there with MLflow down.

`<version>/` is complete or absent: `files/`, and `manifest.json`, which says how large they are, and on which whoever
has the version open holds a shared lock. It is filled as `.download-<version>/` under an exclusive lock on the same
file, and goes by way of `.evicted-<any>/`, again under an exclusive one. So the locks come and go with what they guard,
and the kernel drops those of a process that died.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import uuid4

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotFound, ModelNotLoadable, PyFunQError, RegistryUnavailable
from worker import metrics
from worker.downloads import Downloads, is_full
from worker.file_lock import FileLock

log = logging.getLogger(__name__)

_MANIFEST, _FILES = "manifest.json", "files"
_UNFINISHED, _GONE = ".download-", ".evicted-"
_FAILURES = {error.code: error for error in (RegistryUnavailable, ModelNotFound, ModelNotLoadable)}


class ModelFiles:
    """A version's files, which stay while this is open. `size_bytes`: of all of them, as they were downloaded."""

    def __init__(self, path: Path, size_bytes: int, lock: FileLock, closed: Callable[[], None]) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._lock = lock
        self._closed = closed
        self._closing = threading.Lock()
        self._open = True

    def close(self) -> None:
        """From now on they may be dropped. A process that inherited this by a fork closes it for itself alone."""
        with self._closing:
            if not self._open:
                return
            self._open = False
            owned = self._lock.is_own
            try:
                if owned:
                    self._lock.touch()
            finally:
                self._lock.release()
        if owned:
            self._closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Kept(NamedTuple):
    """What a version, or a download under way, takes on disk."""

    directory: Path
    size_bytes: int
    used_ns: int


class ArtifactStore:
    """A directory of this host with one sub-directory a version, used by any number of processes."""

    def __init__(self, root: Path, tracking_uri: str, *, max_bytes: int) -> None:
        """Removes what processes that died left half done. `max_bytes`: see PYFUNQ_MODEL_DISK_BYTES."""
        self._root = root
        self._max_bytes = max_bytes
        self._downloads = Downloads(tracking_uri)
        root.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def open(self, version: ModelVersion) -> ModelFiles:
        """The version's files, downloaded now if this host does not have them; others who want them wait.

        Raises RegistryUnavailable when they cannot be fetched, came otherwise than listed or find no room,
        ModelNotFound when the registry has the version no more, ModelNotLoadable when what it has is no model.
        """
        name = _directory_name(version)
        try:
            while True:
                files = self._open_kept(version, name) or self._open_downloaded(version, name)
                if files is not None:
                    return files
        except OSError as exc:
            why = "its disk is full" if is_full(exc) else exc.strerror or type(exc).__name__
            raise RegistryUnavailable(f"the files of {version} cannot be kept on this host: {why}") from exc

    def _open_kept(self, version: ModelVersion, name: str) -> ModelFiles | None:
        """None: they are not on this host (any more)."""
        place = self._root / name
        lock = FileLock.on(place / _MANIFEST)
        if lock is None:
            return None
        with ExitStack() as undo:
            undo.callback(lock.release)
            if not lock.take(fcntl.LOCK_SH):
                return None
            manifest = lock.read()
            if _are_whole(place / _FILES, manifest):
                lock.touch()
                undo.pop_all()
                return ModelFiles(place / _FILES, manifest["bytes"], lock, self._keep_to_bound)
        log.warning("the files of %s were damaged on this host; they are downloaded again", version)
        if not self._evict(place):
            raise RegistryUnavailable(f"the files of {version} were damaged on this host, and are in use")
        return None

    def _open_downloaded(self, version: ModelVersion, name: str) -> ModelFiles | None:
        """None: look again, another process was before this one."""
        place, unfinished = self._root / name, self._root / f"{_UNFINISHED}{name}"
        unfinished.mkdir(exist_ok=True)
        lock = FileLock.on(unfinished / _MANIFEST, create=True)
        if lock is None:
            return None
        with ExitStack() as undo:
            undo.callback(lock.release)
            if not lock.take(fcntl.LOCK_EX):
                _raise_failure(lock.read())
                return None
            undo.callback(self._remove, unfinished)
            if (place / _MANIFEST).exists():
                return None
            size_bytes = self._download(version, unfinished, lock)
            self._remove(place)  # without a manifest it is nobody's
            lock.rename(unfinished, place)
            undo.pop_all()
            undo.callback(lock.release)
            if not lock.take(fcntl.LOCK_SH):  # dropped in the moment between the locks
                return None
            self._keep_to_bound(version)
            undo.pop_all()
            return ModelFiles(place / _FILES, size_bytes, lock, self._keep_to_bound)

    def _download(self, version: ModelVersion, unfinished: Path, lock: FileLock) -> int:
        """Fills `unfinished`; bytes of the version's files. Those who wait for the lock learn why it failed."""
        try:
            for left in unfinished.iterdir():  # by a process that died
                if left.name != _MANIFEST:
                    shutil.rmtree(left)
            listing = self._downloads.find(version)
            lock.write({"bytes": listing.size_bytes})
            self._make_room(listing.size_bytes)
            if (free := shutil.disk_usage(self._root).free) < listing.size_bytes:
                raise RegistryUnavailable(
                    f"{version} has {listing.size_bytes} bytes, and this host's disk has {free} free: its disk is full"
                )
            # A name of its own: an interrupted download's threads may go on for a while.
            into = unfinished / uuid4().hex
            into.mkdir()
            started = time.monotonic()
            root, sizes = self._downloads.fetch(version, listing, into)
            metrics.downloaded(sum(sizes.values()), time.monotonic() - started)
            os.rename(root, unfinished / _FILES)
            shutil.rmtree(into, ignore_errors=True)
        except PyFunQError as exc:
            lock.write({"failure": exc.code, "message": exc.message})
            raise
        lock.write({"bytes": sum(sizes.values()), "files": sizes})
        return sum(sizes.values())

    def _keep_to_bound(self, version: ModelVersion | None = None) -> None:
        """`version`: the one that came just now, if any did."""
        try:
            excess = self._make_room()
        except OSError as exc:
            log.warning("no model files were dropped from disk (%s)", type(exc).__name__)
            return
        if version is not None and excess > 0:
            log.warning(
                "with %s the model files in use take %d bytes more than PYFUNQ_MODEL_DISK_BYTES (%d); "
                "they are dropped when they are not in use any more",
                version,
                excess,
                self._max_bytes,
            )

    def _make_room(self, coming_bytes: int = 0) -> int:
        """Drops the least recently used versions that nobody has open until the rest keeps to the bound.

        `coming_bytes`: that much is to be free on the disk besides. Downloads under way count as if they were done.
        Returns by how many bytes too few were dropped; negative where there is room.
        """
        kept = sorted(self._kept(), key=lambda one: one.used_ns)
        excess = sum(one.size_bytes for one in kept) - self._max_bytes
        excess = max(excess, coming_bytes - shutil.disk_usage(self._root).free)
        for one in kept:
            if excess <= 0:
                break
            if not one.directory.name.startswith(_UNFINISHED) and self._evict(one.directory):
                excess -= one.size_bytes
                log.info("dropped %s from disk (%d bytes)", one.directory.name, one.size_bytes)
        return excess

    def _kept(self) -> Iterator[_Kept]:
        for directory in self._root.iterdir():
            if directory.name.startswith(_GONE):
                continue
            with suppress(OSError):
                manifest = directory / _MANIFEST
                size_bytes = FileLock.parsed(manifest.read_bytes()).get("bytes", 0)
                yield _Kept(directory, size_bytes, manifest.stat().st_mtime_ns)

    def _evict(self, place: Path) -> bool:
        """Whether it was there and nobody had it open."""
        lock = FileLock.on(place / _MANIFEST)
        if lock is None:
            return False
        try:
            if not lock.try_to_take(fcntl.LOCK_EX):
                return False
            self._remove(place)
            return True
        finally:
            lock.release()

    def _remove(self, directory: Path) -> None:
        """Whole or not at all for others: what a kill leaves of it goes at the next start."""
        gone = self._root / f"{_GONE}{uuid4().hex}"
        with suppress(FileNotFoundError):
            os.rename(directory, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _sweep(self) -> None:
        for gone in self._root.glob(f"{_GONE}*"):
            shutil.rmtree(gone, ignore_errors=True)
        for unfinished in self._root.glob(f"{_UNFINISHED}*"):
            if not (unfinished / _MANIFEST).exists():
                with suppress(OSError):  # its process was quicker, and it is not empty any more
                    unfinished.rmdir()
            else:
                self._evict(unfinished)


def size_of(directory: Path) -> int:
    """Bytes of all the files below a directory."""
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


def _are_whole(files: Path, manifest: dict[str, Any]) -> bool:
    """A machine that lost power can leave files shorter than they were when they got their names."""
    try:
        return all((files / name).stat().st_size >= size for name, size in manifest["files"].items())
    except (KeyError, OSError):
        return False


def _raise_failure(manifest: dict[str, Any]) -> None:
    if error := _FAILURES.get(manifest.get("failure", "")):
        raise error(manifest["message"])


def _directory_name(version: ModelVersion) -> str:
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{version.name}-{version.version}")[:80].lstrip(".")
    return f"{readable}-{hashlib.sha256(repr(version.identity).encode()).hexdigest()[:12]}"
