"""Whether bytes are those of their ETag, where nothing else protects them on their way.

Over TLS no bit can flip unseen. Over plain HTTP only TCP's sum of 16 bits stands guard, and a picture with a wrong bit in it
may decode: its prediction would be kept for ever. So there the MD5 is compared where an ETag has the form of one.
Some stores have ETags of that form which are none. So a difference is only a doubt: the object is read once more, and what
comes twice alike is believed. After three such objects in a row the ETags of that store are believed to be something else.
"""

from __future__ import annotations

import hashlib
import re

from tasks.storage.base import Blob

STRANGERS_IN_A_ROW = 3

_MD5 = re.compile(r"[0-9a-f]{32}")


class EtagCheck:
    """For one bucket; several threads may share it, for its count need not be exact."""

    def __init__(self, *, is_wanted: bool) -> None:
        self._strangers = 0 if is_wanted else STRANGERS_IN_A_ROW

    def doubts(self, blob: Blob) -> bool:
        """Whether the bytes are not those that the ETag seems to tell of."""
        if self._strangers >= STRANGERS_IN_A_ROW or not _MD5.fullmatch(blob.etag):
            return False
        if hashlib.md5(blob.data, usedforsecurity=False).hexdigest() == blob.etag:
            self._strangers = 0
            return False
        return True

    def believe(self) -> None:
        """The same bytes came twice: this ETag is no MD5 of them."""
        self._strangers += 1
