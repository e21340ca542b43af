"""The stage that runs a network: the only forward pass of a chain, or one of a cascade's."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.inference.bisecting import compute
from tasks.inference.meters import Meter
from tasks.inference.pixels import Pixels, PixelSlots
from tasks.inference.reading import Work
from tasks.inference.scoring import score
from tasks.inference.verdict import COMPUTE_ERROR, NONFINITE_OUTPUT

if TYPE_CHECKING:
    from tasks.cache.outcome import Scored
    from tasks.models.bundle import Bundle
    from tasks.models.runtimes import Runtime


@dataclass(frozen=True)
class Rule:
    """Which images a network answers.

    `number` is its place in the cascade, from 1 on; None where it is alone. An image whose margin is below `margin` goes on
    to the next network; None: this one answers all that come. `next_takes_pixels`: those that go on keep their pixels.
    """

    top_k: int
    number: int | None = None
    margin: float | None = None
    next_takes_pixels: bool = False


class ForwardStage:
    """Runs batches through one network; as many threads may be in it as the runtime has streams."""

    def __init__(self, bundle: Bundle, runtime: Runtime, rule: Rule, slots: PixelSlots, meter: Meter) -> None:
        self.runtime = runtime
        self.passes = 0
        self._bundle, self._rule, self._slots, self._meter = bundle, rule, slots, meter
        self._memory = threading.local()
        self._lock = threading.Lock()

    def predict(self, group: list[Work]) -> list[Work]:
        """Predict what is not finished. It is finished then, or goes on to the next network as it is."""
        batch = [work for work in group if work.finished is None]
        self._meter.pass_on(len(group) - len(batch))
        if not batch:
            return group
        with self._meter.work(len(batch)):
            pixels = self._gather(batch)
            logits, errors = compute(self.runtime, pixels, len(self._bundle.labels))
            found = score(logits, self._bundle.labels, self._rule.top_k, self._rule.number)
        with self._lock:
            self.passes += len(batch)
        for number, (work, scored) in enumerate(zip(batch, found, strict=True)):
            self._decide(work, scored, errors.get(number))
        return group

    def _decide(self, work: Work, scored: Scored | None, error: Exception | None) -> None:
        slot, least = work.pixels, self._rule.margin
        name = self._bundle.spec.name
        if error is not None:
            message = (
                f"{name} fails on this image alone: {type(error).__name__}: {error}. Try another model or runtime."
            )
            work.fail(COMPUTE_ERROR, message, permanent=False)
            self._meter.fail()
        elif scored is None:
            message = f"{name} gives an output that is not finite for this image. Try another model."
            work.fail(NONFINITE_OUTPUT, message, permanent=False)
            self._meter.fail()
        elif least is None or scored.margin >= least:
            work.succeed(scored)
        if slot is not None and work.finished is not None:
            self._slots.give(slot)

    def _gather(self, batch: list[Work]) -> Pixels:
        """The pictures side by side. Where the next network takes the same ones, their slots are kept until it is known
        which of them go on."""
        slots = [work.pixels for work in batch]
        if self._rule.next_takes_pixels:
            return self._slots.copy(slots, self._buffer())
        for work in batch:
            work.pixels = None
        return self._slots.gather(slots, self._buffer())

    def _buffer(self) -> Pixels:
        """The batch of the thread that asks: one for each stream."""
        if not hasattr(self._memory, "batch"):
            self._memory.batch = self.runtime.buffer()
        batch: Pixels = self._memory.batch
        return batch
