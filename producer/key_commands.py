"""`pyfunq keys`: who may ask the HTTP API; made, listed, revoked."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import typer

from producer.options import JsonFlag
from producer.output import say, show_json, show_table
from pyfunq.api_keys import ApiKey, Scope, new_key
from pyfunq.environment import load_settings
from pyfunq.errors import InvalidInput, UnknownKey
from pyfunq.ledger import Ledger
from pyfunq.migrate import require_current

app = typer.Typer(no_args_is_help=True, help="API keys: who may ask the HTTP API.")

R = TypeVar("R")

_SPAN = re.compile(r"([0-9]{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST_NAME = 100
_MOST_QUEUED = 2**31 - 1


@app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="Whose jobs it submits and sees.")],
    name: Annotated[str, typer.Option(help="What it is called in lists.")] = "default",
    scopes: Annotated[
        list[Scope] | None, typer.Option("--scope", help="What it may do; several times for several. [default: submit]")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A pattern of the model URIs that it may ask for, such as 'models:/iris*'."),
    ] = None,
    per_second: Annotated[float | None, typer.Option(min=0.001, help="Requests a second.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=1, max=_MOST_QUEUED, help="Queued jobs of its tenant.")] = None,
    expires_in: Annotated[str | None, typer.Option(metavar="SPAN", help="Such as 12h, 90d, 52w.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key, and print it: this once, and it is kept nowhere."""
    for what, text in (("tenant", tenant), ("name", name), *(("model", pattern) for pattern in models or ())):
        _check_text(what, text)
    key, expires_at = new_key(), None if expires_in is None else datetime.now(UTC) + span(expires_in)
    made = _ask(
        lambda ledger: ledger.add_key(
            key,
            tenant=tenant,
            name=name,
            scopes=list(dict.fromkeys(scopes or (Scope.SUBMIT,))),
            models=models or (),
            per_second=per_second,
            max_queued_jobs=max_queued,
            expires_at=expires_at,
        )
    )
    show_json({"key": key, **_facts(made)}) if as_json else print(key)
    until = f", valid until {made.expires_at:%Y-%m-%d %H:%M} UTC" if made.expires_at else ""
    say(f"{made.prefix}… of {made.tenant} may {', '.join(sorted(made.scopes))}{until}. It is not shown again")


@app.command("list")
def list_keys(as_json: JsonFlag = False) -> None:
    """List keys by tenant and age, the revoked ones too; never the keys themselves."""
    keys = _ask(lambda ledger: ledger.api_keys())
    if as_json:
        for key in keys:
            show_json(_facts(key))
        return
    show_table(
        ("prefix", "tenant", "name", "state", "scopes", "models", "per second", "queued", "created", "used", "id"),
        (
            (
                *(k.prefix, k.tenant, k.name, _state(k), ", ".join(sorted(k.scopes)), ", ".join(k.models) or None),
                *(k.per_second, k.max_queued_jobs, k.created_at, k.used_at, k.id),
            )
            for k in keys
        ),
    )


@app.command("revoke")
def revoke(
    which: Annotated[str, typer.Argument(metavar="KEY", help="Its prefix, name or id.")],
    as_json: JsonFlag = False,
) -> None:
    """End a key: within half a minute no API process takes it any more."""
    revoked = _ask(lambda ledger: _revoke(ledger, which))
    if as_json:
        show_json(_facts(revoked))
    say(f"{revoked.prefix}… ({revoked.name}) of {revoked.tenant} is revoked; API processes know within 30 s")


async def _revoke(ledger: Ledger, which: str) -> ApiKey:
    meant = [
        key
        for key in await ledger.api_keys()
        if key.revoked_at is None and which in (key.prefix, key.name, str(key.id))
    ]
    if len(meant) > 1:
        named = ", ".join(f"{key.prefix} of {key.tenant} (id {key.id})" for key in meant)
        raise InvalidInput(f"{len(meant)} keys are called that, and none was revoked: {named}", field="key")
    revoked = await ledger.revoke_keys(str(meant[0].id)) if meant else []
    if not revoked:
        raise UnknownKey(f"there is no valid key with the prefix, name or id {which[:_LONGEST_NAME]!r}")
    return revoked[0]


def span(text: str) -> timedelta:
    """`90d` and the like. Raises InvalidInput."""
    found = _SPAN.fullmatch(text.strip())
    if found is None or not 0 < (seconds := int(found[1]) * _SECONDS[found[2]]) < 100 * 366 * 86_400:
        raise InvalidInput("--expires-in is a number and s, m, h, d or w, such as 90d", field="expires_in")
    return timedelta(seconds=seconds)


def _check_text(what: str, text: str) -> None:
    if not 0 < len(text.strip()) == len(text) <= _LONGEST_NAME * 5 or not text.isprintable():
        raise InvalidInput(f"--{what} has 1 to {_LONGEST_NAME * 5} printable characters", field=what)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "valid"


def _facts(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "prefix": key.prefix,
        "tenant": key.tenant,
        "name": key.name,
        "state": _state(key),
        "scopes": sorted(key.scopes),
        "models": list(key.models),
        "per_second": key.per_second,
        "max_queued_jobs": key.max_queued_jobs,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "used_at": key.used_at,
    }


def _ask(question: Callable[[Ledger], Awaitable[R]]) -> R:
    """Raises LedgerUnavailable, MigrationNeeded."""
    database = load_settings().database

    async def ask() -> R:
        await require_current(database)
        async with Ledger.open(database, max_connections=1) as ledger:
            return await question(ledger)

    return asyncio.run(ask())
