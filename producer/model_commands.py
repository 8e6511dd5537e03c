"""`pyfunq models`: what the registry has, what the workers use of it, promotion and its way back."""

import asyncio
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer

from producer import model_info
from producer.following import Followed, Seen, after_move, after_warming, follow, process_of
from producer.model_digests import show_digest
from producer.model_info import failure_facts, failure_table, serving_facts, serving_table
from producer.model_requirements import show_requirements
from producer.options import JsonFlag
from producer.output import say, show_json, show_table
from producer.promotion import Move, promote, rollback
from producer.registry import STAGES, all_models, model_named, registry, version_meant
from pyfunq.environment import load_settings
from pyfunq.errors import LedgerUnavailable, ModelNotFound, ModelNotLoadable, QueueUnavailable, RegistryUnavailable
from pyfunq.ledger import Ledger
from pyfunq.model_uri import ModelURI, check_allowed, parse_model_uri
from pyfunq.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The models of the MLflow registry.")

NameArgument = Annotated[str, typer.Argument(help="A registered model's name.")]
URIArgument = Annotated[str, typer.Argument(metavar="URI", help="A model URI, such as models:/iris@champion.")]
AliasOption = Annotated[str | None, typer.Option(help="The alias that moves.")]
StageOption = Annotated[str | None, typer.Option(help=f"The stage that moves: {', '.join(STAGES)}.")]
WaitFlag = Annotated[
    bool, typer.Option("--wait", help="Wait until every worker process that serves it serves the new version.")
]
SecondsOption = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most.")]


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List registered models with their latest versions, stages and aliases."""
    with registry(load_settings()) as client:
        models = [model_info.summary(m) for m in all_models(client)]
    if as_json:
        for model in models:
            show_json(model)
        return
    show_table(
        ("model", "latest", "stages", "aliases"),
        (
            (
                m["name"],
                m["latest"],
                ", ".join(f"{stage} {v}" for stage, v in m["stages"].items()),
                ", ".join(f"@{alias} {v}" for alias, v in m["aliases"].items()),
            )
            for m in models
        ),
    )


@app.command("info")
def info(
    name: NameArgument,
    version: Annotated[
        int | None, typer.Option(min=1, help="Say what this version takes; without it, the newest.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a model's versions, what they take, what its URIs stand for, who serves them, and what failed lately."""
    gathered = model_info.gather(load_settings(), name, version)
    show_json(gathered) if as_json else model_info.show(gathered)


@app.command("promote")
def promote_version(
    name: NameArgument,
    version: Annotated[int, typer.Argument(min=1)],
    alias: AliasOption = None,
    stage: StageOption = None,
    wait: WaitFlag = False,
    timeout: SecondsOption = 300.0,
    as_json: JsonFlag = False,
) -> None:
    """Move an alias or a stage to a version; the workers follow by themselves."""
    settings = load_settings()
    since = _clock(settings) if wait else None
    with registry(settings) as client:
        moves = promote(client, name, version, alias=alias, stage=stage)
    _after(settings, moves, since, timeout, as_json)


@app.command("rollback")
def roll_back(
    name: NameArgument,
    alias: AliasOption = None,
    stage: StageOption = None,
    wait: WaitFlag = False,
    timeout: SecondsOption = 300.0,
    as_json: JsonFlag = False,
) -> None:
    """Move an alias or a stage back to the version that `promote` took it from; once more, and it returns."""
    settings = load_settings()
    since = _clock(settings) if wait else None
    with registry(settings) as client:
        moves = rollback(client, name, alias=alias, stage=stage)
    _after(settings, moves, since, timeout, as_json)


@app.command("refresh")
def refresh() -> None:
    """Have the workers ask the registry now; else they do it every few seconds."""
    from pyfunq.queue import request_refresh

    request_refresh(load_settings())
    say("asked; a worker asks the registry now")


@app.command("warm")
def warm(
    uri: URIArgument,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all of them have it.")] = True,
    timeout: SecondsOption = 300.0,
    as_json: JsonFlag = False,
) -> None:
    """Have every worker process that runs load a model now, and wait until all have it."""
    settings = load_settings()
    parsed = parse_model_uri(uri)
    check_allowed(parsed, settings.allowed_models)
    followed = asyncio.run(_warm(settings, str(parsed), _version_meant(settings, parsed), timeout if wait else None))
    if followed is None:
        say(f"asked for {parsed}")
        return
    _show_followed(followed, as_json)
    _raise_for(followed, str(parsed))
    say(f"{parsed} is in the memory of {_processes(followed)}")


