"""What operators do: models, promotion, doctor, Flower."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from producer.demo_models import DemoModels
from tests.acceptance.conftest import FLOWER_PASSWORD, SETOSA, Cli, split


def test_listing_and_showing_models(cli: Cli) -> None:
    models = {m["name"]: m for m in map(json.loads, cli("models", "list", "--json").stdout.splitlines())}
    assert models["iris"]["stages"] == {"Production": 1}
    assert models["iris"]["aliases"] == {"champion": 1}
    cli("submit", "models:/iris@champion", split(SETOSA), "--wait")
    info = cli.json("models", "info", "iris")
    assert {u["model_uri"]: u["version"] for u in info["in_use"]}["models:/iris@champion"] == "1"
    assert "@champion" in cli("models", "info", "iris").stdout
    assert "iris" in cli("models", "list").stdout


def test_a_promotion_is_followed_without_anyones_help(cli: Cli, up: Path, until: Callable[..., Any]) -> None:
    endpoints = json.loads((up / "endpoints.json").read_text())["endpoints"]
    row = json.dumps({"inputs": {c: [0.01] for c in ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]}})

    def version(uri: str) -> str:
        return str(cli.json("submit", uri, row, "--wait")["model_version"])

    uris = ("models:/diabetes@champion", "models:/diabetes/Production")
    assert [version(uri) for uri in uris] == ["1", "1"]
    DemoModels(endpoints["mlflow_tracking_uri"]).diabetes_v2()
    said = cli("models", "promote", "diabetes", "2", "--alias", "champion", "--stage", "production").stderr
    assert "now at version 2" in said
    until("both URIs mean version 2", lambda: [version(uri) for uri in uris] == ["2", "2"])
    cli("models", "promote", "diabetes", "1", "--alias", "champion", "--stage", "Production")
    until("and version 1 again", lambda: [version(uri) for uri in uris] == ["1", "1"])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("info", "nope"), 4, "nope"),
        (("promote", "nope", "1", "--alias", "a"), 4, "nope"),
        (("promote", "iris", "99", "--alias", "a"), 4, "99"),
        (("promote", "iris", "1"), 2, "--alias or --stage"),
        (("promote", "iris", "1", "--stage", "live"), 2, "Production"),
        (("promote", "iris", "1", "--alias", "latest"), 2, "alias"),
    ],
)
def test_promotions_that_cannot_be(cli: Cli, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = cli("models", *arguments, code=code)
    assert says in done.stderr
    assert done.stderr.startswith("error: ")


def test_doctor_finds_all_well(cli: Cli) -> None:
    findings = [json.loads(line) for line in cli("doctor", "--json").stdout.splitlines()]
    assert [f["check"] for f in findings] == ["postgres", "migrations", "redis", "mlflow", "workers", "clock"]
    assert all(f["ok"] for f in findings)
    assert "ok" in cli("doctor").stdout


def test_doctor_says_what_to_do(home: Path) -> None:
    away = {
        "PYFUNQ_DATABASE_URL": f"postgresql://postgres:secret@/pyfunq?host={home}",
        "PYFUNQ_REDIS_URL": "redis://:secret@127.0.0.1:9/0",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }
    done = Cli(home)("doctor", "--json", code=1, **away)
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert not any(f["ok"] for f in findings)
    assert all(f["advice"] for f in findings)
    assert "secret" not in done.stdout + done.stderr


def test_without_servers_commands_say_what_is_missing(home: Path) -> None:
    for arguments in (("list",), ("submit", "models:/iris/1", split(SETOSA)), ("worker",), ("migrate",)):
        assert "PYFUNQ_DATABASE_URL" in Cli(home)(*arguments, code=5).stderr


def test_a_setting_that_cannot_be_used_is_named(home: Path) -> None:
    assert "PYFUNQ_BATCH_MAX_ROWS" in Cli(home)("list", code=5, PYFUNQ_BATCH_MAX_ROWS="many").stderr


def flower(up: Path, path: str, login: str | None = None) -> Any:
    endpoints = json.loads((up / "endpoints.json").read_text())["endpoints"]
    request = urllib.request.Request(endpoints["flower_url"] + path)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_flower_shows_every_message_to_those_with_the_password(cli: Cli, up: Path, until: Callable[..., Any]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        flower(up, "/api/tasks")
    login = f"pyfunq:{FLOWER_PASSWORD}"
    job = cli("submit", "models:/iris@champion", split(SETOSA)).stdout.strip()
    cli("wait", job)

    def succeeded() -> Any:
        task = flower(up, "/api/tasks", login).get(job)
        return task if task and task["state"] == "SUCCESS" else None

    task = until("Flower has seen it succeed", succeeded)
    assert task["name"] == "pyfunq.predict"
    assert task["args"] == "models:/iris@champion · 1 job"
    assert task["kwargs"] == "lane=interactive"
    assert task["received"] <= task["started"] <= task["succeeded"]
    assert task["runtime"] > 0
    assert task["worker"]
    assert "succeeded" in task["result"]
    assert str(SETOSA[0]) not in json.dumps(task["args"])
