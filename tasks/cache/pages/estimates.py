"""What runs cost, and what the cache has spared: estimates from what runs measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.cache.pages.overview import Run, Work


@dataclass(frozen=True, slots=True)
class Money:
    """Estimates in dollars; None where no price is set, or where nothing was measured."""

    last: float | None
    month: float | None
    avoided: float | None
    avoided_last: float | None


def hits_of(counts: Sequence[Mapping[str, int]]) -> float | None:
    """The share of what was listed that needed no forward pass, because its bytes were known."""
    listed = sum(one["listed"] for one in counts)
    return sum(one["cached"] + one["reused"] for one in counts) / listed if listed else None


def money_of(last: Run | None, month: Sequence[Work], work: Sequence[Work], price: float | None) -> Money:
    """What workers cost, and what those images would have cost that were not predicted again."""
    if price is None:
        return Money(None, None, None, None)
    predicted, seconds = sum(one.predicted for one in work), sum(one.worker_seconds for one in work)
    each = price / 3600 * seconds / predicted if predicted else None
    known = sum(one.cached + one.reused for one in month)
    return Money(
        last=price / 3600 * last.worker_seconds if last else None,
        month=price / 3600 * sum(one.worker_seconds for one in month),
        avoided=None if each is None else each * known,
        avoided_last=None if each is None or last is None else each * (last.counts["cached"] + last.counts["reused"]),
    )
