"""How far the answers of a model have moved from those of a quiet time, as one number: the population stability index.

    PSI = sum over the bins of (now - then) * ln(now / then)

with the bins' shares of all images now and in the baseline. It is 0 where the shares are the same. An empty bin has the share
EPSILON, so that the logarithm exists. By custom 0.1 is a moderate shift and 0.25 a significant one (N. Siddiqi, Credit Risk
Scorecards, 2006). The custom comes from large samples: without any shift PSI is about (1/now + 1/then) times a chi-squared number
with one degree of freedom fewer than bins (B. Yurdakul and J. Naranjo, Statistical properties of the population stability
index, 2020), so a shift also has to be larger than what chance gives one time in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

EPSILON = 0.0001

MODERATE, SIGNIFICANT = 0.1, 0.25

MIN_IMAGES = 50
"""Fewer images are not judged."""

# The 99th percentile of a standard normal number.
_ONE_IN_A_HUNDRED = 2.326348


@dataclass(frozen=True, slots=True)
class Shift:
    """A PSI, and what chance alone stays below 99 times of 100 with so many images and bins."""

    psi: float
    chance: float

    def exceeds(self, limit: float) -> bool:
        """Whether it is beyond a limit, and no play of chance."""
        return self.psi > limit and self.psi > self.chance


@dataclass(frozen=True, slots=True)
class Moved:
    """A label's share of the images, in the baseline and now."""

    label_index: int
    then: float
    now: float

    @property
    def by(self) -> float:
        """The change, in shares: 0.1 is ten points of a hundred."""
        return self.now - self.then


@dataclass(frozen=True, slots=True)
class Drift:
    """The shifts of labels and of scores."""

    labels: Shift
    scores: Shift

    @property
    def psi(self) -> float:
        """The larger of the two."""
        return max(self.labels.psi, self.scores.psi)

    def exceeds(self, limit: float) -> bool:
        """Whether one of the two is beyond a limit, and no play of chance."""
        return self.labels.exceeds(limit) or self.scores.exceeds(limit)

    @property
    def verdict(self) -> str:
        """`significant`, `moderate` or `stable`."""
        return next((name for name, limit in LIMITS if self.exceeds(limit)), "stable")


LIMITS = (("significant", SIGNIFICANT), ("moderate", MODERATE))


def population_stability(now: Sequence[int], then: Sequence[int]) -> float:
    """PSI of two lists of counts with the same bins. Raises ValueError where one of them counts nothing."""
    if not sum(now) or not sum(then):
        raise ValueError("PSI compares shares, and one side has no images. Judge it when there are some.")
    shares = zip(_shares(now), _shares(then), strict=True)
    return sum((new - old) * math.log(new / old) for new, old in shares)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [max(count / total, EPSILON) for count in counts]


def chance_of(now: int, then: int, bins: int) -> float:
    """The PSI that samples of so many images stay below 99 times of 100 where nothing has shifted."""
    freedom = bins - 1
    if freedom < 1:
        return 0.0
    # Wilson and Hilferty: the cube root of a chi-squared number is nearly normal.
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + _ONE_IN_A_HUNDRED * math.sqrt(spread)) ** 3
    return (1 / now + 1 / then) * quantile


def drift_of(
    now_labels: Mapping[int, int], now_scores: Sequence[int], then_labels: Mapping[int, int], then_scores: Sequence[int]
) -> Drift | None:
    """The shift from a baseline; None where there are too few images to judge on either side."""
    if sum(now_scores) < MIN_IMAGES or sum(then_scores) < MIN_IMAGES:
        return None
    indices = sorted(now_labels.keys() | then_labels.keys())
    labels = _shift([now_labels.get(index, 0) for index in indices], [then_labels.get(index, 0) for index in indices])
    return Drift(labels, _shift(now_scores, then_scores))


def _shift(now: Sequence[int], then: Sequence[int]) -> Shift:
    used = sum(1 for pair in zip(now, then, strict=True) if any(pair))
    return Shift(population_stability(now, then), chance_of(sum(now), sum(then), used))


def most_moved(now: Mapping[int, int], then: Mapping[int, int], count: int = 3) -> list[Moved]:
    """The labels whose shares changed most, the largest change first; none where one side has no images."""
    total, before = sum(now.values()), sum(then.values())
    if not total or not before:
        return []
    moved = (Moved(index, then.get(index, 0) / before, now.get(index, 0) / total) for index in now.keys() | then.keys())
    return _first(sorted(moved, key=lambda one: (-abs(one.by), one.label_index)), count)


def _first(moved: Iterable[Moved], count: int) -> list[Moved]:
    return [one for one in moved if one.by][:count]
