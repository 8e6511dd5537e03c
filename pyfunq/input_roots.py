"""Which files a job may name: those under the operator's roots, opened so that nothing leads out of them."""

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from pyfunq.errors import InputNotAllowed, InputUnavailable, NotConfigured

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.DOTALL)
_LIKE_A_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|.*(::|://)", re.DOTALL)
# What fsspec reads from this machine's files, or from within another file or URL.
_INDIRECT = frozenset(
    {"file", "local", "dir", "data", "zip", "tar", "libarchive", "reference", "generic", "async_wrapper"}
    | {"simplecache", "filecache", "blockcache", "cached"}
)
_NOT_IN_URLS = frozenset("%?#\\*[]{}")
_PATH_ONLY = getattr(os, "O_PATH", os.O_RDONLY)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from another: bytes, and its modification time (ns) or what the store says."""

    size: int
    version: int | str


@dataclass(frozen=True, slots=True)
class InputFile:
    """An open file."""

    file: IO[bytes]
    stamp: Stamp
    now: Callable[[], Stamp]
    """The stamp of what its name means at that moment. Raises FileNotFoundError."""
    touched: Callable[[], bool] = lambda: False
    """Whether anything was done to it since it was opened, if only to its times."""


class InputRoots:
    """The operator's roots: absolute directories, and URL prefixes such as s3://bucket/folder for fsspec."""

    def __init__(self, roots: Sequence[str]) -> None:
        """Raises ValueError for what is neither."""
        self._directories = [_directory(root) for root in roots if not _LIKE_A_URL.match(root)]
        self._urls = [_url_root(root) for root in roots if _LIKE_A_URL.match(root)]

    def canonical(self, place: str) -> str:
        """The absolute path or URL that a job may carry for what a caller named. Raises InputNotAllowed."""
        if not self._directories and not self._urls:
            raise InputNotAllowed("no input by reference is allowed here: PYFUNQ_INPUT_ROOTS is empty")
        if _LIKE_A_URL.match(place):
            self._check_url(place)
            return place.rstrip("/")
        if ".." in place.split("/") or "\0" in place:
            raise _refused(place)
        path = os.path.join(os.getcwd(), place)
        self._root_of(path)
        return "/" + "/".join(_parts(path))

    def listing(self, place: str) -> list[str] | None:
        """The canonical names in a folder, sorted; None for a file. Raises FileNotFoundError, OSError."""
        if _LIKE_A_URL.match(place):
            self._check_url(place)
            fs, path = _filesystem(place)
            with _remote_errors(place):
                if not fs.isdir(path):
                    return None
                return sorted(f"{place}/{_last(name)}" for name in fs.ls(path, detail=False) if _last(name))
        root, parts = self._resolve(place)
        descriptor = _descend(root, parts, _PATH_ONLY)
        try:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                return None
        finally:
            os.close(descriptor)
        descriptor = _descend(root, parts, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(f"{place}/{name}" for name in os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def open(self, place: str) -> InputFile:
        """Opens a canonical name for reading.

        Raises InputNotAllowed, FileNotFoundError, other OSErrors as they come, NotConfigured where fsspec is
        missing, and InputUnavailable for a root that is not there and for what a remote store raises.
        """
        if _LIKE_A_URL.match(place):
            self._check_url(place)
            return _open_url(place)
        return self._open_path(place)

    def _open_path(self, place: str) -> InputFile:
        # O_NONBLOCK: a pipe of that name would otherwise hold this process for ever.
        descriptor = _descend(*self._resolve(place), os.O_RDONLY | os.O_NONBLOCK)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise _refused(place)
        identity = found.st_dev, found.st_ino

        def now() -> Stamp:
            other = _descend(*self._resolve(place), _PATH_ONLY)
            try:
                held = os.fstat(other)
            finally:
                os.close(other)
            same = (held.st_dev, held.st_ino) == identity
            return Stamp(held.st_size, held.st_mtime_ns if same else f"another file of {held.st_mtime_ns}")

        def touched() -> bool:
            return os.fstat(descriptor).st_ctime_ns != found.st_ctime_ns

        return InputFile(
            os.fdopen(descriptor, "rb", buffering=0), Stamp(found.st_size, found.st_mtime_ns), now, touched
        )

    def _resolve(self, place: str) -> tuple[str, Sequence[str]]:
        """The real root and what lies between it and the file, free of links when this looked."""
        if ".." in place.split("/") or "\0" in place or not place.startswith("/") or not _is_text(place):
            raise _refused(place)
        self._root_of(place)
        real = _parts(os.path.realpath(place))
        for root in self._directories:
            parts = _parts(os.path.realpath(root))
            if real[: len(parts)] == parts and len(real) > len(parts):
                return "/" + "/".join(parts), real[len(parts) :]
            if real == parts:
                return "/" + "/".join(parts), ()
        raise _refused(place)

    def _root_of(self, path: str) -> str:
        """By the names alone, so that nothing outside of the roots is even looked at."""
        parts = _parts(path)
        for root in self._directories:
            for form in (root, os.path.realpath(root)):
                if parts[: len(_parts(form))] == _parts(form):
                    return root
        raise _refused(path)

    def _check_url(self, url: str) -> None:
        found = _URL.fullmatch(url)
        if found is None or "::" in url or _NOT_IN_URLS & set(url) or not url.isprintable():
            raise _refused(url)
        parts = found[2].rstrip("/").split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise _refused(url)
        if not any(found[1] == scheme and parts[: len(root)] == root for scheme, root in self._urls):
            raise _refused(url)


def _refused(place: str) -> InputNotAllowed:
    return InputNotAllowed(f"{place[:300]!r} is not under a root that the operator allows (PYFUNQ_INPUT_ROOTS)")


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _is_text(place: str) -> bool:
    """JSON holds no names that are not UTF-8."""
    try:
        place.encode()
    except UnicodeEncodeError:
        return False
    return True


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _directory(root: str) -> str:
    if not root.startswith("/") or ".." in root.split("/") or not _parts(root):
        raise ValueError(f"{root!r} is neither an absolute directory nor a URL prefix such as s3://bucket/folder")
    return "/" + "/".join(_parts(root))


def _url_root(root: str) -> tuple[str, list[str]]:
    found = _URL.fullmatch(root)
    parts = found[2].rstrip("/").split("/") if found else []
    if not found or found[1] in _INDIRECT or "::" in root or _NOT_IN_URLS & set(root) or {"", ".", ".."} & set(parts):
        raise ValueError(f"{root!r} is neither an absolute directory nor a URL prefix such as s3://bucket/folder")
    return found[1], parts


def _descend(root: str, parts: Sequence[str], flags: int) -> int:
    """Opens what lies below the root, following no link: one that was put there meanwhile ends it."""
    try:
        descriptor = os.open(root, (_PATH_ONLY if parts else flags) | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise InputUnavailable(f"the root {root} is not there") from None
    for place, part in enumerate(parts):
        how = flags if place == len(parts) - 1 else _PATH_ONLY | os.O_DIRECTORY
        try:
            below = os.open(part, how | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise NotConfigured("inputs by URL need fsspec: pip install 'pyfunq[remote]'") from None
    scheme = url.split("://", 1)[0]
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as exc:
        raise NotConfigured(f"fsspec cannot read {scheme}:// here: {exc}") from None
    with _remote_errors(url):
        fs = fsspec.filesystem(scheme)
        path = kind._strip_protocol(url)
    return fs, path


def _open_url(url: str) -> InputFile:
    fs, path = _filesystem(url)

    def now() -> Stamp:
        with _remote_errors(url):
            fs.invalidate_cache()
            return _remote_stamp(fs.info(path))

    stamp = now()
    with _remote_errors(url):
        return InputFile(fs.open(path, "rb"), stamp, now)


def _remote_stamp(info: dict[str, Any]) -> Stamp:
    named = {name.lower().replace("_", "").replace("-", ""): value for name, value in info.items() if value is not None}
    keys = (
        "etag",
        "md5",
        "md5hash",
        "generation",
        "versionid",
        "lastmodified",
        "mtime",
        "modified",
        "updated",
        "created",
    )
    version = next((f"{key}={named[key]}" for key in keys if key in named), "")
    return Stamp(int(named.get("size") or 0), version)


@contextmanager
def _remote_errors(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as exc:  # each store's client has errors of its own
        raise InputUnavailable(f"{url} cannot be read now ({type(exc).__name__})") from exc
