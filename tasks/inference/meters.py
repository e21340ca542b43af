"""What each stage of a shard counts and times while it works, and the check that no image is lost between two of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tasks.errors import InvariantViolation
from tasks.stage_times import PROCESSOR, StageTimes, Times, base, ordered, size_class


class Meter:
    """One stage: its calls, and the images that went in, came out, failed, or are held back as twins.

    `workers` may change on the way, as the number of reads in flight does. The stages of a cascade's later models do not
    count as theirs what was decided before (`counts_all` is False), so that their images are those that went on.
    """

    def __init__(self, workers: int, *, counts_all: bool = True) -> None:
        self.workers = workers
        self.capacity = 0.0
        self.taken = self.given = self.failures = self.went_by = 0
        self._counts_all = counts_all
        self._busy = 0.0
        self._classes: dict[int, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def work(self, images: int = 1) -> Iterator[None]:
        """Time one call on so many images; they count as given once it ends without an error."""
        started = time.perf_counter()
        try:
            yield
        except BaseException:
            self._note(started, images, 0)
            raise
        self._note(started, images, images)

    def pass_on(self, images: int) -> None:
        """So many went through with nothing to do for this stage."""
        with self._lock:
            if self._counts_all:
                self.taken += images
                self.given += images
            else:
                self.went_by += images

    def fail(self, images: int = 1) -> None:
        """So many of them go on as failures."""
        with self._lock:
            self.failures += images

    def hold(self, images: int) -> None:
        """So many of those given stay behind, to follow with their leader."""
        with self._lock:
            self.given -= images

    def times(self) -> StageTimes:
        """Without capacity and waits, which the whole chain knows."""
        with self._lock:
            return StageTimes(self.taken, self.failures, self._busy, classes=dict(self._classes))

    def _note(self, started: float, taken: int, given: int) -> None:
        spent = time.perf_counter() - started
        number = size_class(spent)
        with self._lock:
            self.taken += taken
            self.given += given
            self._busy += spent
            self._classes[number] = self._classes.get(number, 0) + 1


class Meters:
    """The meters of a shard's stages, whose workers are given by name, and the processor's."""

    def __init__(self, workers: Mapping[str, int], cores: int) -> None:
        self.stages = {stage: Meter(workers[stage], counts_all=base(stage) == stage) for stage in ordered(workers)}
        self._cores = cores
        self._looked, self._processor = time.perf_counter(), time.process_time()
        self._seconds = 0.0

    def __getitem__(self, stage: str) -> Meter:
        return self.stages[stage]

    def times(self, inputs: Mapping[str, float], outputs: Mapping[str, float]) -> Times:
        """All times so far; the seconds that each stage waited for work and for a taker come from the queues."""
        now = time.perf_counter()
        passed, self._looked = now - self._looked, now
        self._seconds += passed
        processor = time.process_time() - self._processor
        times: Times = {PROCESSOR: StageTimes(busy=processor, capacity=self._cores * self._seconds)}
        for stage, meter in self.stages.items():
            times[stage] = meter.times()
            meter.capacity += meter.workers * passed
            times[stage].capacity = meter.capacity
            times[stage].input, times[stage].output = inputs.get(stage, 0.0), outputs.get(stage, 0.0)
        return times

    def check(self, label: str, images: int) -> None:
        """At the end of a shard: what one stage gave, the next one took. Raises InvariantViolation."""
        held = self["look_up"].taken - self["look_up"].given
        flow = [("the staged rows", images)]
        for stage, meter in self.stages.items():
            before, given = flow[-1]
            given += held if stage == "commit" else 0  # Twins follow with their leader's commit.
            came = meter.taken + meter.went_by
            if came != given:
                raise InvariantViolation(
                    f"{label}: {given:,} images left {before} and {came:,} reached {stage}. What was committed is "
                    "right and stays; clear the shard to do the rest, and report this, because it must not happen."
                )
            flow.append((stage, meter.given + meter.went_by))
