"""The objects of the synthetic bucket. Number n, from 0 to 999,999,999, has

    key            raw/000012/000123456.jpg: a folder for every 10,000, and keys in byte order as numbers are
    etag           the first 29 hexadecimal digits of the MD5 of n / 1000, and three digits of n % 1000: as cheap as one MD5
                   for a thousand keys, and no two alike
    size           100,000 to 196,903 bytes, by n % 1000
    last_modified  a second later for every thousand

All keys are equally long, and so is all else that is written of an object: a block of entries is one picture with fields in it.

`SQL` gives the same rows on PostgreSQL, so that a ledger of any size can be made without a listing.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import overload

from tasks.storage import ImageObject

LIMIT = 10**9
BLOCK = 1_000
FIRST_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)

# With a bigint n, as from generate_series(0, 9999999) AS n; LPAD cuts what is too long, so n stays below LIMIT.
SQL = {
    "key": "'raw/' || lpad((n / 10000)::text, 6, '0') || '/' || lpad(n::text, 9, '0') || '.jpg'",
    "etag": "left(md5((n / 1000)::text), 29) || lpad((n % 1000)::text, 3, '0')",
    "size": "100000 + (n % 1000) * 97",
    "last_modified": "timestamptz '2026-01-01 00:00:00+00' + (n / 1000) * interval '1 second'",
}


def key_of(number: int) -> str:
    """The key of an object."""
    return f"raw/{number // 10_000:06}/{number:09}.jpg"


def etag_of(number: int) -> str:
    """Its ETag, without quotes."""
    digest = hashlib.md5(str(number // BLOCK).encode(), usedforsecurity=False).hexdigest()
    return f"{digest[:29]}{number % BLOCK:03}"


def size_of(number: int) -> int:
    """Its bytes."""
    return 100_000 + number % BLOCK * 97


def modified_of(number: int) -> datetime:
    """When it was written."""
    return FIRST_MOMENT + timedelta(seconds=number // BLOCK)


def object_of(number: int) -> ImageObject:
    """The object as it is listed."""
    return ImageObject(key_of(number), etag_of(number), size_of(number), modified_of(number))


class Keys(Sequence[str]):
    """All keys of a bucket of so many objects, none of them kept."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [key_of(number) for number in range(*at.indices(self._count))]
        if not 0 <= at < self._count:
            raise IndexError(at)
        return key_of(at)


@lru_cache(maxsize=1_000)
def numbers_under(count: int, prefix: str) -> range:
    """The numbers of the objects under a prefix, in a bucket of so many."""
    keys = Keys(count)
    return range(bisect_left(keys, prefix), bisect_left(keys, prefix + "\U0010ffff"))


def first_behind(count: int, key: str) -> int:
    """The number of the first object behind a key; `count` where none is."""
    return bisect_right(Keys(count), key)
