"""Command lines and environments of the programs, and what of them may be shown."""

import os
from typing import Any

import pytest
from typer.testing import CliRunner

from producer import cli, up
from producer.programs import (
    beat_command,
    flower_command,
    flower_environment,
    thread_environment,
    worker_command,
    worker_processes,
)
from producer.stack import without_password
from pyfunq.settings import Settings


def test_passwords_are_never_on_a_command_line() -> None:
    settings = Settings(
        flower_password="hidden", redis_url="redis://:hidden@h", database_url="postgresql://u:hidden@h/d"
    )
    lines = [
        worker_command(concurrency=2),
        beat_command(settings.home),
        flower_command(address="127.0.0.1", port=1),
    ]
    assert all("hidden" not in " ".join(line) for line in lines)
    assert flower_environment(settings) == ({"FLOWER_BASIC_AUTH": "pyfunq:hidden"}, None)


def test_flower_gets_a_password_that_nobody_can_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)
    made = {flower_environment(Settings())[1] for _ in range(5)}
    assert len(made) == 5
    assert all(password and len(password) >= 16 for password in made)
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "me:mine")
    assert flower_environment(Settings()) == ({}, None)


def test_processes_share_the_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert worker_processes(Settings()) == 8
    assert worker_processes(Settings(concurrency=3)) == 3
    assert set(thread_environment(4).values()) == {"2"}
    assert set(thread_environment(16).values()) == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "OMP_NUM_THREADS" not in thread_environment(4)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hidden@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("postgresql://me:hidden@h:5432/d?a=b", "postgresql://me:***@h:5432/d?a=b"),
        ("postgresql://postgres@/pyfunq?host=/s", "postgresql://postgres@/pyfunq?host=/s"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_addresses_are_shown_without_their_passwords(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFUNQ_DATABASE_URL", "postgresql://u@h/d")
    monkeypatch.setenv("PYFUNQ_REDIS_URL", "redis://h")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h")
    monkeypatch.delenv("PYFUNQ_FALLBACK_LATEST", raising=False)


@pytest.mark.parametrize(
    ("flags", "variable", "expected"),
    [(["--fallback-latest"], None, True), ([], None, False), ([], "1", True), (["--fallback-latest"], "0", True)],
)
def test_a_worker_is_told_of_the_fallback(
    monkeypatch: pytest.MonkeyPatch, configured: None, flags: list[str], variable: str | None, expected: bool
) -> None:
    become: list[Any] = []
    monkeypatch.setattr(cli, "_become", lambda command, environment: become.append((command, environment)))
    if variable is not None:
        monkeypatch.setenv("PYFUNQ_FALLBACK_LATEST", variable)
    done = CliRunner().invoke(cli.app, ["worker", "--queues", "model.gpu", *flags])
    assert done.exit_code == 0, done.output
    ((command, environment),) = become
    assert command[command.index("--queues") + 1] == "model.gpu"
    assert "--fallback-latest" not in command
    for name in ("PYFUNQ_FALLBACK_LATEST", "PYFUNQ_HOME"):
        monkeypatch.setenv(name, environment[name])
    assert Settings().fallback_latest is expected


def test_so_is_the_stack(monkeypatch: pytest.MonkeyPatch, configured: None) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(up, "run_up", lambda **options: asked.append(options))
    for flags in ([], ["--fallback-latest"]):
        assert CliRunner().invoke(cli.app, ["up", *flags]).exit_code == 0
    assert [options.get("fallback_latest") for options in asked] == [None, True]
