"""Directories and small files with exact permissions, whatever the umask."""

import hashlib
import os
import tempfile
from pathlib import Path

from pyfunq.errors import ServerFailed


def make_directory(path: Path, mode: int) -> None:
    """Make it, and what is missing above it, with exactly this mode; what exists is left as it is."""
    try:
        if not path.parent.exists():
            make_directory(path.parent, mode)
        path.mkdir()
        path.chmod(mode)
    except FileExistsError:
        if not path.is_dir():
            raise ServerFailed(f"{path} is in the way: it is not a directory") from None
    except OSError as e:
        raise ServerFailed(f"the directory {path} cannot be made: {e.strerror}") from e


def write_private(path: Path, text: str) -> None:
    """Write it whole or not at all, readable by its owner only."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(temporary).replace(path)


def short_hash(path: Path) -> str:
    """Eight characters that stand for the path where there is no room for it."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
