"""The rows that jobs name instead of holding: read from files under the operator's roots that are as they were."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa

from pyfunq.entries import ClaimedJob
from pyfunq.errors import FileUnreadable, InputChanged, InputUnavailable, InvalidInput
from pyfunq.input_roots import InputFile, InputRoots
from pyfunq.parquet_files import column_names, footer_digest, parquet_file
from pyfunq.references import Reference, wanted_columns
from pyfunq.signature import Signature
from worker.loading import LoadedModel

_OPEN_FILES = 8
"""Kept open by a process, each with its footer and at most a block of rows."""


class ReferenceReader:
    """Reads what references name, for the threads of a process.

    Jobs of one file that come in its order decode each row group once.
    """

    def __init__(self, roots: InputRoots) -> None:
        self._roots = roots
        self._lock = threading.Lock()
        self._idle: list[_Source] = []  # the one used last at the end

    def read(self, job: ClaimedJob, model: LoadedModel) -> pa.Table:
        """The rows that the job names, of the columns and types that the model takes.

        Raises InputNotAllowed, InputChanged (also for a file that is gone), InputUnavailable, FileUnreadable,
        InvalidInput.
        """
        reference = Reference.of(job.input)
        signature = _signature(model.signature)
        with _told_of(reference.place):
            source = self._take(reference) or _Source(self._roots.open(reference.place), reference)
            try:
                table = _unchanged(source, reference, signature)
            except BaseException:
                source.close()
                raise
            self._give_back(source)
        return table if signature is None else signature.conform_arrow(table)

    def close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def _take(self, reference: Reference) -> "_Source | None":
        """An open file that nobody uses now; of several the one that is nearest before the rows that are wanted."""
        with self._lock:
            fitting = [source for source in self._idle if source.is_of(reference)]
            if not fitting:
                return None
            nearest = max(fitting, key=lambda source: source.nearness(reference))
            self._idle.remove(nearest)
            return nearest

    def _give_back(self, source: "_Source") -> None:
        with self._lock:
            self._idle.append(source)
            if len(self._idle) > _OPEN_FILES:
                self._idle.pop(0).close()


class _Source:
    """An open Parquet file, and the row group that is being read from it part by part."""

    def __init__(self, opened: InputFile, reference: Reference) -> None:
        self.input = opened
        self._place = reference.place
        try:
            _check(opened, reference)
            self._footer = footer_digest(opened.file, opened.stamp.size, reference.place)
            if self._footer != reference.footer:
                raise _changed(reference.place)
            self._parquet = parquet_file(opened.file)
            self._names = column_names(self._parquet)
        except BaseException:
            opened.file.close()
            raise
        self._parts: _Parts | None = None

    def close(self) -> None:
        self._parquet.close()
        self.input.file.close()

    def is_of(self, reference: Reference) -> bool:
        same = (self._place, self.input.stamp, self._footer) == (reference.place, reference.stamp, reference.footer)
        return same and not self.input.touched()

    def nearness(self, reference: Reference) -> int:
        """Rows of the wanted group that it has passed already; -1 where it must begin anew."""
        parts = self._parts
        if parts is None or parts.groups.start != reference.groups[0] or parts.position > reference.offset:
            return -1
        return parts.position

    def rows(self, reference: Reference, signature: Signature | None) -> pa.Table:
        names = wanted_columns(self._names, signature)
        first, count = reference.groups
        meta = self._parquet.metadata
        if first + count > meta.num_row_groups:
            raise InvalidInput("the stored input names row groups that the file does not have")
        held = sum(meta.row_group(group).num_rows for group in range(first, first + count))
        if reference.offset + reference.rows > held:
            raise InvalidInput("the stored input names rows that the file does not have")
        if reference.rows == held:
            table = self._parquet.read_row_groups(list(range(first, first + count)), columns=names, use_threads=False)
        else:
            table = self._part(range(first, first + count), names, reference)
        return table.select(names).replace_schema_metadata(None)

    def _part(self, groups: range, names: list[str], reference: Reference) -> pa.Table:
        parts = self._parts
        if parts is None or (parts.groups, parts.names) != (groups, names) or parts.position > reference.offset:
            batches = self._parquet.iter_batches(
                reference.rows, row_groups=list(groups), columns=names, use_threads=False
            )
            parts = self._parts = _Parts(groups, names, batches)
        table = parts.take(reference.offset, reference.rows)
        if reference.offset + reference.rows == sum(self._parquet.metadata.row_group(g).num_rows for g in groups):
            self._parts = None
        return table


class _Parts:
    """Row groups that are decoded once, from their beginning on; what is passed over is dropped."""

    def __init__(self, groups: range, names: list[str], batches: Iterator[pa.RecordBatch]) -> None:
        self.groups = groups
        self.names = names
        self.position = 0
        self._batches = batches
        self._held: pa.RecordBatch | None = None

    def take(self, offset: int, rows: int) -> pa.Table:
        """Rows from `offset`, which is not before `position`."""
        taken: list[pa.RecordBatch] = []
        end = offset + rows
        while self.position < end:
            batch = self._held if self._held is not None else next(self._batches)
            skipped = min(batch.num_rows, max(0, offset - self.position))
            wanted = min(batch.num_rows, end - self.position) - skipped
            if wanted:
                taken.append(batch.slice(skipped, wanted))
            self.position += skipped + wanted
            rest = batch.num_rows - skipped - wanted
            self._held = batch.slice(skipped + wanted) if rest else None
        return pa.Table.from_batches(taken)


def _unchanged(source: _Source, reference: Reference, signature: Signature | None) -> pa.Table:
    """The rows, of a file that is as it was also when they have been read."""
    try:
        table = source.rows(reference, signature)
    except (pa.ArrowException, OSError):
        _check(source.input, reference)
        raise
    _check(source.input, reference)
    return table


def _check(opened: InputFile, reference: Reference) -> None:
    if opened.stamp != reference.stamp or opened.now() != reference.stamp:
        raise _changed(reference.place)


def _changed(place: str) -> InputChanged:
    return InputChanged(f"{place} was changed after it was submitted")


@lru_cache(maxsize=64)
def _signature(text: str | None) -> Signature | None:
    return Signature.from_json(text) if text else None


@contextmanager
def _told_of(place: str) -> Iterator[None]:
    """What is gone or damaged will not come back; any other trouble with reading may pass."""
    try:
        yield
    except FileNotFoundError:
        raise InputChanged(f"{place} is gone since it was submitted") from None
    except OSError as exc:
        # Arrow says OSError, without a number, for what it cannot decode.
        if exc.errno is None:
            raise FileUnreadable(f"{place} cannot be read as parquet: it is damaged") from exc
        raise InputUnavailable(f"{place} cannot be read now ({type(exc).__name__}, {exc.strerror})") from exc
    except pa.ArrowException as exc:
        raise FileUnreadable(f"{place} cannot be read as parquet: it is damaged") from exc
