"""Environments made from models' requirements: once a host, kept by what is in them, bounded on disk."""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.version import InvalidVersion, Version

from pyfunq.entries import ModelVersion
from pyfunq.errors import ModelNotLoadable, PyFunQError
from pyfunq.requirements import Unmet, name_of, read_requirements, unmet, without_credentials
from worker.artifacts import size_of
from worker.own_process import Interpreter

log = logging.getLogger(__name__)

_MLFLOW = ("mlflow", "mlflow-skinny")
_PROGRAM_NEEDS = ("pandas", "pyarrow")
_MARKER = "pyfunq-environment.json"
"""Written last: an environment without it is unfinished."""
_TICK_SECONDS = 0.2
_LOOKS = 10
_SAID_LINES, _SAID_LENGTH = 6, 600


class EnvironmentNotReady(PyFunQError):
    """The model's environment is being made."""

    code = "environment_not_ready"
    fault = "dependency"
    retryable = True


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What an environment is made of; equal ones are shared."""

    requirements: tuple[str, ...]
    constraints: str
    python: str
    """The interpreter's path."""
    python_version: str
    beside: Path
    """The model's files, where requirements may name wheels."""

    @property
    def key(self) -> str:
        parts = [sorted(self.requirements), self.constraints, self.python_version, sys.platform]
        if any("/" in one and "://" not in one for one in self.requirements):
            parts.append(str(self.beside))  # a wheel that the model ships
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


class Environments:
    """A directory of environments. Safe for the threads of a process and the processes of a host.

    Each has a lock file: shared while a model runs in it, exclusive while it is made or removed. The installer holds
    it as well, so that one which outlives its worker is not disturbed.
    """

    def __init__(
        self, root: Path, *, max_bytes: int, patience_seconds: float = 60.0, making_seconds: float = 1800.0
    ) -> None:
        """`patience_seconds`: how long `interpreter_for` waits for one that is being made."""
        self._root = root
        self._max_bytes = max_bytes
        self._patience_seconds = patience_seconds
        self._making_seconds = making_seconds
        self._lock = threading.Lock()
        self._making: dict[str, Future[None]] = {}
        root.mkdir(parents=True, exist_ok=True)

    def interpreter_for(self, version: ModelVersion, path: Path, python_version: str | None) -> Interpreter | None:
        """With what a model must run whose requirements are not met here, else None; release it after use.

        Raises EnvironmentNotReady while it is being made (that goes on, so ask again), and ModelNotLoadable with the
        installer's last words if it cannot be.
        """
        lacking = missing_requirements(path)
        if not lacking:
            return None
        wanted = _wanted(version, path, python_version)
        if (found := self._use(wanted.key)) is not None:
            return found
        log.info("%s needs an environment: %s", version, ", ".join(map(str, lacking)))
        self._await(wanted, version)
        for _ in range(_LOOKS):  # another process may just be looking whether it is complete
            if (found := self._use(wanted.key)) is not None:
                return found
            time.sleep(_TICK_SECONDS)
        raise EnvironmentNotReady

    def _use(self, key: str) -> Interpreter | None:
        """The environment, if it is complete, locked against being removed."""
        lock = self._open_lock(key)
        marker = self._root / key / _MARKER
        if not _locked(lock, fcntl.LOCK_SH) or not marker.is_file():
            os.close(lock)
            return None
        os.utime(marker)
        return Interpreter(
            str(self._root / key / "bin" / "python"), is_own=False, release=_once(lambda: os.close(lock))
        )

    def _await(self, wanted: _Wanted, version: ModelVersion) -> None:
        with self._lock:
            making = self._making.get(wanted.key)
            if making is None:
                making = self._making[wanted.key] = Future()
                threading.Thread(target=self._run, args=(wanted, making), name="pyfunq-env", daemon=True).start()
        try:
            making.result(self._patience_seconds)
        except TimeoutError:
            if not making.done():
                raise EnvironmentNotReady from None
        except _CannotBeMadeError as exc:
            self._forget(wanted.key, making)
            raise ModelNotLoadable(f"the environment of {version} cannot be made: {exc}") from exc
        self._forget(wanted.key, making)

    def _forget(self, key: str, making: "Future[None]") -> None:
        with self._lock:
            if self._making.get(key) is making:
                del self._making[key]

    def _run(self, wanted: _Wanted, making: "Future[None]") -> None:
        try:
            self._make(wanted)
        except _CannotBeMadeError as exc:
            making.set_exception(exc)
        except Exception as exc:
            log.exception("an environment was not made")
            making.set_exception(_CannotBeMadeError(type(exc).__name__))
        else:
            making.set_result(None)

    def _make(self, wanted: _Wanted) -> None:
        """Makes it, unless another process has meanwhile, or has just failed to."""
        asked, deadline = time.time(), time.monotonic() + self._making_seconds
        place, failure = self._root / wanted.key, self._root / f"{wanted.key}.failed"
        with self._exclusively(wanted.key, deadline) as lock:
            if lock is None:
                return
            if failure.is_file() and failure.stat().st_mtime >= asked:
                raise _CannotBeMadeError(failure.read_text())
            failure.unlink(missing_ok=True)
            begun = time.monotonic()
            try:
                _install(wanted, place, lock, deadline)
            except _CannotBeMadeError as exc:
                shutil.rmtree(place, ignore_errors=True)
                failure.write_text(str(exc))
                raise
            size = size_of(place)
            about = {"bytes": size, "requirements": wanted.requirements, "python": wanted.python_version}
            (place / f"{_MARKER}.new").write_text(json.dumps(about))
            os.rename(place / f"{_MARKER}.new", place / _MARKER)
            log.info("made an environment (%d bytes) in %.1f s", size, time.monotonic() - begun)
        self._evict(keep=wanted.key)

    def _evict(self, keep: str) -> None:
        """Removes the least recently used until the rest is within the bound, but none in use, nor this one."""
        found = sorted(self._root.glob(f"*/{_MARKER}"), key=lambda marker: marker.stat().st_mtime)
        sizes = {marker.parent.name: json.loads(marker.read_text())["bytes"] for marker in found}
        for key in [key for key in sizes if key != keep]:
            if sum(sizes.values()) <= self._max_bytes:
                return
            lock = self._open_lock(key)
            try:
                if _locked(lock, fcntl.LOCK_EX):
                    (self._root / key / _MARKER).unlink(missing_ok=True)
                    shutil.rmtree(self._root / key, ignore_errors=True)
                    del sizes[key]
                    log.info("dropped an environment that was not used lately")
            finally:
                os.close(lock)

    @contextmanager
    def _exclusively(self, key: str, deadline: float) -> Iterator[int | None]:
        """The lock, to make what is not there; None if another process has made it, and perhaps uses it by now."""
        lock, marker = self._open_lock(key), self._root / key / _MARKER
        try:
            while not marker.is_file():
                if _locked(lock, fcntl.LOCK_EX):
                    yield None if marker.is_file() else lock
                    return
                if time.monotonic() > deadline:
                    raise _CannotBeMadeError("another process has been making it for too long")
                time.sleep(_TICK_SECONDS)
            yield None
        finally:
            os.close(lock)

    def _open_lock(self, key: str) -> int:
        return os.open(self._root / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600)


