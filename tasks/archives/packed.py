"""The entries of many predictions at once, between the bytes of tasks/cache/packing.py and arrays: faster than one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks.cache.packing import ENTRY_BYTES, MOST_LABELS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ONE = MOST_LABELS - 1


def unpack_all(
    packed: Sequence[bytes],
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], list[int | None]]:
    """How many entries each has, label index and score of all of them one after the other, and the stages."""
    import numpy as np

    lengths = np.fromiter(map(len, packed), np.int64, len(packed))
    counts = lengths // ENTRY_BYTES
    has_stage = lengths % ENTRY_BYTES > 0
    stages = [one[-1] if has else None for one, has in zip(packed, has_stage.tolist(), strict=True)]
    every = np.frombuffer(b"".join(packed), np.uint8)
    if has_stage.any():
        every = np.delete(every, np.cumsum(lengths)[has_stage] - 1)
    rows = every.reshape(-1, ENTRY_BYTES).astype(np.int64)
    values = rows @ (256 ** np.arange(ENTRY_BYTES - 1, -1, -1, dtype=np.int64))
    # As unpack() does: six digits and a half are what there is.
    scores = np.round((values & _ONE) / _ONE, 7).astype(np.float32)
    return counts, (values >> 20).astype(np.int32), scores, stages


def pack_all(
    counts: NDArray[np.int64], indices: NDArray[Any], scores: NDArray[Any], stages: Sequence[int | None]
) -> list[bytes]:
    """The inverse; all values are within their bounds."""
    import numpy as np

    values = (indices.astype(np.int64) << 20) | np.round(scores.astype(np.float64) * _ONE).astype(np.int64)
    shifts = 8 * np.arange(ENTRY_BYTES - 1, -1, -1, dtype=np.int64)
    every = ((values[:, None] >> shifts) & 0xFF).astype(np.uint8).tobytes()
    ends = (np.cumsum(counts) * ENTRY_BYTES).tolist()
    parts = zip([0, *ends[:-1]], ends, stages, strict=True)
    return [every[start:end] if stage is None else every[start:end] + bytes((stage,)) for start, end, stage in parts]
