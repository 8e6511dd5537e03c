"""The digest of a model's files, by which an operator says which files may be loaded (PYFUNQ_TRUSTED_MODELS)."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from pyfunq.errors import NotConfigured

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of_files(directory: Path) -> str:
    """`sha256:` and 64 hexadecimal digits, over the name and content of every file below the directory.

    Links count as what they lead to. Raises OSError.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    whole = hashlib.sha256()
    for name in names:
        with (directory / name).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(json.dumps([name, content]).encode() + b"\n")
    return f"sha256:{whole.hexdigest()}"


def read_trusted(path: Path) -> Mapping[str, str]:
    """{"name/version": digest}. Raises NotConfigured where the file is not that; nothing is trusted by halves."""
    try:
        said = json.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise NotConfigured(f"PYFUNQ_TRUSTED_MODELS: the file cannot be read ({type(exc).__name__})") from None
    except ValueError:
        raise NotConfigured("PYFUNQ_TRUSTED_MODELS: the file is not JSON") from None
    if not isinstance(said, dict):
        raise NotConfigured('PYFUNQ_TRUSTED_MODELS: the file must hold an object, {"name/version": "sha256:..."}')
    for version, digest in said.items():
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise NotConfigured(f"PYFUNQ_TRUSTED_MODELS: what is said of {version[:200]!r} is no sha256: digest")
    return said
