"""Another process of the host that opens versions, told what to do through a pipe."""

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pyfunq.entries import ModelVersion
from pyfunq.errors import PyFunQError
from tests.forked_cli import forks
from worker.artifacts import ArtifactStore, ModelFiles


class Holder:
    """`open` and `close` wait for the answer; `begin` does not, `answer` gets it."""

    def __init__(self, root: Path, tracking_uri: str, max_bytes: int) -> None:
        self._pipe, theirs = forks.Pipe()
        self.process = forks.Process(target=_serve, args=(theirs, root, tracking_uri, max_bytes))
        self.process.start()
        theirs.close()
        assert self.answer(60) == "ready"

    def begin(self, what: str, *about: Any) -> None:
        self._pipe.send((what, *about))

    def answer(self, seconds: float = 30.0) -> Any:
        assert self._pipe.poll(seconds), "no answer"
        found = self._pipe.recv()
        if isinstance(found, BaseException):
            raise found
        return found

    def ask(self, what: str, *about: Any) -> Any:
        self.begin(what, *about)
        return self.answer()

    def open(self, version: ModelVersion) -> Path:
        return Path(self.ask("open", version))

    def close(self, version: ModelVersion) -> None:
        self.ask("close", version)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)


def _serve(pipe: Connection, root: Path, tracking_uri: str, max_bytes: int) -> None:
    store = ArtifactStore(root, tracking_uri, max_bytes=max_bytes)
    held: dict[ModelVersion, ModelFiles] = {}
    pipe.send("ready")
    commands: dict[str, Callable[..., Any]] = {
        "open": lambda version: str(held.setdefault(version, store.open(version)).path),
        "close": lambda version: held.pop(version).close(),
        "close in a child": lambda version: _in_child(held[version].close),
        "leave a child": lambda: _in_child(signal.pause, wait=False),
        "die while dropping": lambda version: _die_while_dropping(held, version),
        "use in turns": lambda versions: _use_in_turns(store, versions),
    }
    while True:
        what, *about = pipe.recv()
        try:
            pipe.send(commands[what](*about))
        except PyFunQError as exc:
            pipe.send(exc)


def _in_child(function: Callable[[], Any], *, wait: bool = True) -> int:
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return os.waitpid(pid, 0)[1] if wait else pid


def _die_while_dropping(held: dict[ModelVersion, ModelFiles], version: ModelVersion) -> None:
    import shutil

    shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    held.pop(version).close()


def _use_in_turns(store: ArtifactStore, versions: list[ModelVersion]) -> int:
    """How many of the uses found the files whole from beginning to end."""
    whole = 0
    for version in versions:
        with store.open(version) as files:
            before = {f.name: f.stat().st_size for f in files.path.iterdir()}
            os.sched_yield()
            after = {f.name: f.stat().st_size for f in files.path.iterdir()}
            whole += before == after and "MLmodel" in after and sum(after.values()) == files.size_bytes
    return whole
