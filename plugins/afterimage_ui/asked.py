"""What a page is asked for in its address: the filter of predictions, which Browse, Export and the API share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

from tasks.cache.pages.filters import Filter
from tasks.cache.pages.gallery import Place

Value = TypeVar("Value")

ORDERS = ("key", "uncertain")

# In the order in which an address names them.
NAMES = (
    "model",
    "label",
    "score_from",
    "score_to",
    "margin_from",
    "margin_to",
    "since",
    "before",
    "prefix",
    "contains",
    "deleted",
    "order",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """`values` are the parameters as they were given, without empty ones; `problems` says which could not be used, and why."""

    filter: Filter
    order: str
    values: dict[str, str]
    problems: tuple[str, ...]

    def query(self, **more: str | None) -> str:
        """The parameters again, as an address has them, with others in their place; None takes one out."""
        named = {**self.values, **more}
        return urlencode({name: value for name, value in named.items() if value is not None})


def asked_of(parameters: Mapping[str, str]) -> Asked:
    """Read the parameters of an address. What cannot be read is left out of the filter and told of."""
    values = {name: parameters[name] for name in NAMES if parameters.get(name)}
    problems: list[str] = []

    def read(name: str, reading: Callable[[str], Value], expected: str) -> Value | None:
        if name not in values:
            return None
        try:
            return reading(values[name])
        except (ValueError, OverflowError):
            problems.append(f"{name} is {values[name]!r}, which was left out. Expected {expected}.")
            return None

    share = "a number from 0 to 1, such as 0.8"
    day = "a day in UTC, such as 2026-11-26"
    text = "text without NUL characters"
    asked = Filter(
        label=read("label", _text, text),
        score_from=read("score_from", _share, share),
        score_to=read("score_to", _share, share),
        margin_from=read("margin_from", _share, share),
        margin_to=read("margin_to", _share, share),
        since=read("since", _day, day),
        before=read("before", _day, day),
        prefix=read("prefix", _text, text) or "",
        contains=read("contains", _text, text) or "",
        deleted=read("deleted", _flag, "1, or nothing") or False,
    )
    order = read("order", _order, " or ".join(ORDERS)) or ORDERS[0]
    return Asked(asked, order, values, tuple(problems))


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError
    return value


def _share(value: str) -> float:
    number = float(value)
    if not (math.isfinite(number) and 0 <= number <= 1):
        raise ValueError
    return number


def _day(value: str) -> datetime:
    return datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC)


def _flag(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError
    return value == "1"


def _order(value: str) -> str:
    if value not in ORDERS:
        raise ValueError
    return value


def written_place(after: Any, order: str) -> str | None:
    """Where the next page begins, as its address has it: a key, or a JSON list of margin, digest and key."""
    if after is None or order == "key":
        return after if after is None else str(after)
    return json.dumps([after.margin, after.digest.hex(), after.key])


def place_of(text: str | None, order: str) -> Any:
    """The other way round. Raises ValueError for what no page has written."""
    if not text or order == "key":
        return _text(text) if text else None
    found = json.loads(text)
    margin, digest, key = found if isinstance(found, list) and len(found) == 3 else (None, None, None)
    if not isinstance(margin, int | float) or not isinstance(digest, str) or not isinstance(key, str | None):
        raise ValueError
    return Place(float(margin), bytes.fromhex(digest), key if key is None else _text(key))
