"""`pyfunq webhooks`: the secrets with which jobs' ends are told."""

import asyncio
import sys
from typing import Annotated

import typer

from producer.output import say
from pyfunq.environment import load_settings
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings
from pyfunq.webhooks import new_secret

app = typer.Typer(no_args_is_help=True, help="Webhooks: the secrets with which jobs' ends are told.")


@app.callback()
def _group() -> None:
    """Makes `secret` a command of its own, although it is the only one."""


@app.command("secret")
def make_secret(
    tenant: Annotated[str | None, typer.Option(help="Whose; without it, that of callers without an API key.")] = None,
) -> None:
    """Make a tenant's signing secret, or another in its place, and show it this once.

    The one before it signs as well for a day: receivers have that long to change.
    """
    secret = new_secret()
    rotated = asyncio.run(_store(load_settings(), tenant, secret))
    say("the secret before it signs as well for a day" if rotated else "give it to the receiver; it is not shown again")
    sys.stdout.write(f"{secret}\n")


async def _store(settings: Settings, tenant: str | None, secret: str) -> bool:
    async with Ledger.open(settings.database, max_connections=1) as ledger:
        return await ledger.set_webhook_secret(tenant, secret)
