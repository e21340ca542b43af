"""The entries of a prediction after its best one, packed into bytes, and the stage of a cascade behind them.

A prediction keeps its best label and score in columns. Each further entry is 5 bytes, big-endian: 20 bits of label index, then
20 bits of score, where 0xFFFFF is 1 (so a score is kept to within 5e-7). An answer of a cascade has one more byte at the end, the
place of the network that gave it. As JSON the five best labels of ImageNet take some 200 bytes, packed they take 20. Both
halves are whole hexadecimal digits, so that the views read them with SQL alone (migrations/versions/0006_scale.py).
"""

from __future__ import annotations

from collections.abc import Sequence

ENTRY_BYTES = 5
MOST_LABELS = 1 << 20
_ONE = MOST_LABELS - 1


def pack(entries: Sequence[tuple[int, float]], stage: int | None = None) -> bytes:
    """(label index, score of 0 to 1) of each entry after the best one, and the stage of 1 to 255, where there is one.

    Raises OverflowError for an index that a prediction cannot hold: models with as many labels are refused before.
    """
    packed = b"".join(((index << 20) | round(score * _ONE)).to_bytes(ENTRY_BYTES, "big") for index, score in entries)
    return packed if stage is None else packed + bytes((stage,))


def unpack(packed: bytes) -> tuple[list[tuple[int, float]], int | None]:
    """The inverse of pack(), but for the rounding of the scores."""
    count, has_stage = divmod(len(packed), ENTRY_BYTES)
    values = [int.from_bytes(packed[ENTRY_BYTES * place : ENTRY_BYTES * (place + 1)], "big") for place in range(count)]
    return [(value >> 20, round((value & _ONE) / _ONE, 7)) for value in values], packed[-1] if has_stage else None
