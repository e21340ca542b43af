"""Contestants in turn: A B C, A B C, ... A machine that slows down slows all of them down.

A ratio is the median of the ratios within rounds, not the ratio of two medians: neighbours in time had the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

T = TypeVar("T")


def in_turn(contestants: Mapping[str, Callable[[], T]], rounds: int, say: Callable[[str], None]) -> dict[str, list[T]]:
    """{name: one result for each round}."""
    found: dict[str, list[T]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, measure in contestants.items():
            found[name].append(measure())
            say(f"round {number}/{rounds} {name}: {found[name][-1]}")
    return found


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times as long: the median over rounds. Raises ValueError where the rounds do not pair."""
    return median(left / right for left, right in zip(slower, faster, strict=True))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest: how far a median can be trusted."""
    return min(values), max(values)


def best(seconds: Mapping[str, Sequence[float]]) -> str:
    """The contestant with the least median."""
    return min(seconds, key=lambda name: median(seconds[name]))
