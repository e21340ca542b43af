"""The stage that turns files into pixels: one before the first forward pass, and one before each that wants other pixels."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.errors import DecoderStalled, ImageError
from tasks.inference.decoding.policies import is_costly
from tasks.inference.meters import Meter
from tasks.inference.pixels import Pixels, PixelSlots
from tasks.inference.reading import Work

if TYPE_CHECKING:
    from tasks.inference.decoding.isolated import IsolatedDecoder
    from tasks.inference.decoding.nvjpeg import NvjpegDecoder
    from tasks.inference.decoding.policies import Decoder
    from tasks.inference.thumbnails import Thumbnails

# What decodes for longer has stalled: the costly is decoded elsewhere, and all else takes seconds at most.
STALLED_SECONDS = 300.0

# Another decoder, or a calmer machine, may manage in time.
_RETRYABLE = ("decode_timeout",)


@dataclass(frozen=True)
class DecodeStage:
    """Decodes groups of images; threads may share it.

    `suspects` are keys that were in flight when a process died: a child decodes them, and what is costly by its header.
    `keeps_files`: a later model of the cascade wants other pixels, so the bytes stay until the image is decided.
    `thumbnails`: where what is decoded is written to as small pictures; None in later stages of a cascade, and where none are.
    """

    decoder: Decoder | NvjpegDecoder
    isolated: IsolatedDecoder
    slots: PixelSlots
    meter: Meter
    keeps_files: bool
    suspects: Collection[str] = ()
    thumbnails: Thumbnails | None = None
    _since: dict[int, tuple[float, list[str]]] = field(default_factory=dict)

    def decode(self, group: list[Work]) -> list[Work]:
        """Fill in the pixels of what is not finished; what cannot be decoded is finished then."""
        todo = [work for work in group if work.finished is None]
        self.meter.pass_on(len(group) - len(todo))
        if not todo:
            return group
        slots = [self.slots.take() for _ in todo]
        with self.meter.work(len(todo)):
            errors = self._decode(todo, slots)
            small = self._encode(slots, errors)
        self._write(todo, small)
        for work, slot, error in zip(todo, slots, errors, strict=True):
            if error is None:
                work.pixels, work.data = slot, work.data if self.keeps_files else None
                continue
            self.slots.give(slot)
            work.fail(error.reason, str(error), permanent=error.reason not in _RETRYABLE)
            self.meter.fail()
        return group

    def _encode(self, slots: list[Pixels], errors: list[ImageError | None]) -> list[bytes | None]:
        if self.thumbnails is None:
            return []
        return [
            None if error is not None else self.thumbnails.encode(slot)
            for slot, error in zip(slots, errors, strict=True)
        ]

    def _write(self, todo: list[Work], small: list[bytes | None]) -> None:
        for work, jpeg in zip(todo, small, strict=False):  # There are none without thumbnails.
            if self.thumbnails is not None and jpeg is not None and work.digest is not None:
                self.thumbnails.write(work.digest, jpeg)

    def check(self) -> None:
        """Raises DecoderStalled where a call has not come back for STALLED_SECONDS."""
        for since, keys in list(self._since.values()):
            if time.monotonic() - since > STALLED_SECONDS:
                raise DecoderStalled(
                    f"Decoding {' or '.join(map(repr, keys))} did not end within {STALLED_SECONDS:g} s. The next attempt "
                    "decodes them in processes of their own and goes on: clear the task, or run the same command again."
                )

    def _decode(self, todo: list[Work], slots: list[Pixels]) -> list[ImageError | None]:
        apart = [work.listed.key in self.suspects or is_costly(work.data or b"") for work in todo]
        errors: list[ImageError | None] = [None] * len(todo)
        for number, work in enumerate(todo):
            if apart[number]:
                errors[number] = self.isolated.decode(work.data or b"", slots[number])
        # A decoder of a GPU has pixels of its own: what has survived the child is decoded there as well.
        together = [n for n in range(len(todo)) if errors[n] is None and not (apart[n] and self.isolated.gives_pixels)]
        if not together:
            return errors
        with self._watched([todo[number].listed.key for number in together]):
            found = self.decoder.decode_group([todo[n].data or b"" for n in together], [slots[n] for n in together])
        for number, error in zip(together, found, strict=True):
            errors[number] = error
        return errors

    @contextmanager
    def _watched(self, keys: list[str]) -> Iterator[None]:
        number = threading.get_ident()
        self._since[number] = (time.monotonic(), keys)
        try:
            yield
        finally:
            del self._since[number]
