"""A batch on which the network raises is bisected to the images on which it does: the others are predicted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import AfterimageError, GlobalFault

if TYPE_CHECKING:
    from tasks.models.runtimes import Logits, Pixels, Runtime

log = logging.getLogger(__name__)

BLANK = 127  # every value of the picture with which a model is tried


def blank(crop: int) -> Pixels:
    """A picture that no model can have a reason to refuse, uint8 [1, crop, crop, 3]."""
    return np.full((1, crop, crop, 3), BLANK, np.uint8)


def compute(runtime: Runtime, pixels: Pixels, classes: int) -> tuple[Logits, dict[int, Exception]]:
    """Logits, float32 [n, classes], and the error of each image on which the network raises; its logits are NaN.

    Raises GlobalFault where it raises on a blank image as well: then no image is to blame. Memory that runs out is no image's
    fault either, and what the program raises on purpose stays what it is.
    """
    try:
        return runtime.predict(pixels), {}
    except (AfterimageError, MemoryError):
        raise
    except Exception as error:
        log.warning("The network raised on a batch of %d images, which is tried in halves: %s", len(pixels), error)
        check(runtime, pixels.shape[1], error)
        return _halves(runtime, pixels, classes, error)


def check(runtime: Runtime, crop: int, error: Exception) -> None:
    """Raises GlobalFault, because of an error, where the network does not work on a blank image either."""
    if type(error).__name__ == "OutOfMemoryError":
        raise GlobalFault(f"The device ran out of memory: {error} Free it, or lower AFTERIMAGE_BATCH_SIZE.") from error
    try:
        runtime.predict(blank(crop))
    except Exception as again:
        raise GlobalFault(
            f"The forward pass fails on {runtime.device}, on a blank image too: {type(again).__name__}: {again}. Nothing was "
            "quarantined for this. Look at the device and its driver, then clear the task: it goes on where it stopped."
        ) from error


def _halves(runtime: Runtime, pixels: Pixels, classes: int, error: Exception) -> tuple[Logits, dict[int, Exception]]:
    logits, errors = np.full((len(pixels), classes), np.nan, np.float32), dict[int, Exception]()
    if len(pixels) == 1:
        return logits, {0: error}
    middle = len(pixels) // 2
    for start, part in ((0, pixels[:middle]), (middle, pixels[middle:])):
        try:
            logits[start : start + len(part)] = runtime.predict(part)
        except (AfterimageError, MemoryError):
            raise
        except Exception as found:
            logits[start : start + len(part)], inner = _halves(runtime, part, classes, found)
            errors |= {start + number: each for number, each in inner.items()}
    return logits, errors
