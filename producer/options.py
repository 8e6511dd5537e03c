"""Options that several commands share."""

from typing import Annotated

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")]
TimeLimitOption = Annotated[float | None, typer.Option(help="Seconds that predicting a job may take.")]
RetriesOption = Annotated[int, typer.Option(min=0, max=20, help="How often a job that fails is tried again.")]
