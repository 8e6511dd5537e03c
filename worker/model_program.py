"""The program in which a model runs alone: loads it, and answers what the worker asks over a socket, until that closes.

`worker.own_process` starts it by its path, perhaps with another environment's interpreter, where PyFunQ is not
installed: it imports the standard library and MLflow, and reads the files beside it by path.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG = 1
_LONGEST_CHAIN = 10
_LONGEST_MESSAGE = 20_000
_STATUS_NAMES = ("status_code", "status", "code")


def beside(name: str) -> Any:
    """The module of a file beside this one, without putting its directory on the path."""
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    spec = importlib.util.spec_from_file_location("_pyfunq_" + name, place)
    if spec is None or spec.loader is None:
        raise ImportError(place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def die_with(parent: int) -> None:
    """Ends this process with its parent, also in a call that never returns; where Linux is not, at the next answer."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


class Model:
    """What was loaded, and what can be asked of it."""

    def __init__(self, path: str, quick: bool) -> None:
        import mlflow.pyfunc

        beside("warning_filters").keep_few()
        self._model = mlflow.pyfunc.load_model(path, suppress_warnings=True)
        beside("forests").in_turn()
        self._predict = beside("quick").prediction_of(self._model) if quick else self._whole
        self.predict_proba = self._scores()

    def _whole(self, frame: Any, params: Any) -> Any:
        if params is None:  # versions of MLflow before 2.6 have none
            return self._model.predict(frame)
        return self._model.predict(frame, params=params)

    def _scores(self) -> Any:
        try:
            found = getattr(self._model.get_raw_model(), "predict_proba", None)
        except Exception:  # flavours without a raw model say so in different ways
            return None
        return found if callable(found) else None

    def answer(self, request: dict[str, Any]) -> Any:
        if request["do"] == "predict":
            return self._predict(request["frame"], request["params"])
        return self.predict_proba(request["frame"])


def error_chain(exc: BaseException) -> list[dict[str, Any]]:
    """What tells an exception and its causes to the worker: names of classes, messages, HTTP statuses."""
    chain: list[dict[str, Any]] = []
    cause: Any = exc
    while cause is not None and len(chain) < _LONGEST_CHAIN:
        kinds = [[kind.__module__, kind.__name__] for kind in type(cause).__mro__]
        chain.append({"kinds": kinds, "message": message_of(cause), "has": attributes_of(cause)})
        cause = cause.__cause__
    return chain


def message_of(exc: BaseException) -> str:
    try:
        return str(exc)[:_LONGEST_MESSAGE]
    except Exception:
        return "its message cannot be read"


def attributes_of(exc: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if isinstance(exc, ImportError):
        found["name"] = exc.name
    response = getattr(exc, "response", None)
    for prefix, holder in (("", exc), ("response.", response)):
        for name in _STATUS_NAMES:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                found[prefix + name] = int(value)
    return found


def answered(wire: Any, function: Callable[[], Any]) -> list[Any]:
    """A message: the function's value, or what it raised."""
    try:
        return wire.pack({"value": function()})  # type: ignore[no-any-return]
    except wire.TooDeepError:
        deep: list[Any] = []
        for _ in range(150):  # the worker says of this what it says of any such value
            deep = [deep]
        return wire.pack({"value": deep})  # type: ignore[no-any-return]
    except Exception as exc:  # whatever the model's own code raises
        return wire.pack({"error": error_chain(exc)})  # type: ignore[no-any-return]


def serve(sock: socket.socket, wire: Any) -> None:
    wanted = wire.receive(sock)
    if wanted["sys_path"] is not None:
        sys.path[:] = wanted["sys_path"]
    models: list[Model] = []

    def load() -> dict[str, Any]:
        models.append(Model(wanted["path"], wanted["quick"]))
        return {"predict_proba": models[0].predict_proba is not None}

    wire.send(sock, answered(wire, load))
    while models:
        answer_one(sock, wire, models[0])


def answer_one(sock: socket.socket, wire: Any, model: Model) -> None:
    request = wire.receive(sock)
    wire.send(sock, answered(wire, lambda: model.answer(request)))


def main() -> None:
    die_with(int(sys.argv[1]))
    faulthandler.enable()
    sock = socket.socket(fileno=int(sys.argv[2]))
    with suppress(EOFError, ConnectionError):
        serve(sock, beside("model_wire"))
    # What a model left to be cleaned up at the end is; but no thread of its own holds the end up.
    atexit._run_exitfuncs()
    os._exit(0)


if __name__ == "__main__":
    main()
