"""From logits to what is stored: label, score, margin, entropy and top-k. Thresholds are applied when reading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.cache.outcome import Scored

Scores = npt.NDArray[np.float64]


def softmax(logits: npt.NDArray[np.float32]) -> Scores:
    """Scores that add up to 1 in each row; computed in float64 from logits shifted by their largest."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    scores: Scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores


def score(
    logits: npt.NDArray[np.float32], labels: Sequence[str], top_k: int, stage: int | None = None
) -> list[Scored | None]:
    """One Scored for each row of float32 logits [n, classes]; None where a row is not finite.

    `stage` is the place of the network in its cascade, None where it is in none.

    Ties go to the lower index, so that the order does not depend on the batch. All rows are computed at once: a call for
    each row costs more than the arithmetic.
    """
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(logits).all(axis=1))
    scores = softmax(np.where(finite[:, None], logits, np.float32(0.0)))
    best = _best(scores, min(max(top_k, 2), scores.shape[1]))
    found = np.take_along_axis(scores, best, axis=1)
    margins = found[:, 0] - found[:, 1] if found.shape[1] > 1 else found[:, 0]
    rows = zip(finite, best.tolist(), found.tolist(), margins.tolist(), _entropy(scores).tolist(), strict=True)
    return [
        _scored(indices, values, margin, entropy, labels, top_k, stage) if good else None
        for good, indices, values, margin, entropy in rows
    ]


def _best(scores: Scores, count: int) -> npt.NDArray[np.intp]:
    """The indices of the `count` best scores of each row, best first."""
    # Sorting everything for five of a thousand is most of the time: only what is not below the fifth best is sorted.
    cut = np.partition(scores, -count, axis=1)[:, -count]
    best = np.empty((len(scores), count), np.intp)
    for row, (values, least) in enumerate(zip(scores, cut, strict=True)):
        candidates = np.flatnonzero(values >= least)
        best[row] = candidates[np.argsort(-values[candidates], kind="stable")[:count]]
    return best


def _entropy(scores: Scores) -> Scores:
    """Shannon entropy of each row, in nats. abs: a sure model has 0.0, not -0.0."""
    logarithms = np.log(scores, out=np.zeros_like(scores), where=scores > 0)
    entropy: Scores = np.abs((scores * logarithms).sum(axis=1))
    return entropy


def _scored(
    best: list[int],
    found: list[float],
    margin: float,
    entropy: float,
    labels: Sequence[str],
    top_k: int,
    stage: int | None,
) -> Scored:
    return Scored(
        label_index=best[0],
        label=labels[best[0]],
        score=found[0],
        margin=margin,
        entropy=entropy,
        entries=tuple(zip(best[1:top_k], found[1:top_k], strict=True)),
        cascade_stage=stage,
    )
