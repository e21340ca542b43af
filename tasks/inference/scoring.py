"""From logits to what is stored: label, score, margin, entropy and top-k. Thresholds are applied when reading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tasks.cache.commits import Scored


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Scores that add up to 1 in each row; computed in float64 from logits shifted by their largest."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    scores: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return scores


def score(logits: npt.NDArray[np.float32], labels: Sequence[str], top_k: int) -> list[Scored | None]:
    """One Scored for each row of float32 logits [n, classes]; None where a row is not finite.

    Ties go to the lower index, so that the order does not depend on the batch.
    """
    finite = np.array([np.isfinite(row).all() for row in logits], dtype=np.bool_)
    scores = softmax(np.where(finite[:, None], logits, 0.0).astype(np.float32))
    return [_scored(row, labels, top_k) if good else None for row, good in zip(scores, finite, strict=True)]


def _scored(row: npt.NDArray[np.float64], labels: Sequence[str], top_k: int) -> Scored:
    best = np.argsort(-row, kind="stable")[: max(top_k, 2)]
    positive = row[row > 0]
    second = float(row[best[1]]) if len(best) > 1 else 0.0
    first = int(best[0])
    return Scored(
        label_index=first,
        label=labels[first],
        score=float(row[first]),
        margin=float(row[first]) - second,
        entropy=abs(float((positive * np.log(positive)).sum())),  # abs: a sure model has 0.0, not -0.0
        top_k=tuple((labels[int(index)], float(row[index])) for index in best[:top_k]),
    )
