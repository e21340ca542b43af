"""No time is printed for a wrong answer: every contestant's rows are held against eager torch's before it may start."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path


class Disagreement(Exception):
    """A contestant gives other answers than it may."""


@dataclass(frozen=True)
class Answer:
    """What a contestant stored for one photograph: the best label, and the five best scores in falling order."""

    label: int
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Bar:
    """How far answers may be from eager torch's: share of equal top-1 labels at least, difference of scores at most."""

    share: float
    difference: float


EXACT = Bar(share=1.0, difference=1e-3)
# Another decoder, or the whole picture resized as float: the published forms of Ray Data and Daft.
OTHER_PIXELS = Bar(share=0.95, difference=1.0)
INT8 = Bar(share=0.85, difference=1.0)
# The labels of untrained weights mean nothing and lie close together: their agreement is told, and no bar is set.
UNTRAINED_INT8 = Bar(share=0.0, difference=1.0)


@dataclass(frozen=True)
class Agreement:
    """How far they are."""

    images: int
    same: int
    difference: float

    @property
    def share(self) -> float:
        """Equal top-1 labels, of 1."""
        return self.same / self.images

    def __str__(self) -> str:
        return f"top-1 as eager torch on {self.same} of {self.images}, scores within {self.difference:.1e}"


def agreement(
    found: Mapping[str, Answer], expected: Mapping[str, Answer], only: Collection[str] | None = None
) -> Agreement:
    """Compare answers key by key, of all photographs or `only` of some. Raises Disagreement where keys differ."""
    if found.keys() != expected.keys():
        missing, surplus = len(expected.keys() - found.keys()), len(found.keys() - expected.keys())
        raise Disagreement(f"{missing} photographs have no row, and {surplus} rows no photograph")
    keys = list(expected) if only is None else [key for key in expected if key in only]
    if not keys:
        raise Disagreement("there is nothing to compare")
    same = sum(found[key].label == expected[key].label for key in keys)
    difference = max(_difference(found[key].scores, expected[key].scores) for key in keys)
    return Agreement(len(keys), same, difference)


def demand(name: str, seen: Agreement, bar: Bar) -> None:
    """Raises Disagreement where the answers are too far away. A score that is not a number is too far."""
    if seen.share < bar.share or not seen.difference <= bar.difference:
        raise Disagreement(
            f"{name}: {seen}; at least {bar.share:.0%} and {bar.difference:g} were asked. No time is taken of a wrong answer."
        )


def _difference(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    if len(left) != len(right):
        return float("inf")
    differences = [abs(one - other) for one, other in zip(left, right, strict=True)]
    return max((float("inf") if value != value else value for value in differences), default=float("inf"))


def read_answers(database: Path) -> dict[str, Answer]:
    """{key: answer} of a SQLite file, ours or a peer's."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        ours = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'v_prediction'").fetchone()
        rows = connection.execute(f"SELECT key, label_index, top_k FROM {'v_prediction' if ours else 'prediction'}")
        return {key: Answer(label, tuple(_score(one) for one in json.loads(top))) for key, label, top in rows}


def _score(one: dict[str, float] | list[float]) -> float:
    """Ours are {"label": ..., "score": ...}, the peers' are [label index, score]."""
    return one["score"] if isinstance(one, dict) else one[1]
