"""Bodies that are too large to be held: written to private files as they come, and gone with their requests."""

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from fastapi import Request

from producer.api.bodies import parts
from producer.api.problems import Problem

LINE_BYTES = 1024 * 1024
"""The longest line of NDJSON, without its end."""
_WRITTEN_AT_ONCE = 1024 * 1024
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Upload:
    """A body in a file; `folder` is private to it, and goes with it."""

    folder: Path
    path: Path
    digest: bytes
    """SHA-256 of the body, inflated."""


class Uploads:
    """This process's own folder below `folder`. Use it as a context manager; files of ended processes go first."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """`most_bytes`: of a body, as it is sent and inflated."""
        self._folder = folder
        self._most_bytes = most_bytes

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One process at a time: a folder is not to be taken for an ended process's before its lock is held.
        with _locked(self._folder / _LOCK):
            _sweep(self._folder)
            self._own = Path(tempfile.mkdtemp(dir=self._folder))
            self._lock = os.open(self._own / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._own, ignore_errors=True)
        os.close(self._lock)

    @asynccontextmanager
    async def received(self, request: Request, suffix: str) -> AsyncIterator[Upload]:
        """The request's body in a file whose name has this suffix, as long as the block runs.

        Raises Problem 400, 413 or 415 for what `bodies.parts` refuses and for a long line of `.jsonl`, 503 where
        there is no room for it.
        """
        folder = await asyncio.to_thread(lambda: Path(tempfile.mkdtemp(dir=self._own)))
        try:
            path = folder / f"body{suffix}"
            yield Upload(folder, path, await self._write(request, path))
        finally:
            # A thread that was begun goes on to its end, also where this request is cancelled.
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def _write(self, request: Request, path: Path) -> bytes:
        held = bytearray()
        with _full_disk(), path.open("xb", buffering=0) as file:
            sink = _Sink(file, LINE_BYTES if path.suffix == ".jsonl" else None)
            async for part in parts(request, self._most_bytes):
                held += part
                if len(held) >= _WRITTEN_AT_ONCE:
                    await asyncio.to_thread(sink.write, bytes(held))
                    held.clear()
            await asyncio.to_thread(sink.write, bytes(held))
        return sink.digest.digest()


class _Sink:
    def __init__(self, file: IO[bytes], longest_line: int | None) -> None:
        self._file = file
        self._longest_line = longest_line
        self._line, self._of_line = 1, 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        if self._longest_line is not None:
            self._measure(data, self._longest_line)
        self.digest.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _measure(self, data: bytes, longest: int) -> None:
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._of_line += end - start
            self._check(longest)
            # Only the last line that begins within so many bytes can be too long: those between end before.
            last = data.rfind(b"\n", end, end + longest)
            self._line += data.count(b"\n", end, last + 1)
            self._of_line, start = 0, last + 1
        self._of_line += len(data) - start
        self._check(longest)

    def _check(self, longest: int) -> None:
        if self._of_line > longest:
            raise Problem(413, f"line {self._line} is longer than {longest:,} bytes", headers={"Connection": "close"})


@contextmanager
def _full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Problem(503, "there is no room for the body now", headers={"Retry-After": "60"}, retryable=True) from exc


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Removes what processes left that ended; the kernel has dropped their locks."""
    for place in folder.iterdir():
        if not place.is_dir():
            continue
        try:
            descriptor = os.open(place / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            shutil.rmtree(place, ignore_errors=True)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(place, ignore_errors=True)
        finally:
            os.close(descriptor)
