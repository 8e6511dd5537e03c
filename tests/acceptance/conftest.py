"""A `pyfunq up` of the session's own, and the CLI as a person would type it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from producer.demo_models import DIABETES, IRIS, DemoModels
from pyfunq.environment import load_settings
from pyfunq.settings import Settings
from tests.forked_cli import run_pyfunq

PYFUNQ = Path(sys.executable).with_name("pyfunq")
COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
FLOWER_PASSWORD = "only-for-tests"
SETOSA, VIRGINICA = [5.1, 3.5, 1.4, 0.2], [6.3, 2.9, 5.6, 1.8]


def split(*rows: list[Any], columns: list[str] = COLUMNS) -> str:
    return json.dumps({"dataframe_split": {"columns": columns, "data": rows}})


@dataclass
class Program:
    """A `pyfunq` that runs in the background, and what it said so far."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    def wait_for(self, text: str, seconds: float = 180.0) -> str:
        deadline = time.monotonic() + seconds
        while True:
            for line in self.said:
                if text in line:
                    return line
            if self.process.poll() is not None and not any(text in line for line in self.said):
                pytest.fail(f"it ended ({self.process.returncode}) without {text!r}:\n" + "\n".join(self.said))
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:g} s: {text!r} in\n" + "\n".join(self.said))
            threading.Event().wait(0.05)

    def stop(self, signal_number: int = signal.SIGINT, seconds: float = 120.0) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(seconds)


def _hear_ctrl_c() -> None:
    """What a shell starts in the background, these tests perhaps, is deaf to SIGINT, and so would be what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment_for(home: Path, **more: str) -> dict[str, str]:
    """Without what MLflow left here: its set_tracking_uri sets MLFLOW_TRACKING_URI for child processes."""
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return {**inherited, "PYFUNQ_HOME": str(home), **more}


def settings_of(home: Path) -> Settings:
    """What a program with this state directory has, likewise."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    return load_settings(home=home)


_started: list[Program] = []


def start(home: Path, *arguments: str, **environment: str) -> Program:
    process = subprocess.Popen(
        [PYFUNQ, *arguments],
        env=environment_for(home, **environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )
    program = Program(process)
    _started.append(program)

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                program.said.append(line.rstrip("\n"))

    threading.Thread(target=read, daemon=True).start()
    return program


def fresh_home() -> Path:
    # Not pytest's tmp_path: PostgreSQL's own user could not reach it when the tests run as root.
    home = Path(tempfile.mkdtemp(prefix="pyfunq-tests-"))
    home.chmod(0o755)
    return home


@pytest.fixture
def home() -> Iterator[Path]:
    place = fresh_home()
    before = len(_started)
    yield place
    for program in _started[before:]:
        if program.process.poll() is None:  # a test failed half-way
            program.process.kill()
            program.process.wait()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session")
def up() -> Iterator[Path]:
    """The state directory of a running `pyfunq up` that has the demo's models, version 1 of each promoted."""
    place = fresh_home()
    (place / "in").mkdir()
    program = start(
        place,
        "up",
        PYFUNQ_REGISTRY_WATCH_SECONDS="0.5",
        PYFUNQ_FLOWER_PASSWORD=FLOWER_PASSWORD,
        PYFUNQ_INPUT_ROOTS=str(place / "in"),
    )
    program.wait_for("ready; state in")
    endpoints = json.loads((place / "endpoints.json").read_text())["endpoints"]
    models = DemoModels(endpoints["mlflow_tracking_uri"])
    models.iris_v1()
    models.diabetes_v1()
    for name in (IRIS, DIABETES):
        models.promote(name, 1)
    yield place
    assert program.stop() == 0, "\n".join(program.said)
    shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True)
class Cli:
    home: Path

    def __call__(
        self, *arguments: str | Path, stdin: str | None = None, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = run_pyfunq(arguments, environment_for(self.home, **environment), stdin)
        assert done.returncode == code, f"exit code {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str | Path, **options: Any) -> Any:
        return json.loads(self(*arguments, "--json", **options).stdout)


@pytest.fixture
def cli(up: Path) -> Cli:
    return Cli(up)


@pytest.fixture
def until() -> Callable[..., Any]:
    """Waits until a condition holds: `until(what, condition, seconds)`."""

    def wait(what: str, condition: Callable[[], Any], seconds: float = 90.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (held := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:g} s: {what}")
            threading.Event().wait(0.1)
        return held

    return wait
