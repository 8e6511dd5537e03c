"""API keys: how they are made and recognised, and what the ledger keeps of one."""

import hashlib
import secrets
import zlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PREFIX = "pfq_"
_BITS = 160
_SECRET_LENGTH = 27
"""62 ** 27 > 2 ** 160."""
_CHECKSUM_LENGTH = 6
"""62 ** 6 > 2 ** 32."""
KEY_LENGTH = len(_PREFIX) + _SECRET_LENGTH + _CHECKSUM_LENGTH
_SHOWN_LENGTH = len(_PREFIX) + 6


class Scope(StrEnum):
    """What a key may do."""

    SUBMIT = "submit"
    """Submit jobs and batches, cancel and retry them; and all of `read`."""
    READ = "read"
    """Ask about jobs, batches and models, and read results."""
    ADMIN = "admin"
    """Have the registry looked at, and models loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What the ledger keeps of a key; the key itself is nowhere."""

    id: UUID
    tenant_id: int
    tenant: str
    name: str
    prefix: str
    """Its first characters, by which people tell keys apart."""
    scopes: frozenset[Scope]
    models: tuple[str, ...] = ()
    """Patterns of model URIs, as in PYFUNQ_ALLOWED_MODELS; none: all that the operator allows."""
    per_second: float | None = None
    """Requests a second; None: no limit of its own."""
    max_queued_jobs: int | None = None
    """Queued jobs of its tenant; None: no limit of its own."""
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    used_at: datetime | None = None


def new_key() -> str:
    """`pfq_`, 160 random bits and a checksum, by which scanners and typing errors are told from keys."""
    secret = _base62(secrets.randbits(_BITS), _SECRET_LENGTH)
    return f"{_PREFIX}{secret}{_checksum(secret)}"


def is_key(text: str) -> bool:
    """Whether it can be a key: so that what cannot costs no look into the ledger."""
    if len(text) != KEY_LENGTH or not text.startswith(_PREFIX) or not text.isascii():
        return False
    body = text.removeprefix(_PREFIX)
    return secrets.compare_digest(_checksum(body[:_SECRET_LENGTH]), body[_SECRET_LENGTH:])


def digest_of(key: str) -> bytes:
    """What is kept of it. No salt and no slow hash: 160 random bits cannot be guessed."""
    return hashlib.sha256(key.encode()).digest()


def prefix_of(key: str) -> str:
    return key[:_SHOWN_LENGTH]


def _checksum(secret: str) -> str:
    return _base62(zlib.crc32(secret.encode()), _CHECKSUM_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
