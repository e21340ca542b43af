"""Gzipped CSV without a header. Its keys are URL-encoded, as S3 does it: `+` is a space, `%2B` a plus."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import BinaryIO
from urllib.parse import unquote_plus

from tasks.errors import ConfigurationError
from tasks.storage.base import PAGE_OBJECTS, ImageObject


def pages(data: BinaryIO, columns: Sequence[str], prefix: str, what: str) -> Iterator[list[ImageObject]]:
    """The objects of one file under a prefix. Raises ConfigurationError, which names the row that is not as `columns` say."""
    reader = _Reader(columns, prefix)
    done = 0
    try:
        with gzip.open(data, "rt", encoding="utf-8", errors="surrogateescape", newline="") as text:
            rows = csv.reader(text)
            while batch := list(islice(rows, PAGE_OBJECTS)):
                page = []
                for row in batch:
                    done += 1
                    if (image := reader.image(row)) is not None:
                        page.append(image)
                if page:
                    yield page
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{what} is not what its manifest says, at row {max(done, 1)}: {error}. Expected gzipped CSV with the columns "
            f"{', '.join(columns)}. Wait for the next inventory, or leave out `inventory`."
        ) from None


class _Reader:
    """Rows -> objects, for one order of the columns."""

    def __init__(self, columns: Sequence[str], prefix: str) -> None:
        self._width = len(columns)
        self._prefix = prefix
        self._key, self._size, self._modified, self._etag = (
            columns.index(name) for name in ("Key", "Size", "LastModifiedDate", "ETag")
        )
        self._latest = columns.index("IsLatest") if "IsLatest" in columns else None
        self._marker = columns.index("IsDeleteMarker") if "IsDeleteMarker" in columns else None

    def image(self, row: Sequence[str]) -> ImageObject | None:
        """None for what lies elsewhere, for an older version and for a delete marker. Raises ValueError."""
        if len(row) != self._width:
            raise ValueError(f"it has {len(row)} columns and not {self._width}")
        key = unquote_plus(row[self._key], errors="surrogateescape")
        if not key.startswith(self._prefix) or self._is_past(row):
            return None
        moment = datetime.fromisoformat(row[self._modified])
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        etag = row[self._etag].strip('"')
        if not etag:
            raise ValueError(f"{key!r} has no ETag")
        return ImageObject(key, etag, int(row[self._size]), moment)

    def _is_past(self, row: Sequence[str]) -> bool:
        if self._latest is not None and row[self._latest].lower() == "false":
            return True
        return self._marker is not None and row[self._marker].lower() == "true"
