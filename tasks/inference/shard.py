"""A shard, from its open rows to committed predictions.

    rows -> read -> digest and look-up -> decode and crop -> forward -> commit

The stages run side by side. The thread that called is the one that commits, so it is also the one that a signal
reaches: on SIGTERM it commits what is finished and raises Interrupted.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import Engine

from tasks.cache import commits
from tasks.cache.database import reading
from tasks.cache.models import predicted_digests
from tasks.cache.reconciling import read_candidates
from tasks.cache.staging import open_rows, shard_outcomes
from tasks.errors import GlobalFault, ImageError, Interrupted, ModelError, StagingLost
from tasks.inference.decoding import Decoder, decoder_version
from tasks.inference.pixels import PixelSlots
from tasks.inference.reading import Work, read_object
from tasks.inference.scoring import score
from tasks.inference.stages import Buffered, StageClock, parallel
from tasks.inference.twins import Twins
from tasks.inference.verdict import NONFINITE_OUTPUT, Verdict
from tasks.models.bundle import Bundle
from tasks.models.runtimes import Runtime
from tasks.plan import ShardDescriptor
from tasks.settings import Settings
from tasks.storage.base import ObjectStore

log = logging.getLogger(__name__)

COMMIT_SECONDS = 10.0
LOOKUP_GROUP = 64
IDLE_SECONDS = 0.5


@dataclass(frozen=True)
class Shard:
    """Everything that a shard works with.

    After `stop_after` an attempt that has committed something ends with a commit, and leaves the rest open.
    """

    engine: Engine
    store: ObjectStore
    bundle: Bundle
    runtime: Runtime
    descriptor: ShardDescriptor
    settings: Settings
    stop_after: timedelta | None = None

    @property
    def scope(self) -> commits.Scope:
        """Where its commits belong."""
        plan = self.descriptor
        decoder = decoder_version(self.bundle.spec.preprocessing.decode)
        return commits.Scope(plan.staging, plan.shard, plan.model_no, decoder, plan.force)


def predict_shard(shard: Shard, on_progress: Callable[[int], None]) -> dict[str, int]:
    """Do what is open in a shard and return {outcome: rows} of the whole shard, as its rows show them.

    `on_progress` is told how many images each commit closed. Raises GlobalFault, Interrupted, StagingLost,
    StaleGeneration, or what the model or the database raise; what was committed before stays.
    """
    plan = shard.descriptor
    before = shard_outcomes(shard.engine, plan.staging, plan.shard)
    if sum(before.values()) < plan.count:
        raise StagingLost(
            f"{plan.label} was promised {plan.count} staged rows and finds {sum(before.values())}: they were removed "
            "after keep_runs_days, or by another run. Clear list_images, so that the run starts anew."
        )
    if before.get("open", 0) > 0:
        with _sigterm() as stop:
            _Attempt(shard, before["open"], on_progress, stop).run()
    return shard_outcomes(shard.engine, plan.staging, plan.shard)


class _Attempt:
    """One attempt at a shard: the chain of stages, and the commits at its end."""

    def __init__(self, shard: Shard, images: int, on_progress: Callable[[int], None], stop: threading.Event) -> None:
        self.shard = shard
        self.on_progress = on_progress
        self.stop = stop
        self.clock = StageClock()
        self.twins = Twins()
        self.decoder = Decoder(shard.bundle.spec.preprocessing, shard.settings.compiled, images)
        self.slots = PixelSlots(shard.bundle.spec.preprocessing.crop)
        self.verdict = Verdict(self._storage_works)
        self.pending: list[Work] = []
        self.last_read: Work | None = None
        self.has_committed = False
        self.closing = threading.Event()
        self.started = self.committed = time.monotonic()
        with reading(shard.engine) as connection:
            self.seconds_before, self.stages_before = commits.time_spent(connection, shard.scope)

    def run(self) -> None:
        """Pull finished work out of the chain and commit it."""
        self._try_model()
        chain = self._chain()
        try:
            while not self.stop.is_set():
                try:
                    work = chain.get(timeout=IDLE_SECONDS)
                except StopIteration:
                    self._finish()
                    return
                if work is not None:
                    self.last_read = work if work.was_read else self.last_read
                    self.pending += self.verdict.judge(work)
                self._commit_if_due()
                if self._is_over():
                    self._commit()
                    commits.record_time(self.shard.engine, self.shard.scope, self._progress())
                    return
            self._commit()
            raise Interrupted("SIGTERM: the finished work is committed. Clear the task, and it goes on from there.")
        except GlobalFault:
            self._commit()
            raise
        finally:
            self.closing.set()
            chain.close()

    def _finish(self) -> None:
        self.pending += self.verdict.close()
        while self.pending:
            self._commit()
        commits.record_time(self.shard.engine, self.shard.scope, self._progress())

    def _is_over(self) -> bool:
        limit = self.shard.stop_after
        return limit is not None and self.has_committed and time.monotonic() - self.started >= limit.total_seconds()

    def _commit_if_due(self) -> None:
        full = len(self.pending) >= self.shard.descriptor.commit_images
        waited = time.monotonic() - self.committed >= COMMIT_SECONDS
        if full or (waited and self.pending):
            self._commit()

    def _commit(self) -> None:
        done, self.pending = self.pending, []
        self.committed = time.monotonic()
        if not done:
            return
        finished = [work.finished for work in done if work.finished is not None]
        with self.clock.busy("commit"):
            closed = commits.commit(self.shard.engine, self.shard.scope, finished, self._progress())
        for work in done:
            self.pending += self.twins.release(work)
        self.has_committed = self.has_committed or bool(closed)
        self.on_progress(len(closed))

    def _progress(self) -> commits.Progress:
        stages = dict(self.stages_before)
        for stage, seconds in self.clock.seconds().items():
            stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)
        seconds = self.seconds_before + time.monotonic() - self.started
        counts = self.clock.take_counts()
        return commits.Progress(
            counts.get("reads", 0), counts.get("forward_passes", 0), seconds, stages, self.shard.runtime.device
        )

    def _chain(self) -> Buffered[Work]:
        settings, plan = self.shard.settings, self.shard.descriptor
        rows = open_rows(self.shard.engine, plan.staging, plan.shard)
        stop, ahead = self.closing, 2 * settings.readers
        reads = Buffered(parallel(self._read, rows, settings.readers, ahead, stop), ahead, stop)
        looked_up = self._look_up(reads)
        decoded = parallel(self._decode, looked_up, settings.decoders, 4 * settings.decoders, stop)
        pixels = Buffered(decoded, 2 * settings.batch_size, stop)
        return Buffered(self._forward(pixels), 4 * settings.batch_size, stop)

    def _read(self, listed: Any) -> Work:
        with self.clock.busy("read"):
            return read_object(self.shard.store, listed)

    def _look_up(self, reads: Buffered[Work]) -> Iterator[Work]:
        """Pass on what needs a forward pass, and what is finished; keep twins back until their leader is through."""
        for group in reads.groups(LOOKUP_GROUP):
            self.clock.count("reads", sum(work.was_read for work in group))
            leaders = [work for work in group if work.digest is not None and self.twins.lead(work)]
            with self.clock.busy("look_up"):
                known = self._known(leaders)
            for work in leaders:
                if work.digest in known:
                    work.reuse()
            # In the order of the group, so that failures and successes are judged as they came.
            leading = {id(work) for work in leaders}
            yield from (work for work in group if work.digest is None or id(work) in leading)

    def _known(self, leaders: list[Work]) -> set[bytes]:
        """With force only what this very run predicted counts, so that each digest is predicted once in the run."""
        plan = self.shard.descriptor
        digests = {work.digest for work in leaders if work.digest is not None}
        return predicted_digests(self.shard.engine, plan.model_no, digests, plan.staging if plan.force else None)

    def _decode(self, work: Work) -> Work:
        if work.finished is None:
            assert work.data is not None
            slot = self.slots.take()
            try:
                with self.clock.busy("decode"):
                    self.decoder.decode(work.data, slot)
            except ImageError as error:
                self.slots.give(slot)
                work.fail(error.reason, str(error), permanent=True)
            else:
                work.pixels, work.data = slot, None
        return work

    def _forward(self, pixels: Buffered[Work]) -> Iterator[Work]:
        """Gather batches; what needs no forward pass goes straight on."""
        batch: list[Work] = []
        try:
            while True:
                try:
                    work = pixels.get(timeout=IDLE_SECONDS)
                except StopIteration:
                    break
                if work is not None and work.finished is not None:
                    yield work
                    continue
                if work is not None:
                    batch.append(work)
                if len(batch) == self.shard.settings.batch_size or (work is None and batch):
                    yield from self._predict(batch)
                    batch = []
            yield from self._predict(batch)
        finally:
            pixels.close()

    def _predict(self, batch: list[Work]) -> list[Work]:
        if not batch:
            return batch
        with self.clock.busy("forward"):
            logits = self.shard.runtime.forward(self.slots.gather([work.pixels for work in batch]))
        self.clock.count("forward_passes", len(batch))
        spec = self.shard.bundle.spec
        for work, scored in zip(batch, score(logits, self.shard.bundle.labels, spec.top_k), strict=True):
            if scored is None:
                message = f"{spec.name} gives an output that is not finite for this image. Try another model."
                work.fail(NONFINITE_OUTPUT, message, permanent=False)
            else:
                work.succeed(scored)
        return batch

    def _try_model(self) -> None:
        """One blank image, before any image can be blamed for a broken model."""
        crop, classes = self.shard.bundle.spec.preprocessing.crop, len(self.shard.bundle.labels)
        logits = self.shard.runtime.forward(np.full((1, crop, crop, 3), 127, np.uint8))
        if logits.shape != (1, classes):
            raise ModelError(
                f"The model gives {logits.shape[1:]} outputs for {classes} labels. Correct the labels file."
            )
        if not np.isfinite(logits).all():
            raise GlobalFault(
                "The model's output is not finite even for a blank image. Check the weights of the bundle."
            )

    def _storage_works(self, held: list[Work]) -> bool:
        """Whether an object other than these suspects can be read: one that was read before, or others of the shard.

        They are tried at the same time, because each may take a store's whole time-out.
        """
        avoid = {work.listed.key for work in held}
        others = read_candidates(self.shard.engine, self.shard.descriptor.staging, self.shard.descriptor.shard, avoid)
        last = [] if self.last_read is None else [self.last_read.listed]
        tried = [*last, *others]
        if not tried:
            return False
        with ThreadPoolExecutor(len(tried)) as pool:
            return any(pool.map(lambda image: read_object(self.shard.store, image).was_read, tried))


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Set an event at SIGTERM instead of dying; only the main thread of a process may ask for signals."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
