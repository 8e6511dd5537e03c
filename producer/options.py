"""Options that several commands share."""

from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")]
TimeLimitOption = Annotated[float | None, typer.Option(help="Seconds that predicting a job may take.")]
RetriesOption = Annotated[int, typer.Option(min=0, max=20, help="How often a job that fails is tried again.")]
FallbackFlag = Annotated[
    bool,
    typer.Option("--fallback-latest", help="A stage or alias that no version has stands for the latest version."),
]


def fallback(wanted: bool) -> dict[str, Any]:
    """What the flag changes of the settings: without it, they are the environment's."""
    return {"fallback_latest": True} if wanted else {}