@app.command("requirements")
def requirements(
    uri: URIArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Show what this environment lacks; exit code 1 if it lacks anything.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print what a model's files say it needs, as pip takes it."""
    if not show_requirements(load_settings(), uri, check=check, as_json=as_json):
        raise typer.Exit(1)


@app.command("digest")
def digest(uri: URIArgument) -> None:
    """Print what PYFUNQ_TRUSTED_MODELS says of a model's version, so that workers load these files and no others."""
    show_digest(load_settings(), uri)


def _after(settings: Settings, moves: list[Move], since: datetime | None, timeout: float, as_json: bool) -> None:
    """Tells what moved, lets the workers know, and waits for them where `since` says from when on."""
    for move in moves:
        say(str(move))
    _hint(settings)
    if since is None:
        if as_json:
            for move in moves:
                show_json(move)
        return
    for move in moves:
        followed = asyncio.run(_follow_move(settings, move, since, timeout))
        if as_json:
            show_json(asdict(move) | _facts(followed))
        else:
            _show_followed(followed, as_json)
        _raise_for(followed, move.model_uri)
        served = bool(followed.ready)
        say(
            f"{move.model_uri}: version {move.now} is served by {_processes(followed)}"
            if served
            else f"no worker process serves {move.model_uri} yet; the next job loads version {move.now}"
        )


def _hint(settings: Settings) -> None:
    """So that the workers know at once. Without Redis they find out by themselves."""
    from pyfunq.queue import request_refresh

    if settings.redis_url is not None:
        try:
            request_refresh(settings)
        except QueueUnavailable:
            say("Redis cannot be reached; the workers notice when they next ask the registry")


async def _follow_move(settings: Settings, move: Move, since: datetime, seconds: float) -> Followed:
    def assess(seen: Seen) -> Followed:
        return after_move(seen, move.model_uri, str(move.now), since)

    async with Ledger.open(settings.database, max_connections=1) as ledger:
        return await follow(ledger, settings, assess, seconds)


async def _warm(settings: Settings, uri: str, version: str | None, seconds: float | None) -> Followed | None:
    async with Ledger.open(settings.database, max_connections=1) as ledger:
        since = await ledger.clock()
        if not await ledger.live_workers(settings.stale_seconds):
            raise LedgerUnavailable("no worker process runs; start one with `pyfunq worker`")
        await ledger.ask_to_warm(uri)
        if seconds is None:
            return None
        told: set[str] = set()

        def tell(followed: Followed) -> None:
            for row in followed.ready:
                if (process := process_of(row)) not in told:
                    told.add(process)
                    say(f"{process} has it")

        return await follow(ledger, settings, lambda seen: after_warming(seen, uri, version, since), seconds, tell)


def _version_meant(settings: Settings, uri: ModelURI) -> str | None:
    """What the ledger calls the version that a URI means; None where only the workers can tell."""
    try:
        with registry(settings) as client:
            match uri.kind:
                case "model_id":
                    return str(client.get_logged_model(uri.model_id).model_id)
                case "run":
                    client.get_run(uri.run_id)
                    return uri.path
                case _:
                    return str(version_meant(client, model_named(client, str(uri.name)), uri))
    except RegistryUnavailable as exc:
        say(f"{exc.message}; the workers load what they know")
    except ModelNotFound:
        if not settings.fallback_latest or uri.kind not in ("stage", "alias"):
            raise
    return None


def _clock(settings: Settings) -> datetime:
    async def ask() -> datetime:
        async with Ledger.open(settings.database, max_connections=1) as ledger:
            return await ledger.clock()

    return asyncio.run(ask())


def _show_followed(followed: Followed, as_json: bool) -> None:
    if as_json:
        show_json(_facts(followed))
        return
    if followed.ready:
        show_table(*serving_table(serving_facts(row) for row in followed.ready))
    if followed.failed:
        show_table(*failure_table(failure_facts(row) for row in followed.failed))


def _facts(followed: Followed) -> dict[str, Any]:
    return {
        "serving": [serving_facts(row) for row in followed.ready],
        "failures": [failure_facts(row) for row in followed.failed],
    }


def _raise_for(followed: Followed, uri: str) -> None:
    if followed.failed:
        first = followed.failed[0]
        of = len(followed.failed) + len(followed.ready)
        raise ModelNotLoadable(
            f"{uri}: version {first.version} could not be loaded by {len(followed.failed)} of {of} worker processes: "
            f"{first.reason}"
        )


def _processes(followed: Followed) -> str:
    count = len(followed.ready)
    return f"{count} worker process{'es' if count != 1 else ''}"
