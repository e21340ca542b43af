"""Buckets: keys in the byte order of their UTF-8, objects, and multipart uploads.

Reads and listings see every write at once, as on AWS since 2020. `LastModified` of a multipart upload is the moment at which
it began, as on AWS and on no other server: so an object may appear with a date long past.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, overload

SYNTHETIC = "keys-"
EPOCH = datetime(2026, 3, 1, 6, tzinfo=UTC)


@dataclass(frozen=True)
class Stored:
    """One object. `etag` is without quotes."""

    data: bytes
    etag: str
    modified: datetime


@dataclass
class Upload:
    """A multipart upload that is under way."""

    key: bytes
    began: datetime
    parts: dict[int, bytes] = field(default_factory=dict)


class Bucket(Protocol):
    """What a bucket can be asked."""

    @property
    def keys(self) -> Sequence[bytes]:
        """All keys in byte order."""
        ...

    def get(self, key: bytes) -> Stored | None:
        """The object under a key."""
        ...


class SyntheticKeys(Sequence[bytes]):
    """000000000.png, 000000001.png, ...: as many keys as wanted, none of them kept."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        if isinstance(at, slice):
            return [b"%09d.png" % number for number in range(*at.indices(self._count))]
        if not 0 <= at < self._count:
            raise IndexError(at)
        return b"%09d.png" % at


class SyntheticBucket:
    """A bucket that holds its keys' names as objects, made when they are asked for: O(1) memory."""

    def __init__(self, count: int) -> None:
        self.keys: Sequence[bytes] = SyntheticKeys(count)

    def get(self, key: bytes) -> Stored | None:
        """The object under a key."""
        at = bisect_left(self.keys, key)
        return stored(key, EPOCH) if at < len(self.keys) and self.keys[at] == key else None


class FilledBucket:
    """A bucket that was filled by somebody. What was deleted with a marker answers in its own way."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._objects: dict[bytes, Stored] = {}
        self.marked: set[bytes] = set()

    @property
    def keys(self) -> Sequence[bytes]:
        """All keys in byte order."""
        return self._keys

    def get(self, key: bytes) -> Stored | None:
        """The object under a key."""
        return self._objects.get(key)

    def put(self, key: bytes, found: Stored) -> None:
        """Write or overwrite an object."""
        if key not in self._objects:
            insort(self._keys, key)
        self._objects[key] = found
        self.marked.discard(key)

    def delete(self, key: bytes, *, marker: bool) -> None:
        """Remove an object; with a marker as in a bucket with versions."""
        if self._objects.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]
        if marker:
            self.marked.add(key)


class Buckets:
    """All buckets; those called keys-N are there from the start. `clock` holds time still where it is set."""

    def __init__(self) -> None:
        self._filled: dict[str, FilledBucket] = {}
        self._uploads: dict[str, Upload] = {}
        self.clock: datetime | None = None

    def find(self, name: str) -> Bucket | None:
        """The bucket of a name, if there is one."""
        if name.startswith(SYNTHETIC) and name.removeprefix(SYNTHETIC).isdigit():
            return SyntheticBucket(int(name.removeprefix(SYNTHETIC)))
        return self._filled.get(name)

    def filled(self, name: str) -> FilledBucket:
        """A bucket to write to; it is made where it is missing."""
        return self._filled.setdefault(name, FilledBucket())

    def put(self, bucket: str, key: bytes, data: bytes) -> Stored:
        """Write an object now."""
        found = stored(data, self.now())
        self.filled(bucket).put(key, found)
        return found

    def begin(self, key: bytes) -> str:
        """Begin a multipart upload; its number."""
        number = f"upload-{len(self._uploads)}"
        self._uploads[number] = Upload(key, self.now())
        return number

    def add_part(self, upload: str, number: int, data: bytes) -> str:
        """Take a part; its ETag."""
        self._uploads[upload].parts[number] = data
        return _md5(data)

    def complete(self, bucket: str, upload: str) -> Stored:
        """Now the object is there, with the moment at which its upload began."""
        found = self._uploads.pop(upload)
        parts = [found.parts[number] for number in sorted(found.parts)]
        digests = b"".join(hashlib.md5(part).digest() for part in parts)
        whole = Stored(b"".join(parts), f"{_md5(digests)}-{len(parts)}", found.began)
        self.filled(bucket).put(found.key, whole)
        return whole

    def now(self) -> datetime:
        """The moment, in whole seconds as S3 gives it."""
        return (self.clock or datetime.now(UTC)).replace(microsecond=0)


def by_folders(key: bytes) -> bytes:
    """What a store that keeps folders, and goes through them one by one, sorts by."""
    return key.replace(b"/", b"\0")


def page(keys: Sequence[bytes], prefix: bytes, after: bytes, limit: int) -> tuple[list[bytes], bool]:
    """At most `limit` keys under a prefix and behind `after`, and whether more follow."""
    return _page(keys, prefix, after, limit, None)


def page_by_folders(keys: Sequence[bytes], prefix: bytes, after: bytes, limit: int) -> tuple[list[bytes], bool]:
    """The same of a store that goes folder by folder."""
    return _page(sorted(keys, key=by_folders), prefix, after, limit, by_folders)


def _page(
    keys: Sequence[bytes], prefix: bytes, after: bytes, limit: int, order: Callable[[bytes], bytes] | None
) -> tuple[list[bytes], bool]:
    first, last = (prefix, after) if order is None else (order(prefix), order(after))
    start = max(bisect_left(keys, first, key=order), bisect_right(keys, last, key=order) if after else 0)
    found = [key for key in keys[start : start + limit] if key.startswith(prefix)]
    end = start + len(found)
    more = len(found) == limit and end < len(keys) and keys[end].startswith(prefix)
    return found, more


def stored(data: bytes, modified: datetime) -> Stored:
    """An object of one part."""
    return Stored(data, _md5(data), modified)


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
