"""Backlogs by reference: jobs that name a Parquet file's rows instead of holding them."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import orjson

from pyfunq.backlog import told_of
from pyfunq.errors import FileUnreadable, InvalidInput, NotConfigured
from pyfunq.input_roots import InputFile, InputRoots, Stamp
from pyfunq.inputs import EncodedInput, check_names, encode_params
from pyfunq.parquet_files import check_parquet, column_names, footer_digest, parquet_file
from pyfunq.signature import Signature

_ENDINGS = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class Reference:
    """Rows `offset` to `offset + rows` of consecutive row groups, and the state that their file was in."""

    place: str
    stamp: Stamp
    footer: str
    groups: tuple[int, int]
    """The first, and how many."""
    offset: int
    rows: int

    def payload(self) -> bytes:
        version = "mtime_ns" if isinstance(self.stamp.version, int) else "etag"
        return orjson.dumps(
            {
                "file": self.place,
                "size": self.stamp.size,
                version: self.stamp.version,
                "footer": self.footer,
                "groups": self.groups,
                "offset": self.offset,
                "rows": self.rows,
            }
        )

    @classmethod
    def of(cls, payload: bytes) -> "Reference":
        """Raises InvalidInput."""
        try:
            body = orjson.loads(payload)
            first, count = body["groups"]
            version = body["mtime_ns"] if "mtime_ns" in body else body["etag"]
            found = cls(
                body["file"], Stamp(body["size"], version), body["footer"], (first, count), body["offset"], body["rows"]
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            raise InvalidInput("the stored input is not a reference") from None
        numbers = (found.stamp.size, *found.groups, found.offset, found.rows)
        if not all(type(n) is int and n >= 0 for n in numbers) or not found.groups[1] or not found.rows:
            raise InvalidInput("the stored input is not a reference")
        if type(found.place) is not str or type(found.footer) is not str or type(version) not in (int, str):
            raise InvalidInput("the stored input is not a reference")
        return found


@dataclass(frozen=True, slots=True)
class _Checked:
    """A file as it was when it was checked."""

    place: str
    stamp: Stamp
    footer: str


@dataclass(frozen=True, slots=True)
class ReferencedRows:
    """A Parquet file, or a folder of them, whose rows jobs may name; all of it was checked by the footers."""

    rows: int
    checksum: str
    """Of the names, sizes, times and footers of all its files."""
    _files: tuple[_Checked, ...]
    _columns: int
    _open: Callable[[str], InputFile]

    def chunks(
        self, chunk_rows: int, max_bytes: int, params: Mapping[str, Any] | None = None
    ) -> Iterator[EncodedInput]:
        """References to `chunk_rows` rows or fewer each, in order: parts of a row group, or several whole ones.

        Fewer where decoding them would take more than about `max_bytes`. Raises FileUnreadable for a file that
        was changed since it was checked.
        """
        encoded = encode_params(params)
        for file in self._files:
            with told_of(file.place):
                groups = list(self._groups(file))
            for first, count, offset, rows in _cut(groups, chunk_rows, max_bytes):
                named = Reference(file.place, file.stamp, file.footer, (first, count), offset, rows)
                yield EncodedInput("reference", named.payload(), encoded, rows)

    def _groups(self, file: _Checked) -> Iterator[tuple[int, int]]:
        """(rows, bytes) of each row group."""
        opened = self._open(file.place)
        with opened.file:
            if opened.stamp != file.stamp or footer_digest(opened.file, file.stamp.size, file.place) != file.footer:
                raise FileUnreadable(f"{file.place} was changed after it was checked")
            with parquet_file(opened.file) as parquet:
                for number in range(parquet.metadata.num_row_groups):
                    group = parquet.metadata.row_group(number)
                    size = group.total_byte_size * self._columns // group.num_columns
                    # A column of equal values takes no room in the file, and 8 bytes a row in memory.
                    yield group.num_rows, max(size, 8 * self._columns * group.num_rows)


def open_references(source: Any, roots: InputRoots, *, signature: Signature | None = None) -> ReferencedRows:
    """Checks what is to be submitted by reference: a Parquet file, a folder of them (by name), or a URL of either.

    Columns that the signature does not know are left where they are. Raises InputNotAllowed, NotConfigured,
    FileUnreadable, InputUnavailable, and InvalidInput for content that does not fit the signature.
    """
    if not isinstance(source, str | os.PathLike):
        raise InvalidInput(f"by reference goes a path or URL, got {type(source).__name__}", field="source")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise NotConfigured("backlogs need pyarrow: pip install 'pyfunq[analytics]'") from None
    place = roots.canonical(os.fspath(source) if not isinstance(source, str) else source)
    rows, names = 0, frozenset[str]()
    files: list[_Checked] = []
    for name in _files_of(place, roots):
        with told_of(name):
            checked, found, columns = _checked(name, roots, signature)
        if files and columns != names:
            raise InvalidInput(f"{name} has other columns than the first file")
        names, rows = columns, rows + found
        files.append(checked)
    if not rows:
        raise FileUnreadable(f"{place} has no rows")
    digest = hashlib.blake2b(repr([(f.place, f.stamp, f.footer) for f in files]).encode(), digest_size=16)
    return ReferencedRows(rows, digest.hexdigest(), tuple(files), len(names), roots.open)


def _files_of(place: str, roots: InputRoots) -> list[str]:
    with told_of(place):
        found = roots.listing(place)
        if found is None:
            if not place.lower().endswith(_ENDINGS):
                raise FileUnreadable(f"{place}: only Parquet files go by reference: .parquet, .pq or a folder of these")
            return [place]
        shown = [name for name in found if not PurePosixPath(name).name.startswith((".", "_"))]
        files = [name for name in shown if name.lower().endswith(_ENDINGS)]
        for name in shown:
            if name not in files and roots.listing(name) is not None:
                raise FileUnreadable(f"{place} has a folder within, {PurePosixPath(name).name}: submit each by itself")
    if not files:
        raise FileUnreadable(f"{place} holds no .parquet file")
    return files


def _checked(place: str, roots: InputRoots, signature: Signature | None) -> tuple[_Checked, int, frozenset[str]]:
    opened = roots.open(place)
    with opened.file:
        if not opened.stamp.size:
            raise FileUnreadable(f"{place} is empty")
        checked = _Checked(place, opened.stamp, footer_digest(opened.file, opened.stamp.size, place))
        with parquet_file(opened.file) as parquet:
            names = wanted_columns(column_names(parquet), signature)
            check_names(names, "the file")
            check_parquet(parquet, names, opened.stamp.size, signature, place)
            return checked, parquet.metadata.num_rows, frozenset(names)


def wanted_columns(names: Sequence[str], signature: Signature | None) -> list[str]:
    """Those of a file's columns that the model takes; all, where the signature does not name them."""
    if signature is None or not signature.by_name:
        return list(names)
    wanted = [name for name in names if name in signature.by_name]
    signature.check_columns(wanted)
    return wanted


def _cut(groups: Sequence[tuple[int, int]], chunk_rows: int, max_bytes: int) -> Iterator[tuple[int, int, int, int]]:
    """(first group, groups, offset, rows) of each chunk, in order."""
    first = count = rows = size = 0
    for number, (group_rows, group_bytes) in enumerate(groups):
        if count and (rows + group_rows > chunk_rows or size + group_bytes > max_bytes):
            yield first, count, 0, rows
            count = rows = size = 0
        if group_rows <= chunk_rows and group_bytes <= max_bytes:
            if group_rows:
                first = first if count else number
                count, rows, size = number - first + 1, rows + group_rows, size + group_bytes
            continue
        part = max(1, min(chunk_rows, group_rows * max_bytes // group_bytes))
        for offset in range(0, group_rows, part):
            yield number, 1, offset, min(part, group_rows - offset)
    if count:
        yield first, count, 0, rows
