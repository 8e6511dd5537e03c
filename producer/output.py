"""What the CLI shows: data on stdout, messages and progress on stderr, JSON for programs and tables for people."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

messages = Console(stderr=True, highlight=False, soft_wrap=True)
# Where nobody looks at a terminal, lines are as long as they are.
data = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 10_000)


def say(text: str) -> None:
    """A message for people, on stderr, as it is."""
    messages.print(text, markup=False)


def show_json(value: Any) -> None:
    """One line of JSON on stdout; dataclasses become objects."""
    sys.stdout.write(orjson.dumps(_plain(value), default=str).decode() + "\n")


def show_text(text: str) -> None:
    """Lines of data for people, on stdout, as they are."""
    data.print(Text(text))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    # As text: rich would take `[mm]` in a name for markup, and leave it out.
    table = Table(*(Column(Text(name)) for name in columns), box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    data.print(table)


class Advance(Protocol):
    def __call__(self, done: int, total: int | None = None) -> None: ...


@contextmanager
def progress(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A bar on a terminal, a plain line every tenth elsewhere. Call what it gives with what is done so far."""
    if messages.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            console=messages,
        ) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done, total=None: bar.update(
                task, completed=done, **({} if total is None else {"total": total})
            )
        return
    yield _Lines(title, total, unit)


class _Lines:
    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._shown = -1

    def __call__(self, done: int, total: int | None = None) -> None:
        self._total = total or self._total
        tenth = done * 10 // self._total if self._total else done // 100_000
        if tenth > self._shown:
            self._shown = tenth
            say(f"{self._title}: {done:,}{f' of {self._total:,}' if self._total else ''} {self._unit}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = (f.name for f in dataclasses.fields(value) if not f.name.startswith("_"))
        return {name: _plain(getattr(value, name)) for name in shown}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(value)