def missing_requirements(path: Path) -> list[Unmet]:
    """What a model's files ask for and this environment lacks.

    Of MLflow itself only the major version counts: it loads what its other versions have saved.
    """
    return [one for one in unmet(read_requirements(path)) if not _is_near_enough(one)]


def _is_near_enough(lacking: Unmet) -> bool:
    if name_of(lacking.requirement) not in _MLFLOW:
        return False
    here, wanted = metadata.version("mlflow"), lacking.requirement.rpartition("==")[2]
    with suppress(InvalidVersion):
        return Version(wanted).major == Version(here).major
    return False


class _CannotBeMadeError(Exception):
    """With what the installer said."""


def _once(function: Callable[[], None]) -> Callable[[], None]:
    waiting = [function]

    def call() -> None:
        with suppress(IndexError):
            waiting.pop()()

    return call


def _locked(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wanted(version: ModelVersion, path: Path, python_version: str | None) -> _Wanted:
    requirements = read_requirements(path)
    named = {name_of(one) for one in requirements}
    if not named & set(_MLFLOW):
        requirements.append(f"mlflow-skinny=={metadata.version('mlflow')}")
    requirements += [name for name in _PROGRAM_NEEDS if name not in named]
    constraints = path / "constraints.txt"
    python, of_python = _python(version, python_version)
    return _Wanted(
        requirements=tuple(requirements),
        constraints=constraints.read_text() if constraints.is_file() else "",
        python=python,
        python_version=of_python,
        beside=path,
    )


def _python(version: ModelVersion, wanted: str | None) -> tuple[str, str]:
    """An interpreter of the model's minor version and that version; this one's where there is none."""
    here = "{}.{}".format(*sys.version_info[:2])
    minor = ".".join((wanted or here).split(".")[:2])
    if minor == here:
        return sys.executable, here
    uv = shutil.which("uv")
    if uv is not None and re.fullmatch(r"3\.\d+", minor):
        command = [uv, "python", "find", "--no-project", "--no-python-downloads", minor]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if found.returncode == 0:
            return found.stdout.strip(), minor
    log.warning("%s was made with Python %s, which uv does not find here; its environment has %s", version, minor, here)
    return sys.executable, here


def _install(wanted: _Wanted, place: Path, lock: int, deadline: float) -> None:
    shutil.rmtree(place, ignore_errors=True)
    uv = shutil.which("uv")
    python = str(place / "bin" / "python")
    if uv is not None:
        venv = [uv, "venv", "--no-project", "--python", wanted.python, str(place)]
        install = [uv, "pip", "install", "--python", python]
    else:
        has_pip = find_spec("pip") is not None  # which takes seconds to be put into an environment
        venv = [wanted.python, "-m", "venv", *(["--without-pip"] if has_pip else []), str(place)]
        pip = [wanted.python, "-m", "pip", "--python", python] if has_pip else [python, "-m", "pip"]
        install = [*pip, "install", "--no-input", "--disable-pip-version-check"]
    listed, limits = place / "pyfunq-requirements.txt", place / "pyfunq-constraints.txt"
    _run(venv, wanted.beside, lock, deadline)
    listed.write_text("\n".join(wanted.requirements) + "\n")
    limits.write_text(wanted.constraints)
    _run([*install, "-r", str(listed), "-c", str(limits)], wanted.beside, lock, deadline)


def _run(command: Sequence[str], directory: Path, lock: int, deadline: float) -> None:
    unwanted = ("PYFUNQ_", "PYTHON", "VIRTUAL_ENV")  # what is on PYTHONPATH, pip would take for installed
    process = subprocess.Popen(
        command,
        cwd=directory,
        env={name: value for name, value in os.environ.items() if not name.startswith(unwanted)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[lock],
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _CannotBeMadeError("it took too long") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise _CannotBeMadeError(_last_words(said.decode(errors="replace")))


def _last_words(said: str) -> str:
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    return without_credentials(" / ".join(lines[-_SAID_LINES:]))[-_SAID_LENGTH:]
