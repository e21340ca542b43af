"""What became of one listed object, as plain values. This module imports no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.storage.base import ImageObject

BLOCKED = "blocked"
"""The reason of an image whose bytes were erased for good."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A prediction: the best label, `entries` with the label indices and scores of the next ones, and how sure the model is.

    `margin` is the best score minus the second, `entropy` the Shannon entropy of all scores in nats. `cascade_stage` is the
    place of the network that answered, from 1 on; None where the model is no cascade.
    """

    label_index: int
    label: str
    score: float
    margin: float
    entropy: float
    entries: tuple[tuple[int, float], ...]
    cascade_stage: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Why an image could not be predicted. A permanent reason is never tried again with this decoder."""

    reason: str
    message: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of one listed object.

    `image` is the object as it was read (it may have been overwritten since the listing), or as it was listed where
    the read failed; None where it vanished.
    With `scored` the outcome is predicted or reused, whichever the insert tells; with `failed` it is failed; with a
    digest alone it is reused; with none of them it vanished.
    """

    key: str
    image: ImageObject | None = None
    digest: bytes | None = None
    scored: Scored | None = None
    failed: Failed | None = None


def blocked(key: str, found: ImageObject | None) -> Finished:
    """What is told of bytes that were erased for good: key and etag, and nothing of what they were."""
    message = "Its bytes were erased for good, so it is not looked at. ./afterimage erase --unblock lifts the block."
    return Finished(key, found, failed=Failed(BLOCKED, message, permanent=True))


@dataclass(frozen=True, slots=True)
class Progress:
    """What this attempt did since its last commit, and what all attempts at the shard spent so far.

    `stages` is what tasks/stage_times.py adds up, as plain values.
    """

    reads: int
    forward_passes: int
    seconds: float
    stages: Mapping[str, Any]
    device: str
