"""A model in a process of its own: what it ships is imported there, and ends with it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from pyfunq.errors import InvalidInput, TimedOut
from worker import model_wire

_PROGRAM = Path(__file__).with_name("model_program.py")
_END_SECONDS = 1.0
"""What a process gets to end by itself when it is not needed any more."""
_EXIT_SECONDS = 10.0
"""What a process that has closed its end gets, to say with which code it ends."""
# With which an exception of the model's must still be recognised; the first that fits.
_BASES = (ModuleNotFoundError, ConnectionError, TimeoutError)


class ModelCrashed(TimedOut):
    """The model's process ended in a call."""

    code = "model_crashed"

    def __init__(self, message: str | None = None, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed
        """By SIGKILL, as one that uses too much memory is."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """With what a model's process runs; by default with the worker's own modules."""

    python: str = sys.executable
    is_own: bool = True
    """Whether it is the worker's: then modules are found where the worker finds them."""
    release: Callable[[], None] | None = None
    """Called when no process of the model will be started any more."""


class OwnProcess:
    """One model in one process. Safe for threads, which wait for one another; its process ends with this one.

    A process that ended, or was in a call that was interrupted, is replaced by the next call.
    """

    def __init__(self, path: Path, interpreter: Interpreter | None = None) -> None:
        self._path = path
        self._interpreter = interpreter or Interpreter()
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._is_closed = False

    def start(self) -> bool:
        """Loads the model; returns whether it has `predict_proba`. Raises what loading raised, and ModelCrashed."""
        with self._lock:
            return self._start()[1]

    def predict(self, frame: Any, params: dict[str, Any] | None) -> Any:
        """What the model returns, as in this process. Raises likewise, and ModelCrashed."""
        return self._ask({"do": "predict", "frame": frame, "params": params})

    def predict_proba(self, frame: Any) -> Any:
        return self._ask({"do": "predict_proba", "frame": frame})

    @property
    def pid(self) -> int | None:
        child = self._child
        return child.pid if child else None

    def memory_bytes(self) -> int:
        """What its process holds that no other does; 0 while it has none."""
        return _memory_of(self.pid) if self.pid else 0

    def close(self) -> None:
        """Ends the process. Do not call it while a call is under way."""
        self._is_closed = True
        child, self._child = self._child, None
        if child is not None:
            child.end(_END_SECONDS)
        if self._interpreter.release is not None:
            self._interpreter.release()

    def _ask(self, request: dict[str, Any]) -> Any:
        try:
            parts = model_wire.pack(request)
        except model_wire.TooDeepError as exc:
            raise InvalidInput("the input is nested too deep for a model in a process of its own") from exc
        with self._lock:
            return self._exchange(self._child or self._restarted(), parts)

    def _restarted(self) -> "_Child":
        if self._is_closed:
            raise ModelCrashed("the model was dropped from memory")
        try:
            return self._start()[0]
        except ModelCrashed:
            raise
        except Exception as exc:
            raise ModelCrashed(f"the model could not be loaded again: {type(exc).__name__}") from exc

    def _start(self) -> "tuple[_Child, bool]":
        own = self._interpreter.is_own
        child = _started(self._interpreter)
        self._child = child
        wanted = {"path": str(self._path), "sys_path": sys.path if own else None, "quick": own}
        try:
            answer = self._exchange(child, model_wire.pack(wanted))
        except Exception:
            self._child = None
            child.end(_END_SECONDS)
            raise
        return child, bool(answer["predict_proba"])

    def _exchange(self, child: "_Child", parts: list[Any]) -> Any:
        try:
            answer = child.ask(parts)
        except (EOFError, OSError) as exc:
            self._child = None
            raise child.crashed() from exc
        except BaseException:  # interrupted: nobody knows what it is doing now
            self._child = None
            child.end(0.0)
            raise
        if "error" in answer:
            raise _raised(answer["error"])
        return answer["value"]


def memory_of_models() -> int:
    """Bytes that the models' processes of this process hold, without what they share."""
    return sum(_memory_of(child.pid) for child in list(_running) if child.is_running)


def _memory_of(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0


class _Child:
    """A running process and the socket to it; also ended when it is forgotten, or this program ends."""

    def __init__(self, process: "subprocess.Popen[bytes]", sock: socket.socket) -> None:
        self.pid = process.pid
        self._process = process
        self._sock = sock
        _running.add(self)
        self._finalizer = weakref.finalize(self, _end, process, sock, os.getpid(), 0.0)

    @property
    def is_running(self) -> bool:
        return self._finalizer.alive

    def ask(self, parts: list[Any]) -> Any:
        model_wire.send(self._sock, parts)
        return model_wire.receive(self._sock)

    def end(self, seconds: float) -> None:
        if self._finalizer.detach() is not None:
            _end(self._process, self._sock, os.getpid(), seconds)

    def crashed(self) -> ModelCrashed:
        """Says how it ended, and makes sure that it did."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        code = self._process.returncode
        self.end(0.0)
        if code is None:
            return ModelCrashed("the model's process closed its connection and did not end")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return ModelCrashed(f"the model's process ended ({how})", killed=code == -signal.SIGKILL)


_running: "weakref.WeakSet[_Child]" = weakref.WeakSet()


def _end(process: "subprocess.Popen[bytes]", sock: socket.socket, owner: int, seconds: float) -> None:
    if os.getpid() != owner:  # a fork of the process that it belongs to
        return
    sock.close()
    if seconds:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with suppress(ProcessLookupError):  # also what the model started itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _started(interpreter: Interpreter) -> _Child:
    starting = _starter(os.getpid()).submit(_start, interpreter)
    try:
        return starting.result()
    except BaseException:
        starting.add_done_callback(_end_unwanted)
        raise


def _end_unwanted(starting: "Future[_Child]") -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().end(0.0)


@cache
def _starter(pid: int) -> ThreadPoolExecutor:
    """The thread that starts processes: Linux ends them with the thread that did, so it must live as long as this one.

    `pid` is this process's: a fork has not its parent's threads.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="pyfunq-models")


def _start(interpreter: Interpreter) -> _Child:
    ours, theirs = socket.socketpair()
    with theirs:
        # Isolated from the environment, or at least not with the worker's own directory on its path.
        flag = "-P" if interpreter.is_own else "-I"
        process = subprocess.Popen(
            [interpreter.python, flag, str(_PROGRAM), str(os.getpid()), str(theirs.fileno())],
            env=_environment(interpreter),
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return _Child(process, ours)


def _environment(interpreter: Interpreter) -> dict[str, str]:
    """The worker's, without PyFunQ's own addresses: a model asks neither ledger nor queue."""
    unwanted = ("PYFUNQ_",) if interpreter.is_own else ("PYFUNQ_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


def _raised(chain: Sequence[dict[str, Any]]) -> Exception:
    """The exception that the model raised, as far as anybody looks at it."""
    exceptions = [_exception(link["kinds"], link["message"], link["has"]) for link in chain]
    for exc, cause in pairwise(exceptions):
        exc.__cause__ = cause
    return exceptions[0]


def _exception(kinds: Sequence[Sequence[str]], message: str, has: dict[str, Any]) -> Exception:
    names = {name for module, name in kinds if module == "builtins"}
    base: type[Exception] = next((kind for kind in _BASES if kind.__name__ in names), Exception)
    made: Any = base
    for module, name in reversed(kinds):
        if module != "builtins" or name not in {kind.__name__ for kind in base.__mro__}:
            made = type(name, (made,), {"__module__": module, "__str__": lambda _: message})
    if made is base:
        made = type(base.__name__, (base,), {"__module__": "builtins", "__str__": lambda _: message})
    exc: Exception = made(message)
    response = {name.partition(".")[2]: value for name, value in has.items() if name.startswith("response.")}
    for name, value in has.items():
        if "." not in name:
            setattr(exc, name, value)
    if response:
        exc.response = SimpleNamespace(**response)  # type: ignore[attr-defined]
    return exc
