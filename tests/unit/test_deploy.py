"""The files that operators deploy with: what must hold of them without an engine to run them."""

import importlib.util
import os
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from pyfunq.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_TEXT)["services"]
LONG_RUNNING = sorted(set(SERVICES) - {"migrate"})
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
SECRETS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD", "FLOWER_PASSWORD"}


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def example_variables(*, commented: bool) -> dict[str, str]:
    prefix = "#" if commented else ""
    found = re.findall(rf"^{prefix}([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    return dict(found)


def test_the_services_are_the_ones_that_the_design_names() -> None:
    assert set(SERVICES) == {"postgres", "redis", "mlflow", "migrate", "worker", "beat", "flower", "api"}
    assert OURS == ["api", "beat", "flower", "migrate", "mlflow", "worker"]


def test_nothing_is_published_beyond_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 5
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-\d+\}:\d+", port) for port in ports)
    assert not any("network_mode" in service or service.get("privileged") for service in SERVICES.values())


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_has_no_rights_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name != "postgres":
        assert service["read_only"] is True
        assert "cap_add" not in service


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_long_running_service_restarts_and_tells_its_health(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    if name in OURS:
        assert service["init"] is True


def test_programs_start_after_the_migration_and_their_servers() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("worker", "beat", "api"):
        waits = SERVICES[name]["depends_on"]
        assert waits["migrate"] == {"condition": "service_completed_successfully"}
        assert waits["redis"] == {"condition": "service_healthy"}


def test_a_worker_is_given_longer_to_stop_than_it_drains() -> None:
    drain = Settings.model_fields["drain_seconds"].default
    assert seconds(SERVICES["worker"]["stop_grace_period"]) >= drain + 5
    assert "PYFUNQ_DRAIN_SECONDS" not in SERVICES["worker"]["environment"]
    assert "REMAP_SIGTERM" not in DOCKERFILE, "SIGTERM is what drains"


def test_the_api_takes_nobody_without_a_key() -> None:
    assert SERVICES["api"]["environment"]["PYFUNQ_API_REQUIRE_KEY"] == "true"
    assert ".[worker,api]" in DOCKERFILE


def test_redis_keeps_what_it_was_given() -> None:
    command = SERVICES["redis"]["command"][-1]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert "requirepass" in command
    assert "--requirepass" not in command, "a password on the command line can be read by others"


def test_mlflow_answers_under_the_name_that_the_workers_use() -> None:
    host = SERVICES["worker"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    allowed = next(o for o in SERVICES["mlflow"]["command"] if o.startswith("--allowed-hosts="))
    assert host in allowed.partition("=")[2].split(",")
    assert SERVICES["mlflow"]["healthcheck"]["test"][-1].startswith(f"http://{host}/api/")
    assert SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_every_named_volume_is_declared() -> None:
    used = {
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if not volume.startswith(("./", "/"))
    }
    assert used == set(yaml.safe_load(COMPOSE_TEXT)["volumes"])


def test_secrets_are_required_and_have_no_value_in_the_repository() -> None:
    assert set(re.findall(r"\$\{([A-Z_]+):\?set it in \.env\}", COMPOSE_TEXT)) == SECRETS
    assert not re.search(rf"\$\{{({'|'.join(SECRETS)})(:-[^}}]*)?\}}", COMPOSE_TEXT)
    assert example_variables(commented=False) == dict.fromkeys(SECRETS, "")
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_example_names_every_variable_and_no_other() -> None:
    passed_on = {
        name for service in SERVICES.values() for name, value in service.get("environment", {}).items() if value is None
    }
    with_default = set(re.findall(r"\$\{([A-Z_]+):-", COMPOSE_TEXT))
    assert set(example_variables(commented=True)) == passed_on | with_default


def test_the_settings_that_are_passed_on_exist_and_the_examples_show_defaults() -> None:
    for name, value in example_variables(commented=True).items():
        if name.startswith("PYFUNQ_"):
            assert name.removeprefix("PYFUNQ_").lower() in Settings.model_fields
            field = Settings.model_fields[name.removeprefix("PYFUNQ_").lower()]
            if isinstance(field.default, int) and not isinstance(field.default, bool):
                assert int(value) == field.default


def test_the_final_image_is_unprivileged_and_built_from_the_tested_versions() -> None:
    build, final = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert final.startswith("python:3.12-slim\n")
    assert "\nUSER pyfunq\n" in final
    assert "pip uninstall" in final
    assert "pip install" not in final
    installs = [line for line in build.splitlines() if " install " in line and "--no-deps" not in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)
    assert "PIP_NO_CACHE_DIR=1" in build


def test_what_the_image_copies_reaches_the_builder() -> None:
    allowed = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {
        source
        for arguments in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in arguments.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


@pytest.fixture(scope="module")
def healthcheck() -> ModuleType:
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "deploy" / "healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/well" else 403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_http_check(healthcheck: ModuleType, server: str) -> None:
    assert healthcheck.main(["http", f"{server}/well"]) is None
    assert healthcheck.main(["http", f"{server}/other"]) == "answered 403"
    assert "no answer" in healthcheck.main(["http", "http://127.0.0.1:1/"])


def test_beat_check(healthcheck: ModuleType, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert "not started" in healthcheck.beat_problem(settings)
    schedule = tmp_path / "beat-schedule.dat"
    schedule.touch()
    assert healthcheck.beat_problem(settings) is None
    old = time.time() - healthcheck.BEAT_SECONDS - 1
    os.utime(schedule, (old, old))
    assert "sent nothing" in healthcheck.beat_problem(settings)
    assert healthcheck.beat_problem(Settings(home=tmp_path, registry_watch_seconds=60, rescue_seconds=60)) is None


def test_worker_check_says_that_postgres_is_away(
    healthcheck: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYFUNQ_DATABASE_URL", f"postgresql://user@/name?host={tmp_path}")
    assert "Postgres cannot be reached" in healthcheck.main(["worker"])


def test_unknown_check_is_refused(healthcheck: ModuleType) -> None:
    assert healthcheck.main([]).startswith("usage: healthcheck.py")


def test_beat_runs_so_that_its_check_sees_each_task() -> None:
    assert SERVICES["beat"]["command"] == ["beat", "beat_sync_every=1"]
