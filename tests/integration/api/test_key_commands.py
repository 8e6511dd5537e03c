"""`pyfunq keys` and `pyfunq api` as an operator types them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from producer.key_commands import span
from pyfunq.api_keys import is_key
from pyfunq.environment import child_environment
from pyfunq.errors import InvalidInput
from pyfunq.local.server import free_port
from pyfunq.settings import Settings
from tests.forked_cli import run_pyfunq
from tests.programs import Program, until

PYFUNQ = str(Path(sys.executable).with_name("pyfunq"))

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def pyfunq(settings: Settings) -> Run:
    def run(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = run_pyfunq(arguments, {**child_environment(settings), **environment})
        assert done.returncode == code, f"{done.returncode}, not {code}: {done.stdout}{done.stderr}"
        return done

    return run


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def run(*arguments: str, **environment: str) -> Program:
        started.append(Program([PYFUNQ, *arguments], settings, tmp_path / f"{len(started)}.log", environment))
        return started[-1]

    yield run
    for program in started:
        if program.process.poll() is None:
            program.kill()


def answers(url: str, **headers: str) -> int | None:
    try:
        return httpx.get(url, headers=headers, timeout=5).status_code
    except httpx.TransportError:
        return None


def test_a_key_is_shown_once_and_can_be_revoked(pyfunq: Run) -> None:
    made = pyfunq("keys", "create", "--tenant", "acme", "--name", "ci", "--scope", "read", "--expires-in", "90d")
    key = made.stdout.strip()
    assert is_key(key)
    assert key not in made.stderr
    assert "acme may read, valid until" in made.stderr
    limits = ("--per-second", "5", "--max-queued", "10", "--model", "models:/iris*")
    other = json.loads(pyfunq("keys", "create", "--tenant", "acme", *limits, "--json").stdout)
    assert is_key(other["key"])
    assert (other["per_second"], other["max_queued_jobs"], other["models"]) == (5.0, 10, ["models:/iris*"])
    listed = pyfunq("keys", "list")
    assert "acme" in listed.stdout
    assert key not in listed.stdout
    facts = [json.loads(line) for line in pyfunq("keys", "list", "--json").stdout.splitlines()]
    assert [(f["name"], f["scopes"], f["state"]) for f in facts] == [
        ("ci", ["read"], "valid"),
        ("default", ["submit"], "valid"),
    ]
    assert all(f["prefix"] in (key[:10], other["prefix"]) and "key" not in f and "digest" not in f for f in facts)
    pyfunq("keys", "revoke", key[:10])
    assert "no valid key" in pyfunq("keys", "revoke", key[:10], code=4).stderr
    assert "revoked" in pyfunq("keys", "list").stdout
    pyfunq("keys", "revoke", other["id"])


def test_of_several_keys_of_one_name_none_is_revoked(pyfunq: Run) -> None:
    made = [json.loads(pyfunq("keys", "create", "--tenant", t, "--json").stdout) for t in ("acme", "rival")]
    refused = pyfunq("keys", "revoke", "default", code=2).stderr
    assert all(one["prefix"] in refused and one["id"] in refused for one in made)
    pyfunq("keys", "revoke", made[0]["prefix"])
    pyfunq("keys", "revoke", "default")
    pyfunq("keys", "revoke", "default", code=4)


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "0d", "1.5h", "999999w", "1y"])
def test_spans_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput):
        span(text)
    assert span("90d").days == 90


def test_without_a_key_it_serves_this_machine_only_and_says_so(pyfunq: Run, start: Callable[..., Program]) -> None:
    refused = pyfunq("api", "--host", "0.0.0.0", "--port", "0", code=1)  # noqa: S104
    assert "without one the API serves 127.0.0.1 only" in refused.stderr
    assert "postgresql://" not in refused.stderr
    port = free_port()
    program = start("api", "--port", str(port))
    url = f"http://127.0.0.1:{port}/v1/jobs"
    until("it answers", lambda: answers(url) == 200)
    assert "whoever is on this machine may ask" in program.text()
    assert answers(url, Host="pyfunq.example") == 403, "a name that another's page made lead here"
    assert answers(url, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert answers(url, **{"X-Forwarded-For": "203.0.113.7"}) == 403, "a proxy of this machine lets others in"
    pyfunq("keys", "create", "--tenant", "acme")
    until("from then on a key is needed", lambda: answers(url) == 401)
    assert program.stop() in (0, -15)


def test_several_processes_share_a_port_and_may_wait_for_the_first_key(
    pyfunq: Run, start: Callable[..., Program]
) -> None:
    port = free_port()
    more: dict[str, Any] = {"PYFUNQ_API_REQUIRE_KEY": "true"}
    program = start("api", "--host", "0.0.0.0", "--port", str(port), "--processes", "2", **more)  # noqa: S104
    url = f"http://127.0.0.1:{port}"
    until("it answers", lambda: answers(f"{url}/health/ready") == 200)
    assert answers(f"{url}/v1/jobs") == 401
    key = pyfunq("keys", "create", "--tenant", "acme").stdout.strip()
    until("the key is known", lambda: answers(f"{url}/v1/jobs", Authorization=f"Bearer {key}") == 200)
    servers = [p for p in psutil.Process(program.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(servers) == 2
    assert program.stop() in (0, -15)
    assert not any(p.is_running() for p in servers)
