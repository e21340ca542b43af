"""Parquet, one row group at a time. Its keys are as they are, not URL-encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

from tasks.errors import ConfigurationError
from tasks.storage.base import PAGE_OBJECTS, ImageObject

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WANTED = ("key", "size", "last_modified_date", "e_tag", "is_latest", "is_delete_marker")


def pages(data: BinaryIO, columns: Sequence[str], prefix: str, what: str) -> Iterator[list[ImageObject]]:
    """The objects of one file under a prefix. Raises ConfigurationError where it is not as the manifest's `columns` say."""
    import pyarrow

    try:
        for group in _groups(data, [name for name in _WANTED if name in columns]):
            rows = _present(group, prefix)
            for start in range(0, rows.num_rows, PAGE_OBJECTS):
                yield _images(rows.slice(start, PAGE_OBJECTS))
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{what} is not what its manifest says: {error}. Expected Parquet with the columns {', '.join(columns)}. Wait for "
            "the next inventory, or leave out `inventory`."
        ) from None


def _groups(data: BinaryIO, wanted: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(data)
    missing = set(wanted) - set(file.schema_arrow.names)
    if missing:
        raise ValueError(f"it has no column {', '.join(sorted(missing))}")
    for number in range(file.num_row_groups):
        yield file.read_row_group(number, columns=list(wanted))


def _present(group: Any, prefix: str) -> Any:
    """The rows under a prefix that are neither an older version nor a delete marker."""
    import pyarrow
    import pyarrow.compute as compute

    # As bytes: a key that is no UTF-8 is passed over where all such keys are, and must not stop the rest.
    keys = group["key"].cast(pyarrow.binary())
    group = group.set_column(group.schema.get_field_index("key"), "key", keys)
    # S3's keys are UTF-8, and so is the prefix.
    keep = compute.starts_with(keys, prefix.encode("utf-8", "surrogateescape"))
    if "is_latest" in group.schema.names:
        keep = compute.and_(keep, compute.fill_null(group["is_latest"], True))
    if "is_delete_marker" in group.schema.names:
        keep = compute.and_(keep, compute.invert(compute.fill_null(group["is_delete_marker"], False)))
    return group.filter(keep)


def _images(rows: Any) -> list[ImageObject]:
    import pyarrow

    moments = rows["last_modified_date"].cast(pyarrow.timestamp("ms", "UTC"), safe=False).cast(pyarrow.int64())
    names = ("key", "e_tag", "size")
    columns = [*(rows[name].to_pylist() for name in names), moments.to_pylist()]
    return [_image(*values) for values in zip(*columns, strict=True)]


def _image(key: bytes, etag: str | None, size: int | None, moment: int | None) -> ImageObject:
    name = key.decode("utf-8", "surrogateescape")
    if not etag or size is None or moment is None:
        raise ValueError(f"{name!r} has no ETag, size or date")
    return ImageObject(name, etag.strip('"'), size, _EPOCH + timedelta(milliseconds=moment))
