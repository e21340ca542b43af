"""Rows as a file that is written while it is read: CSV or Parquet, a piece at a time, so that memory does not grow with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from tasks.tables import cell

if TYPE_CHECKING:
    import pyarrow

CSV_ROWS = 1_000
GROUP_ROWS = 10_000

Rows = Iterable[Mapping[str, Any]]


def csv_pieces(kinds: Mapping[str, str], rows: Rows) -> Iterator[bytes]:
    """UTF-8 with the names of the columns first; cells that a spreadsheet would execute have an apostrophe before them."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(kinds)
    for group in _groups(rows, CSV_ROWS):
        writer.writerows([cell(row[name]) for name in kinds] for row in group)
        yield out.getvalue().encode()
        out.seek(0)
        out.truncate()
    yield out.getvalue().encode()  # The names alone, where there were no rows.


def parquet_pieces(kinds: Mapping[str, str], rows: Rows) -> Iterator[bytes]:
    """Typed columns, compressed, in row groups; the end of the file says that it is whole."""
    # Only who exports pays for the import.
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, _type(kind)) for name, kind in kinds.items()])
    out = _Pieces()
    with parquet.ParquetWriter(pyarrow.PythonFile(out, mode="w"), schema, compression="zstd") as writer:
        for group in _groups(rows, GROUP_ROWS):
            writer.write_table(_table(pyarrow.Table, group, schema, kinds))
            yield out.taken()
    yield out.taken()


WRITERS: dict[str, Callable[[Mapping[str, str], Rows], Iterator[bytes]]] = {
    "csv": csv_pieces,
    "parquet": parquet_pieces,
}
TYPES = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


def _groups(rows: Rows, size: int) -> Iterator[list[Mapping[str, Any]]]:
    flowing = iter(rows)
    while group := list(islice(flowing, size)):
        yield group


def _table(
    made: type[pyarrow.Table], group: list[Mapping[str, Any]], schema: pyarrow.Schema, kinds: Mapping[str, str]
) -> pyarrow.Table:
    columns = {
        name: [cell(row[name]) if kind == "json" else row[name] for row in group] for name, kind in kinds.items()
    }
    return made.from_pydict(columns, schema=schema)


def _type(kind: str) -> pyarrow.DataType:
    import pyarrow

    return {
        "text": pyarrow.string(),
        "json": pyarrow.string(),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "flag": pyarrow.bool_(),
        "moment": pyarrow.timestamp("us", tz="UTC"),
        "top_k": pyarrow.list_(pyarrow.struct([("label", pyarrow.string()), ("score", pyarrow.float64())])),
    }[kind]


class _Pieces:
    """What a writer writes into, and others take out of."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._written = 0

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        self._written += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """The pieces are still to be taken."""

    def taken(self) -> bytes:
        """All that was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
