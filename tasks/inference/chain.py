"""The stages of a shard and the queues between them, up to what is ready to be committed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain as chained
from typing import TYPE_CHECKING, Protocol

from tasks.inference.batching import batches, weight, weight_of_all
from tasks.inference.decode_stage import DecodeStage
from tasks.inference.decoding.isolated import IsolatedDecoder
from tasks.inference.decoding.policies import open_decoder
from tasks.inference.forward_stage import ForwardStage, Rule
from tasks.inference.in_flight import InFlight
from tasks.inference.meters import Meters
from tasks.inference.pixels import PixelSlots
from tasks.inference.reading import Work, read_object
from tasks.inference.stages import Buffered, Parallel, Room
from tasks.inference.thumbnails import Thumbnails
from tasks.inference.twins import Twins
from tasks.models.cascade import pixels_key
from tasks.models.runtimes import choose_device
from tasks.processors import cores
from tasks.stage_times import Times, numbered

if TYPE_CHECKING:
    from tasks.cache.ledger import ShardLedger
    from tasks.models.cascade import Model
    from tasks.models.runtimes import Runtime
    from tasks.settings import Settings
    from tasks.storage.base import ImageObject, ObjectStore
    from tasks.storage.thumbnails import ThumbnailStore

LOOKUP_GROUP = 64
MIB = 2**20


class Queued(Protocol):
    """A queue, or what has one: seconds that it kept who takes and who puts waiting, and how full it is, 0 to 1."""

    @property
    def waits(self) -> tuple[float, float]: ...

    @property
    def fill(self) -> float: ...


@dataclass(frozen=True)
class Parts:
    """What the stages of a shard work with."""

    ledger: ShardLedger
    store: ObjectStore
    model: Model
    runtimes: tuple[Runtime, ...]
    settings: Settings
    thumbnails: ThumbnailStore | None = field(default=None, kw_only=True)

    @property
    def device(self) -> str:
        """What the forward passes run on: one worker, one device."""
        return self.runtimes[0].device


class Chain:
    """Stages that run until their rows are through, or until they are closed; `end` gives finished work.

        read -> look_up -> decode -> forward ( -> decode_2 -> forward_2 ...) -> end

    A cascade has a forward pass for each of its models, and a stage that decodes once more before one that wants other
    pixels than the one before it. What is decided passes through those behind. Each queue is bounded, and hands on to the
    next one only, so none can wait for itself. `closing` ends every thread at once; reads that hang are left behind.
    """

    def __init__(self, parts: Parts, images: int, label: str) -> None:
        settings = parts.settings
        self._parts = parts
        self.rows = self._reads = 0
        self._taken = (0, 0)
        self._lock = threading.Lock()
        self.twins = Twins()
        self.thumbnails = None if parts.thumbnails is None else Thumbnails(parts.thumbnails, label)
        self.closing = threading.Event()
        self._in_flight = InFlight(settings.readers)
        self._workers = {"read": settings.readers, "look_up": 1, **_workers(parts), "commit": 1}
        self._decoders = {
            numbered("decode", number): open_decoder(
                bundle.spec.preprocessing, settings.compiled, images, choose_device(settings)
            )
            for number, bundle in enumerate(parts.model.stages, 1)
            if numbered("decode", number) in self._workers
        }
        # What was in flight when a process died may have killed it.
        self.suspects = parts.ledger.suspects()
        self._stages: list[DecodeStage] = []
        self.meters = Meters(self._workers, cores())
        # Reads and decodings under way and their results, and two queues for each further stage: each may hold as much.
        self._share = settings.queue_mib * MIB // (2 * (len(self._workers) - 2))
        self._before: dict[str, Queued] = {}
        self._behind: dict[str, Queued] = {}
        self._passes: list[ForwardStage] = []
        self.end = self._join()

    def _join(self) -> Buffered[Work]:
        """The look-up runs in the thread that feeds the decoders."""
        readers, stop, share = self._workers["read"], self.closing, self._share
        room = Room(2 * readers, share, listed_size)
        self._read = Parallel(self._read_one, self._rows(), readers, room, stop, "read")
        self._files = Buffered(self._read, Room(2 * readers, share, weight), stop, "read-out")
        self._before["look_up"] = self._behind["read"] = self._files
        end = self._files
        for number in range(1, len(self._parts.runtimes) + 1):
            if numbered("decode", number) in self._decoders:
                slots, end = self._join_decoder(number, end)
            end = self._join_network(number, end, slots)
        self._before["commit"] = end
        return end

    def _join_decoder(self, number: int, source: Buffered[Work]) -> tuple[PixelSlots, Buffered[Work]]:
        """Behind `source`, decode for a model of the cascade."""
        name, workers = numbered("decode", number), self._workers["decode"]
        decoder, later = self._decoders[name], list(self._decoders)[-1] != name
        spec, compiled = self._parts.model.stages[number - 1].spec.preprocessing, self._parts.settings.compiled
        slots, isolated = PixelSlots(spec.crop), IsolatedDecoder(spec, compiled)
        thumbnails = self.thumbnails if number == 1 else None
        stage = DecodeStage(decoder, isolated, slots, self.meters[name], later, self.suspects, thumbnails)
        self._stages.append(stage)
        groups = self._look_up(decoder.group) if number == 1 else batches(source, decoder.group, self._share)
        room = Room(decoder.group * workers, self._share, weight_of_all)
        calls = Parallel(stage.decode, groups, workers, room, self.closing, name)
        room = Room(2 * self._parts.runtimes[number - 1].batch_size, self._share, weight)
        out = Buffered(_flat(calls), room, self.closing, f"{name}-out")
        self._before[name], self._behind[name] = source, out
        if number == 1:
            self._before[name] = self._behind["look_up"] = calls
        return slots, out

    def _join_network(self, number: int, source: Buffered[Work], slots: PixelSlots) -> Buffered[Work]:
        """Behind `source`, run a model of the cascade, or the only one."""
        name, runtime, model = numbered("forward", number), self._parts.runtimes[number - 1], self._parts.model
        rule = _rule(model, number, takes_pixels=numbered("decode", number + 1) not in self._decoders)
        stage = ForwardStage(model.stages[number - 1], runtime, rule, slots, self.meters[name])
        self._passes.append(stage)
        # Results keep their order. So that what is decided need not wait for a batch of a later model, some groups of
        # finished images may be under way beside it; they weigh nothing.
        room = Room((2 if number == 1 else 8) * runtime.streams, self._share, weight_of_all)
        groups = batches(source, runtime.batch_size, self._share)
        calls = Parallel(stage.predict, groups, runtime.streams, room, self.closing, name)
        room = Room(4 * runtime.batch_size * runtime.streams, self._share, weight)
        out = Buffered(_flat(calls), room, self.closing, f"{name}-out")
        self._before[name], self._behind[name] = source, out
        return out

    def close(self) -> None:
        """End every stage; what is on its way is dropped, and stays open in the database."""
        self.closing.set()
        self._in_flight.close()
        if self.thumbnails is not None:
            self.thumbnails.close()
        for stage in self._stages:
            stage.isolated.close()
        self.end.close()

    def check(self) -> None:
        """Raises DecoderStalled where an image keeps a decoder busy for minutes."""
        for stage in self._stages:
            stage.check()

    def times(self) -> Times:
        """What the stages did so far, and for how long each waited: before it for work, behind it for a taker."""
        self.meters["read"].workers = self._in_flight.limit
        return self.meters.times(
            {stage: one.waits[0] for stage, one in self._before.items()},
            {stage: one.waits[1] for stage, one in self._behind.items()},
        )

    def queue_fill(self) -> dict[str, float]:
        """How full the queue before each stage is, 0 to 1."""
        return {"read": self._read.fill, **{stage: one.fill for stage, one in self._before.items()}}

    def take_counts(self) -> tuple[int, int]:
        """Objects read, and images through a forward pass, since the counts were last taken.

        An image that goes on in a cascade counts for each pass.
        """
        with self._lock:
            before, self._taken = self._taken, (self._reads, sum(one.passes for one in self._passes))
            return self._taken[0] - before[0], self._taken[1] - before[1]

    def _rows(self) -> Iterator[ImageObject]:
        for row in self._parts.ledger.take_rows():
            self.rows += 1
            yield row

    def _read_one(self, listed: ImageObject) -> Work:
        most = self._parts.settings.max_image_mib * MIB
        work = read_object(self._parts.store, listed, self._room_to_read, most)
        self.meters["read"].pass_on(1)
        if work.finished is not None and work.finished.failed is not None:
            self.meters["read"].fail()
        return work

    @contextmanager
    def _room_to_read(self) -> Iterator[None]:
        with self._in_flight.one(), self.meters["read"].work(0):
            yield

    def _look_up(self, size: int) -> Iterator[list[Work]]:
        """Pass on what needs a forward pass, and what is finished, in groups of at most `size`; keep twins back until their
        leader is through."""
        meter = self.meters["look_up"]
        for group in self._files.groups(LOOKUP_GROUP):
            with meter.work(len(group)):
                leaders = [work for work in group if work.digest is not None and self.twins.lead(work)]
                self._finish_known(leaders)
            with self._lock:
                self._reads += sum(work.was_read for work in group)
            # In the order of the group, so that failures and successes are judged as they came.
            leading = {id(work) for work in leaders}
            onward = [work for work in group if work.digest is None or id(work) in leading]
            meter.hold(len(group) - len(onward))
            for start in range(0, len(onward), size):
                yield onward[start : start + size]

    def _finish_known(self, leaders: list[Work]) -> None:
        """Finish what has a prediction, and what is blocked."""
        digests = [work.digest for work in leaders if work.digest is not None]
        blocked, known = self._parts.ledger.blocked(digests), self._parts.ledger.predicted(digests)
        for work in leaders:
            if work.digest in blocked:
                work.block()
                self.meters["look_up"].fail()
            elif work.digest in known:
                work.reuse()


def _workers(parts: Parts) -> dict[str, int]:
    """The threads of each stage that computes: a decoder before each model whose pixels are not those of the one before."""
    workers: dict[str, int] = {}
    pixels: tuple[object, ...] = ()
    for number, (bundle, runtime) in enumerate(zip(parts.model.stages, parts.runtimes, strict=True), 1):
        wanted = pixels_key(bundle.spec.preprocessing)
        if wanted != pixels:
            workers[numbered("decode", number)] = parts.settings.decoders or cores()
        workers[numbered("forward", number)] = runtime.streams
        pixels = wanted
    return workers


def _rule(model: Model, number: int, *, takes_pixels: bool) -> Rule:
    """What the model of this number answers; `takes_pixels` says that the next one wants the same pixels."""
    if not model.is_cascade:
        return Rule(model.top_k)
    if number == len(model.stages):
        return Rule(model.top_k, number)
    return Rule(model.top_k, number, model.margins[number - 1], takes_pixels)


def listed_size(listed: ImageObject) -> int:
    """What a read will bring, as far as the listing knows."""
    return listed.size


def _flat(source: Parallel[list[Work], list[Work]]) -> Iterator[Work]:
    try:
        yield from chained.from_iterable(source)
    finally:
        source.close()
