"""The batch size that is best on a device: found by a short probe, and remembered.

Larger batches are faster until the device is full, and cost memory from there on. Where that is depends on network,
precision and device, so it is measured.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from tasks.private import write_whole

log = logging.getLogger(__name__)

FIRST, MOST = 16, 1_024  # images
WORTH = 1.05  # a doubling that gives less than this is not taken

Rate = Callable[[int], float | None]


def best_batch(rate: Rate) -> int:
    """Double the batch while it pays. `rate` gives images/s of a batch size, or None where memory runs out.

    1 where memory runs out for every size: the forward pass itself then says what is wrong.
    """
    size, best = FIRST, rate(FIRST)
    while best is None and size > 1:
        size //= 2
        best = rate(size)
    if best is None or size < FIRST:
        return size
    while size < MOST:
        found = rate(2 * size)
        if found is None or found < WORTH * best:
            break
        size, best = 2 * size, found
    return size


class Remembered:
    """A batch size in a small file; without a file it is remembered by nobody."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def read(self) -> int | None:
        """The size, or None where there is none that makes sense."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))["batch_size"] if self._file else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if type(found) is int and 1 <= found <= MOST else None

    def write(self, size: int) -> None:
        """Keep the size. A disk that is full costs the next worker a probe, and this one nothing."""
        if self._file is None:
            return
        content = json.dumps({"batch_size": size}) + "\n"
        try:
            write_whole(self._file, lambda scratch: scratch.write_text(content, encoding="utf-8"))
        except OSError as error:
            log.warning("%s cannot be written: %s. The batch size is probed again next time.", self._file, error)
