"""`pyfunq models`: what the registry has, what the workers use of it, and promotion."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from producer.options import JsonFlag
from producer.output import say, show_json, show_table
from pyfunq import errors
from pyfunq.entries import Resolution
from pyfunq.environment import load_settings
from pyfunq.ledger import Ledger
from pyfunq.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The models of the MLflow registry.")

NameArgument = Annotated[str, typer.Argument(help="A registered model's name.")]

_STAGES = ("Staging", "Production", "Archived", "None")


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """List registered models with their latest versions, stages and aliases."""
    with _registry(load_settings()) as client:
        models = [_model(m) for m in client.search_registered_models(max_results=1000)]
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
def info(name: NameArgument, as_json: JsonFlag = False) -> None:
    """Show a model's versions, and what its URIs stand for in the queue."""
    settings = load_settings()
    with _registry(settings) as client:
        model = _model(client.get_registered_model(name))
        found = client.search_model_versions(f"name = '{name}'") if "'" not in name else []
    model["versions"] = [
        {"version": int(v.version), "stage": v.current_stage, "run_id": v.run_id, "status": v.status}
        for v in sorted(found, key=lambda v: -int(v.version))
    ]
    model["in_use"] = [_use(r) for r in _resolutions(settings) if r.version.name == name]
    if as_json:
        show_json(model)
        return
    aliases: dict[int, list[str]] = {}
    for alias, version in model["aliases"].items():
        aliases.setdefault(version, []).append(f"@{alias}")
    show_table(
        ("version", "stage", "aliases", "run", "status"),
        (
            (
                v["version"],
                v["stage"],
                " ".join(aliases.get(v["version"], ())) or "-",
                v["run_id"],
                v["status"],
            )
            for v in model["versions"]
        ),
    )
    if model["in_use"]:
        show_table(
            ("URI in use", "version", "since", "confirmed"),
            ((u["model_uri"], u["version"], u["since"], u["confirmed"]) for u in model["in_use"]),
        )


@app.command("promote")
def promote(
    name: NameArgument,
    version: Annotated[int, typer.Argument(min=1)],
    alias: Annotated[str | None, typer.Option(help="Move this alias to the version.")] = None,
    stage: Annotated[str | None, typer.Option(help=f"Move the version to a stage: {', '.join(_STAGES)}.")] = None,
) -> None:
    """Move an alias or a stage to a version; the registry watch does the rest."""
    if alias is None and stage is None:
        raise errors.InvalidInput("give --alias or --stage", field="alias")
    if stage is not None and stage.title() not in _STAGES:
        raise errors.InvalidInput(f"stage is one of {', '.join(_STAGES)}", field="stage")
    with _registry(load_settings()) as client:
        move(client, name, version, alias=alias, stage=stage and stage.title())
    moved = [f"alias {alias}"] if alias else []
    moved += [f"stage {stage.title()}"] if stage else []
    say(f"{name}: {' and '.join(moved)} now at version {version}")


def move(client: Any, name: str, version: int, *, alias: str | None, stage: str | None) -> None:
    """Moves an alias and a stage of the registry; whoever had the stage is archived."""
    client.get_model_version(name, str(version))
    if alias is not None:
        client.set_registered_model_alias(name, alias, str(version))
    if stage is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # stages still work, and operators still have them
            client.transition_model_version_stage(
                name, str(version), stage, archive_existing_versions=stage in ("Production", "Staging")
            )


@contextmanager
def _registry(settings: Settings) -> Iterator[Any]:
    """A client of the registry; what it raises becomes PyFunQ's errors."""
    quick = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    for name, value in {**quick, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException, RestException
    except ImportError:
        raise errors.NotConfigured("this command needs MLflow; install pyfunq[worker]") from None
    try:
        yield MlflowClient(tracking_uri=settings.mlflow, registry_uri=settings.mlflow)
    except RestException as exc:
        if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise errors.ModelNotFound(_first_line(exc)) from exc
        if exc.error_code == "INVALID_PARAMETER_VALUE":
            raise errors.InvalidInput(_first_line(exc)) from exc
        raise errors.RegistryUnavailable(f"the MLflow server answered {exc.error_code}") from exc
    except MlflowException as exc:
        raise errors.RegistryUnavailable from exc


def _resolutions(settings: Settings) -> list[Resolution]:
    import asyncio

    async def ask() -> list[Resolution]:
        async with Ledger.open(settings.database, max_connections=1) as ledger:
            return await ledger.resolutions()

    return asyncio.run(ask())


def _model(model: Any) -> dict[str, Any]:
    latest = list(model.latest_versions or [])
    return {
        "name": model.name,
        "latest": max((int(v.version) for v in latest), default=None),
        "stages": {v.current_stage: int(v.version) for v in latest if v.current_stage != "None"},
        "aliases": {alias: int(v) for alias, v in sorted(model.aliases.items())},
        "tags": dict(model.tags),
    }


def _use(resolution: Resolution) -> dict[str, Any]:
    return {
        "model_uri": resolution.model_uri,
        "version": resolution.version.version,
        "since": resolution.resolved_at,
        "confirmed": resolution.checked_at,
    }


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [""])[0][:300]
