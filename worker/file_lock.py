"""A lock on a file that can be renamed and removed by whoever holds it, and what the file says.

The `filelock` package has no shared locks on files, and cannot follow one to another name.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Any, Self

import orjson

_POLL_SECONDS = 0.05


class FileLock:
    """An open file of its own, so that two of them in one process exclude each other as those of two processes do.

    Only a lock on a file that still has its name counts: who opened it before it was removed has not locked anything.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._pid = os.getpid()

    @classmethod
    def on(cls, path: Path, *, create: bool = False) -> Self | None:
        """Not locked yet; None where there is no such file, or no directory for it."""
        try:
            return cls(path, os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @property
    def is_own(self) -> bool:
        """Whether this process opened it, and did not inherit it by a fork."""
        return self._pid == os.getpid()

    def take(self, how: int) -> bool:
        """Waits for LOCK_SH or LOCK_EX; False as soon as the file has lost its name."""
        while self._has_name():
            if self.try_to_take(how):
                return True
            # Not a blocking flock: a thread that waits in one cannot be interrupted.
            time.sleep(_POLL_SECONDS)
        return False

    def try_to_take(self, how: int) -> bool:
        try:
            fcntl.flock(self._descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self._has_name()

    def rename(self, directory: Path, new: Path) -> None:
        """Renames the directory that the file is in, keeping the lock."""
        os.rename(directory, new)
        self._path = new / self._path.relative_to(directory)

    def read(self) -> dict[str, Any]:
        """Empty where nothing that can be read was written, also after the file has lost its name."""
        return self.parsed(os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0))

    @staticmethod
    def parsed(content: bytes) -> dict[str, Any]:
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError:  # torn, or not written yet
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, content: dict[str, Any]) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, orjson.dumps(content), 0)

    def touch(self) -> None:
        """Its time of change is now, to the nanosecond."""
        now = time.time_ns()
        os.utime(self._descriptor, ns=(now, now))

    def release(self) -> None:
        """Once. In a child of the process that opened it the lock stays with its parent."""
        if self.is_own:  # unlocked and not only closed: a child may have the descriptor too
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)

    def _has_name(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except (FileNotFoundError, NotADirectoryError):
            return False
