"""Holds a listing to its order, so that none runs for ever and none ends too early.

S3 gives keys in the byte order of their UTF-8, each one once. A store whose listing turns back, or whose continuation tokens
lead in a circle, would be listed without end; one that says "more follows" and not where would end early, and all behind
that would be taken for deleted. Stores that keep folders (SeaweedFS) go through them one by one: `a/x` comes before `a-b`, and
one such order all the way is as good. Directory buckets (S3 Express) have none: there only circles are looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from tasks.errors import TransientStorageError

EMPTY_PAGES = 10_000


def _by_bytes(key: str) -> str:
    return key


def _by_folders(key: str) -> str:
    return key.replace("/", "\0")


class Walk:
    """One listing, page by page, in O(1) memory. `what` names it in errors; `after` is the key behind which it begins."""

    def __init__(self, what: str, *, is_ordered: bool, after: str | None = None) -> None:
        self._what = what
        # Python compares text by code points, which is the byte order of UTF-8.
        self._orders: list[Callable[[str], str]] = [_by_bytes, _by_folders] if is_ordered else []
        self._is_ordered = is_ordered
        self._page = 0
        self._empty = 0
        self._last = after
        self._kept: str | None = None
        self._renewal = 1

    def follow(self, keys: Sequence[str], more: bool, token: str | None) -> str | None:
        """Take a page's keys; the token of the next page, None at the end. Raises TransientStorageError."""
        self._page += 1
        if self._is_ordered:
            self._check_order(keys)
        if not more:
            return None
        if not token:
            raise self._broken("says that more follows, and not where")
        self._check_circle(keys, token)
        return token

    def _check_order(self, keys: Sequence[str]) -> None:
        before = [] if self._last is None else [self._last]
        for one, other in pairwise([*before, *keys]):
            self._orders = [order for order in self._orders if order(one) < order(other)]
            if not self._orders:
                raise self._broken(f"turns back: {other!r} follows {one!r}")
        self._last = keys[-1] if keys else self._last

    def _check_circle(self, keys: Sequence[str], token: str) -> None:
        """Brent's way to find a circle: one mark is kept, and replaced after 1, 2, 4, ... pages."""
        self._empty = 0 if keys else self._empty + 1
        mark = keys[0] if keys else token
        if mark == self._kept:
            raise self._broken(f"leads in a circle: {mark!r} was there before")
        if self._empty > EMPTY_PAGES:
            raise self._broken(f"is the {self._empty}th in a row without a key")
        if self._page == self._renewal:
            self._kept, self._renewal = mark, 2 * self._renewal

    def _broken(self, how: str) -> TransientStorageError:
        return TransientStorageError(
            f"Page {self._page} of the listing of {self._what!r} {how}. Keys must come once each, in byte order or folder by "
            "folder. It is tried again; if it stays, this store's ListObjectsV2 is broken: update the store, or ask its makers."
        )
