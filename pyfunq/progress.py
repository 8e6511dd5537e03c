"""Progress bars: on stderr, for people only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[int, int | None], None]
"""Called with how much is done, and of how much, None where that is not known."""


@contextmanager
def progress_bar(what: str, *, shown: bool, total: int | None = None) -> Iterator[Show]:
    """A bar while the block runs, where it is wanted and stderr is a terminal; else what it gives does nothing."""
    if not shown or not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done, of: progress.update(task, completed=done, total=of)
