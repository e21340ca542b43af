"""The stages of a shard and the queues between them, up to what is ready to be committed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain as chained
from typing import TYPE_CHECKING, Protocol

from tasks.inference.decoding.policies import open_decoder
from tasks.inference.in_flight import InFlight
from tasks.inference.meters import Meters
from tasks.inference.pixels import Pixels, PixelSlots
from tasks.inference.reading import Work, read_object
from tasks.inference.scoring import score
from tasks.inference.stages import Buffered, Parallel, Room
from tasks.inference.twins import Twins
from tasks.inference.verdict import NONFINITE_OUTPUT
from tasks.models.runtimes import choose_device
from tasks.processors import cores
from tasks.stage_times import Times

if TYPE_CHECKING:
    from tasks.cache.ledger import ShardLedger
    from tasks.models.bundle import Bundle
    from tasks.models.runtimes import Runtime
    from tasks.settings import Settings
    from tasks.storage.base import ImageObject, ObjectStore

LOOKUP_GROUP = 64
IDLE_SECONDS = 0.5
MIB = 2**20


class Waiting(Protocol):
    """A queue, or what has one: seconds that it kept who takes and who puts waiting."""

    @property
    def waits(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Parts:
    """What the stages of a shard work with."""

    ledger: ShardLedger
    store: ObjectStore
    bundle: Bundle
    runtime: Runtime
    settings: Settings


class Chain:
    """Four stages that run until their rows are through, or until they are closed; `end` gives finished work.

    `closing` ends every thread at once; reads that hang are left behind.
    """

    def __init__(self, parts: Parts, images: int) -> None:
        settings, spec = parts.settings, parts.bundle.spec.preprocessing
        self._parts = parts
        self.rows = self._reads = self._passes = 0
        self._taken = (0, 0)
        self._decoder = open_decoder(spec, settings.compiled, images, choose_device(settings))
        self._slots = PixelSlots(spec.crop)
        self._memory = threading.local()
        self._lock = threading.Lock()
        self.twins = Twins()
        self.closing = threading.Event()
        self._in_flight = InFlight(settings.readers)
        workers = {"read": settings.readers, "look_up": 1, "decode": settings.decoders or cores()}
        self.meters = Meters({**workers, "forward": parts.runtime.streams, "commit": 1}, cores())
        self._join(workers)

    def _join(self, workers: Mapping[str, int]) -> None:
        """Each of the queues may hold its share of the bytes. The look-up runs in the thread that feeds the decoders."""
        runtime, share = self._parts.runtime, self._parts.settings.queue_mib * MIB // 6
        batch, stop = runtime.batch_size, self.closing
        ahead, calls = 2 * workers["read"], self._decoder.group * workers["decode"]
        room = Room(ahead, share, listed_size)
        self._read = Parallel(self._read_one, self._rows(), workers["read"], room, stop, "read")
        self._files = Buffered(self._read, Room(ahead, share, weight), stop, "read-out")
        room = Room(calls, share, weight_of_all)
        self._decode = Parallel(self._decode_group, self._look_up(), workers["decode"], room, stop, "decode")
        self._decoded = Buffered(_flat(self._decode), Room(2 * batch, share, weight), stop, "decode-out")
        room = Room(2 * runtime.streams, share, weight_of_all)
        self._forward = Parallel(self._predict, self._batches(), runtime.streams, room, stop, "forward")
        room = Room(4 * batch * runtime.streams, share, weight)
        self.end = Buffered(_flat(self._forward), room, stop, "forward-out")

    def close(self) -> None:
        """End every stage; what is on its way is dropped, and stays open in the database."""
        self.closing.set()
        self._in_flight.close()
        self.end.close()

    def times(self) -> Times:
        """What the stages did so far, and for how long each waited: before it for work, behind it for a taker."""
        self.meters["read"].workers = self._in_flight.limit
        before: dict[str, Waiting] = {
            "look_up": self._files,
            "decode": self._decode,
            "forward": self._decoded,
            "commit": self.end,
        }
        behind: dict[str, Waiting] = {
            "read": self._files,
            "look_up": self._decode,
            "decode": self._decoded,
            "forward": self.end,
        }
        return self.meters.times(
            {stage: one.waits[0] for stage, one in before.items()},
            {stage: one.waits[1] for stage, one in behind.items()},
        )

    def queue_fill(self) -> dict[str, float]:
        """How full the queue before each stage is, 0 to 1."""
        return {
            "read": self._read.fill,
            "look_up": self._files.fill,
            "decode": self._decode.fill,
            "forward": self._decoded.fill,
            "commit": self.end.fill,
        }

    def take_counts(self) -> tuple[int, int]:
        """Objects read and images through a forward pass since the counts were last taken."""
        with self._lock:
            before, self._taken = self._taken, (self._reads, self._passes)
            return self._taken[0] - before[0], self._taken[1] - before[1]

    def _rows(self) -> Iterator[ImageObject]:
        for row in self._parts.ledger.open_rows():
            self.rows += 1
            yield row

    def _read_one(self, listed: ImageObject) -> Work:
        work = read_object(self._parts.store, listed, self._room_to_read)
        self.meters["read"].pass_on(1)
        if work.finished is not None and work.finished.failed is not None:
            self.meters["read"].fail()
        return work

    @contextmanager
    def _room_to_read(self) -> Iterator[None]:
        with self._in_flight.one(), self.meters["read"].work(0):
            yield

    def _look_up(self) -> Iterator[list[Work]]:
        """Pass on what needs a forward pass, and what is finished; keep twins back until their leader is through."""
        meter = self.meters["look_up"]
        for group in self._files.groups(LOOKUP_GROUP):
            with meter.work(len(group)):
                leaders = [work for work in group if work.digest is not None and self.twins.lead(work)]
                known = self._parts.ledger.predicted([work.digest for work in leaders if work.digest is not None])
                for work in leaders:
                    if work.digest in known:
                        work.reuse()
            with self._lock:
                self._reads += sum(work.was_read for work in group)
            # In the order of the group, so that failures and successes are judged as they came.
            leading = {id(work) for work in leaders}
            onward = [work for work in group if work.digest is None or id(work) in leading]
            meter.hold(len(group) - len(onward))
            for start in range(0, len(onward), self._decoder.group):
                yield onward[start : start + self._decoder.group]

    def _decode_group(self, group: list[Work]) -> list[Work]:
        meter, todo = self.meters["decode"], [work for work in group if work.finished is None]
        meter.pass_on(len(group) - len(todo))
        if not todo:
            return group
        slots = [self._slots.take() for _ in todo]
        with meter.work(len(todo)):
            errors = self._decoder.decode_group([work.data or b"" for work in todo], slots)
        for work, slot, error in zip(todo, slots, errors, strict=True):
            if error is None:
                work.pixels, work.data = slot, None
                continue
            self._slots.give(slot)
            work.fail(error.reason, str(error), permanent=True)
            meter.fail()
        return group

    def _batches(self) -> Iterator[list[Work]]:
        """As many decoded images as fill a batch, or what there is after a moment without any; finished work goes along."""
        size = self._parts.runtime.batch_size
        group: list[Work] = []
        decoded = 0
        try:
            while True:
                try:
                    work = self._decoded.get(timeout=IDLE_SECONDS)
                except StopIteration:
                    break
                if work is not None:
                    group.append(work)
                    decoded += work.finished is None
                if group and (work is None or decoded == size or len(group) - decoded >= LOOKUP_GROUP):
                    yield group
                    group, decoded = [], 0
            if group:
                yield group
        finally:
            self._decoded.close()

    def _predict(self, group: list[Work]) -> list[Work]:
        meter, batch = self.meters["forward"], [work for work in group if work.finished is None]
        meter.pass_on(len(group) - len(batch))
        if not batch:
            return group
        bundle, spec = self._parts.bundle, self._parts.bundle.spec
        with meter.work(len(batch)):
            pixels = self._slots.gather([work.pixels for work in batch], self._buffer())
            found = score(self._parts.runtime.predict(pixels), bundle.labels, spec.top_k)
        with self._lock:
            self._passes += len(batch)
        for work, scored in zip(batch, found, strict=True):
            if scored is None:
                message = f"{spec.name} gives an output that is not finite for this image. Try another model."
                work.fail(NONFINITE_OUTPUT, message, permanent=False)
                meter.fail()
            else:
                work.succeed(scored)
        return group

    def _buffer(self) -> Pixels:
        """The batch of the thread that asks: one for each stream."""
        if not hasattr(self._memory, "batch"):
            self._memory.batch = self._parts.runtime.buffer()
        batch: Pixels = self._memory.batch
        return batch


def listed_size(listed: ImageObject) -> int:
    """What a read will bring, as far as the listing knows."""
    return listed.size


def weight(work: Work) -> int:
    """Bytes of an object's file and pixels."""
    return (0 if work.data is None else len(work.data)) + (0 if work.pixels is None else work.pixels.nbytes)


def weight_of_all(group: list[Work]) -> int:
    """Bytes of a group."""
    return sum(weight(work) for work in group)


def _flat(source: Parallel[list[Work], list[Work]]) -> Iterator[Work]:
    try:
        yield from chained.from_iterable(source)
    finally:
        source.close()
