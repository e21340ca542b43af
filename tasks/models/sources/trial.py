"""A network from elsewhere is tried before it becomes a bundle: what comes out, and whether it bears every batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import ModelError

Pixels = npt.NDArray[np.uint8]
Forward = Callable[[Pixels], npt.NDArray[Any]]

BATCHES = (1, 2, 3)
CLOSE = 1e-3  # of the largest logit: kernels for other batches add up in another order


def try_network(forward: Forward, file: Path, crop: int, labels: Path, classes: int, dynamic: str) -> None:
    """Run a blank and two random images, in batches of 1, 2 and 3. Raises ModelError where the answers are no logits.

    `forward` takes uint8 [n, crop, crop, 3]; `dynamic` says how to export for any batch.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCHES), crop, crop, 3), dtype=np.uint8)
    pixels[0] = 0
    found = {}
    for batch in BATCHES:
        try:
            found[batch] = np.asarray(forward(pixels[:batch]))
        except Exception as error:  # Whatever runs the network raises what it likes.
            raise ModelError(
                f"{file} does not run on a batch of {batch} x {crop} x {crop}: {str(error).strip().splitlines()[0][:300]} "
                f"{dynamic}"
            ) from None
        _check(found[batch], batch, file, labels, classes, dynamic)
    most = found[max(BATCHES)]
    limit = CLOSE * max(1.0, float(np.abs(most).max()))
    if any(np.abs(logits - most[:batch]).max() > limit for batch, logits in found.items()):
        raise ModelError(f"{file} gives an image other logits in another batch. {dynamic}")
    _check_logits(most, file)


def _check(logits: npt.NDArray[Any], batch: int, file: Path, labels: Path, classes: int, dynamic: str) -> None:
    if logits.ndim != 2 or not np.issubdtype(logits.dtype, np.floating):
        raise ModelError(
            f"{file} gives {logits.dtype} {list(logits.shape)} for {batch} images, and expected are float logits "
            f"[{batch}, {classes}]. Export it up to its last linear layer, flattened."
        )
    if len(logits) != batch:
        raise ModelError(f"{file} gives {len(logits)} rows for {batch} images. {dynamic}")
    if logits.shape[1] != classes:
        raise ModelError(
            f"{file}: {logits.shape[1]} outputs, and {labels} has {classes} labels. Give the labels that it was trained for, "
            "one a line."
        )
    if not np.isfinite(logits).all():
        raise ModelError(
            f"{file} gives logits that are not finite (NaN or infinite) for a blank or a random image. The training diverged, "
            "or the file is damaged: export an earlier step."
        )


def _check_logits(found: npt.NDArray[Any], file: Path) -> None:
    """A softmax of scores would be flat, and every prediction unsure."""
    if found.shape[1] > 1 and (found >= 0).all() and np.abs(found.sum(axis=1) - 1).max() < 1e-3:
        raise ModelError(
            f"{file} gives probabilities: each row adds up to 1. Scores are made here, so export the network without its "
            "softmax."
        )
