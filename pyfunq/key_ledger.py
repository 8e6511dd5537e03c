"""What the ledger is asked about API keys and the tenants whose they are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from pyfunq.api_keys import ApiKey, Scope, digest_of, prefix_of
from pyfunq.ids import new_id


class KeyLedger(ABC):
    """The part of `Ledger` that concerns API keys."""

    @abstractmethod
    async def _fetch(self, query: str, *args: Any) -> list[asyncpg.Record]: ...

    @abstractmethod
    async def _fetchrow(self, query: str, *args: Any) -> asyncpg.Record | None: ...

    @abstractmethod
    async def _execute(self, query: str, *args: Any) -> None: ...

    async def add_key(
        self,
        key: str,
        *,
        tenant: str,
        name: str,
        scopes: Sequence[Scope],
        models: Sequence[str] = (),
        per_second: float | None = None,
        max_queued_jobs: int | None = None,
        expires_at: datetime | None = None,
    ) -> ApiKey:
        """Makes a key valid; its tenant is made where there is none of that name."""
        row = await self._fetchrow(
            "add_key",
            *(new_id(), tenant, name, prefix_of(key), digest_of(key)),
            *([str(s) for s in scopes], list(models), per_second, max_queued_jobs, expires_at),
        )
        assert row is not None  # noqa: S101
        return _key(row)

    async def key(self, digest: bytes) -> ApiKey | None:
        """The key with this digest if it is valid now; notes that it was used."""
        row = await self._fetchrow("use_key", digest)
        return None if row is None else _key(row)

    async def keys_exist(self) -> bool:
        """Whether there ever was a key: then nobody may come without one."""
        return await self._fetchrow("any_key") is not None

    async def api_keys(self) -> list[ApiKey]:
        """All of them, the revoked ones too, by tenant and age."""
        return [_key(r) for r in await self._fetch("list_keys")]

    async def revoke_keys(self, which: str) -> list[ApiKey]:
        """Ends the valid keys with this prefix, name or id; returns them."""
        return [_key(r) for r in await self._fetch("revoke_keys", which)]

    async def count_queued_of(self, tenant_id: int, *, at_most: int) -> int:
        """A tenant's queued jobs; counting ends at `at_most`."""
        row = await self._fetchrow("count_queued_of", tenant_id, at_most)
        return int(row["count"]) if row else 0

    async def tenant_of_batch(self, batch_id: UUID) -> int | None:
        """Whose a batch is; None where there is no such batch."""
        row = await self._fetchrow("tenant_of_batch", batch_id)
        return None if row is None else int(row["tenant_id"])


def _key(row: asyncpg.Record) -> ApiKey:
    fields = dict(row)
    fields["scopes"] = frozenset(Scope(s) for s in fields["scopes"])
    fields["models"] = tuple(fields["models"])
    return ApiKey(**fields)
