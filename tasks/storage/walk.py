"""Holds a listing to its order, so that none runs for ever and none ends too early.

S3 gives keys in the byte order of their UTF-8, each one once. A store whose listing turns back, or whose continuation tokens
lead in a circle, would be listed without end; one that says "more follows" and not where would end early, and all behind
that would be taken for deleted. Stores that keep folders (SeaweedFS) go through them one by one: `a/x` comes before `a-b`, and
one such order all the way is as good. Directory buckets (S3 Express) have none: there only circles are looked for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import islice, pairwise

from tasks.errors import TransientStorageError

EMPTY_PAGES = 10_000


# Python compares text by code points, which is the byte order of UTF-8.
def _by_bytes(keys: Sequence[str]) -> Sequence[str]:
    return keys


def _by_folders(keys: Sequence[str]) -> Sequence[str]:
    return [key.replace("/", "\0") for key in keys]


Order = Callable[[Sequence[str]], Sequence[str]]


def _holds(order: Order, keys: Sequence[str]) -> bool:
    """Whether keys grow, each one, in an order: a whole page in one go."""
    ordered = order(keys)
    return all(map(operator.lt, ordered, islice(ordered, 1, None)))


class Walk:
    """One listing, page by page, in O(1) memory. `what` names it in errors; `after` is the key behind which it begins.

    With `by_bytes` no other order is good enough: a part of a divided listing ends at the first key behind its end, so that in
    any other order keys would be lost.
    """

    def __init__(self, what: str, *, is_ordered: bool, after: str | None = None, by_bytes: bool = False) -> None:
        self._what = what
        orders: list[Order] = [_by_bytes] if by_bytes else [_by_bytes, _by_folders]
        self._orders = orders if is_ordered else []
        self._expected = "in byte order" if by_bytes else "in byte order or folder by folder"
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
        line = keys if self._last is None else [self._last, *keys]
        holding = [order for order in self._orders if _holds(order, line)]
        if not holding:
            one, other = self._turn(line)
            raise self._broken(f"turns back: {other!r} follows {one!r}")
        self._orders = holding
        self._last = line[-1] if line else None

    def _turn(self, line: Sequence[str]) -> tuple[str, str]:
        """The first two keys behind which none of the orders holds."""
        orders = self._orders
        for pair in pairwise(line):
            orders = [order for order in orders if _holds(order, pair)]
            if not orders:
                return pair
        raise AssertionError("an order that holds for every pair holds for all")

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

    def unreadable(self, how: str) -> TransientStorageError:
        """The error for the page that follows, whose answer is no page."""
        return TransientStorageError(
            f"The answer for page {self._page + 1} of the listing of {self._what!r} {how}. It is tried again; if it stays, look "
            "at what stands between here and the store (a proxy answers in its place?), then at the store."
        )

    def _broken(self, how: str) -> TransientStorageError:
        return TransientStorageError(
            f"Page {self._page} of the listing of {self._what!r} {how}. Keys must come once each, {self._expected}. "
            "It is tried again; if it stays, this store's ListObjectsV2 is broken: update the store, or ask its makers."
        )
