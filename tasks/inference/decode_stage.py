"""The stage that turns files into pixels: one before the first forward pass, and one before each that wants other pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.inference.meters import Meter
from tasks.inference.pixels import PixelSlots
from tasks.inference.reading import Work

if TYPE_CHECKING:
    from tasks.inference.decoding.nvjpeg import NvjpegDecoder
    from tasks.inference.decoding.policies import Decoder


@dataclass(frozen=True)
class DecodeStage:
    """Decodes groups of images; threads may share it.

    `keeps_files`: a later model of the cascade wants other pixels, so the bytes stay until the image is decided.
    """

    decoder: Decoder | NvjpegDecoder
    slots: PixelSlots
    meter: Meter
    keeps_files: bool

    def decode(self, group: list[Work]) -> list[Work]:
        """Fill in the pixels of what is not finished; what cannot be decoded is finished then."""
        todo = [work for work in group if work.finished is None]
        self.meter.pass_on(len(group) - len(todo))
        if not todo:
            return group
        slots = [self.slots.take() for _ in todo]
        with self.meter.work(len(todo)):
            errors = self.decoder.decode_group([work.data or b"" for work in todo], slots)
        for work, slot, error in zip(todo, slots, errors, strict=True):
            if error is None:
                work.pixels, work.data = slot, work.data if self.keeps_files else None
                continue
            self.slots.give(slot)
            work.fail(error.reason, str(error), permanent=True)
            self.meter.fail()
        return group
