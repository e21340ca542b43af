"""Where a range of keys is cut in two. Nothing is assumed of an alphabet: the store is asked what lies behind a key.

Text is compared by code points, as Python does, which is the byte order of its UTF-8.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

FirstKey = Callable[[str, str | None], str | None]
"""The first key under a prefix behind another one (None: of all); None where there is none. One LIST."""

PROBES = 60
"""How often a store is asked for one cut, at most. About a dozen times are enough where keys are digits and letters."""

MAX_KEY_BYTES = 1_024

# The last of all characters: `x` and this one stand behind all keys that begin with `x`.
_LAST = "\U0010ffff"

# What follows digits, capitals, small letters, ASCII, and what UTF-8 writes in two and in three bytes. Keys in which a place
# is a digit have one there nearly always, so that the end of a range is looked for here first.
_CLASSES = (":", "[", "{", "\x7f", "\u0800", "\U00010000")


def middle(low: str, high: str) -> str | None:
    """A text strictly between two that have no NUL and no surrogate, and itself has neither; None where there is none.

    It is as short as can be: of `img_3999` and `img_4210` it is `img_4`, of `img_0` and `img_9` `img_4`. None as well where it
    would be longer than a key may be.
    """
    if low >= high:
        return None
    shared = _alike(low, high)
    between = _between(low[shared : shared + 1], high[shared])
    if between is not None:
        found = high[:shared] + between
    elif len(high) > shared + 1:
        found = high[: shared + 1]
    elif len(low) > shared:
        rest = _between(low[shared + 1 : shared + 2], _LAST)
        found = low + "\x01" if rest is None else low[: shared + 1] + rest
    else:
        return None
    return found if len(found.encode()) <= MAX_KEY_BYTES else None


def _alike(one: str, other: str) -> int:
    """With how many same characters two texts begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, yours) in pairs if mine != yours), min(len(one), len(other)))


def _between(low: str, high: str) -> str | None:
    """A character between two; an empty `low` stands before all of them."""
    first, last = ord(low) + 1 if low else 1, ord(high) - 1
    for end in _CLASSES:
        if first <= ord(end) <= last:
            return end
    found = (first + last) // 2
    if 0xD800 <= found <= 0xDFFF:
        found = 0xE000 if last >= 0xE000 else 0xD7FF
    return chr(found) if first <= found <= last else None


class _Enough(Exception):
    """So many questions were asked that the answer is not worth more of them."""


class _Range:
    """What lies under a prefix, asked of the store at most PROBES times, and nothing twice."""

    def __init__(self, first_key: FirstKey, prefix: str) -> None:
        self._first_key, self._prefix = first_key, prefix
        self._told: list[tuple[str, str | None]] = []
        self._asked = 0

    def first(self, after: str | None, until: str | None) -> str | None:
        """The first key behind one and up to another, None where there is none."""
        found = self._first(after)
        return None if found is None or (until is not None and found > until) else found

    def _first(self, after: str | None) -> str | None:
        # Between a text and the first key behind it there is nothing: that answers for all texts in there.
        for place, key in self._told:
            if after is not None and place <= after and (key is None or after < key):
                return key
        if self._asked == PROBES:
            raise _Enough
        self._asked += 1
        found = self._first_key(self._prefix, after)
        self._told.append((self._prefix if after is None else after, found))
        return found

    def cut(self, key: str, until: str | None) -> tuple[str, str] | None:
        """A text between a key of the range and `until`, and the first key behind it; None where no key is left there.

        Keys have much in common: how many characters all of them share is found out first, by halving.
        """
        known, beyond = len(self._prefix) if until is None else _alike(key, until), len(key) + 1
        while beyond - known > 1:
            length = (known + beyond) // 2
            if self.first(key[:length] + _LAST, until) is None:
                known = length
            else:
                beyond = length
        end = key[:known] + _LAST
        bound = end if until is None else min(end, until)
        while (at := middle(key, bound)) is not None:
            found = self.first(at, bound)
            if found is not None:
                return at, found
            bound = at
        return None


def cut_points(first_key: FirstKey, prefix: str, low: str | None, high: str | None) -> Iterator[str]:
    """Texts that cut the keys of (low, high] under a prefix, so that there is a key between any two and on both sides of all.

    `low` None stands for the first key of the prefix, `high` None for the last one. The first of them cuts the whole, the next
    ones the halves, and so on as long as somebody takes more: it costs about eight questions, each further one about two. They
    end after PROBES questions. At least two keys stay below the first cut: one alone is often the marker of a folder. Where the
    parts are not of one size whoever is done sooner cuts again. Nothing is cut behind a key that is nearly as long as may be.
    """
    keys = _Range(first_key, prefix)
    try:
        near = keys.first(low, high)
        near = None if near is None else keys.first(near, high)
        if near is None or len(near.encode()) > MAX_KEY_BYTES - len(_LAST.encode()):
            return
        parts: deque[tuple[str, str | None]] = deque([(near, high)])
        while parts:
            key, until = parts.popleft()
            found = keys.cut(key, until)
            if found is not None:
                yield found[0]
                parts += [(key, found[0]), (found[1], until)]
    except _Enough:
        return


def split_point(first_key: FirstKey, prefix: str, low: str | None, high: str | None) -> str | None:
    """The first of the cut_points; None where there is none."""
    return next(cut_points(first_key, prefix, low, high), None)


def is_in_byte_order(first_key: FirstKey, prefix: str) -> bool:
    """Whether a store begins behind the key that it is given, and in byte order: some list folder by folder.

    `x.` stands before `x/y`, and in a store of folders behind all that is in the folder x.
    """
    key = first_key(prefix, None)
    for _ in range(3):
        if key is None:
            return True
        if "/" in key[len(prefix) :]:
            folder = key[: key.index("/", len(prefix))]
            found = first_key(prefix, folder + ".")
            return found is not None and folder + "." < found <= key
        following = first_key(prefix, key)
        if following is not None and following <= key:
            return False
        key = following
    return True


def left(prefix: str, after: str | None, last: str, until: str | None, objects: int) -> float:
    """About how many objects a range still holds of which `objects` are listed, up to `last`.

    Only good for saying which range is the largest: it takes the keys for evenly spread.
    """
    low, high = after or prefix, until or prefix + _LAST
    skip = _alike(low, high)
    start, here, end = (_place(key, skip) for key in (low, last, high))
    done = min(1.0, max(1e-9, (here - start) / (end - start))) if end > start else 1.0
    return objects * (1.0 - done) / done


def _place(key: str, skip: int) -> float:
    """Where a key lies among all that share `skip` characters, from 0 to 1."""
    return sum(min(ord(character), 127) / 128.0**place for place, character in enumerate(key[skip : skip + 6], start=1))
