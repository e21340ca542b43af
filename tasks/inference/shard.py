"""A shard, from its open rows to committed predictions.

    rows -> read -> digest and look-up -> decode and crop -> forward -> commit

A cascade has a forward pass for each of its models (chain.py).
The stages run side by side. The thread that called is the one that commits, so it is also the one that a signal
reaches: on SIGTERM it commits what is finished and raises Interrupted.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from tasks import stage_times
from tasks.cache.outcome import Finished, Progress
from tasks.errors import AfterimageError, DecoderStalled, GlobalFault, Interrupted, ModelError, StagingLost
from tasks.inference.bisecting import blank
from tasks.inference.chain import Chain, Parts
from tasks.inference.reading import Work, read_object
from tasks.inference.verdict import Verdict
from tasks.observation import Observation, since
from tasks.stage_times import Times
from tasks.stopping import sigterm

if TYPE_CHECKING:
    from tasks.models.bundle import Bundle
    from tasks.models.runtimes import Runtime
    from tasks.plan import ShardDescriptor

log = logging.getLogger(__name__)

COMMIT_SECONDS = 10.0
IDLE_SECONDS = 0.5


@dataclass(frozen=True)
class Shard(Parts):
    """Everything that a shard works with.

    After `stop_after` an attempt that has committed something ends with a commit, and leaves the rest open. `observe` is
    told of every commit. Whoever sets `stop` ends it as SIGTERM does.
    """

    descriptor: ShardDescriptor
    stop_after: timedelta | None = None
    observe: Callable[[Observation], None] = lambda _observation: None
    stop: threading.Event = field(default_factory=threading.Event)


def predict_shard(shard: Shard, on_progress: Callable[[int], None]) -> dict[str, int]:
    """Do what is open in a shard and return {outcome: rows} of the whole shard, as its rows show them.

    `on_progress` is told how many images each commit closed. Raises GlobalFault, Interrupted, StagingLost,
    StaleGeneration, or what the model or the database raise; what was committed before stays.
    """
    plan = shard.descriptor
    before, promised = shard.ledger.outcomes(), shard.ledger.promised()
    promised = plan.count if promised is None else promised
    if sum(before.values()) < promised:
        raise StagingLost(
            f"{plan.label} was promised {promised} staged rows and finds {sum(before.values())}: they were removed "
            "after keep_runs_days, or by another run. Clear list_images, so that the run starts anew."
        )
    goes_on = True
    while goes_on and before.get("open", 0) > 0:
        with sigterm(shard.stop) as stop, _lasting_objects():
            goes_on = _attempt(shard, before["open"], on_progress, stop)
        before = shard.ledger.outcomes()
    return before


def _attempt(shard: Shard, images: int, on_progress: Callable[[int], None], stop: threading.Event) -> bool:
    """One attempt, which says in the end that it is over; whether the shard may go on.

    One that never says so was killed, and what it had in flight is suspected of it. One that ends before it is through with
    the suspects of an older attempt says nothing either, so that they stay suspects.
    """
    attempt = _Attempt(shard, images, on_progress, stop)
    is_through = False
    try:
        is_through = attempt.run()
    except DecoderStalled:  # It is as good as dead.
        attempt.is_careful = True
        raise
    finally:
        if is_through or not attempt.is_careful:
            shard.ledger.end_attempt()
    return is_through


class _Attempt:
    """One attempt at a shard: the chain of stages, and the commits at its end."""

    def __init__(self, shard: Shard, images: int, on_progress: Callable[[int], None], stop: threading.Event) -> None:
        self.shard = shard
        self.images = images
        self.on_progress = on_progress
        self.stop = stop
        self.verdict = Verdict(self._storage_works)
        self.pending: list[Work] = []
        self.last_read: Work | None = None
        self.has_committed = False
        self.is_careful = True  # until it is known that there are no suspects
        self.observed: Times = {}
        self.started = self.committed = time.monotonic()
        self.seconds_before, self.times_before = shard.ledger.spent()

    def run(self) -> bool:
        """Pull finished work out of the chain and commit it; False where it ended before the last row.

        What is open after True counted on a prediction that was erased meanwhile, and wants another attempt.
        """
        shard = self.shard
        self.chain = Chain(shard, self.images, shard.descriptor.label)
        self.is_careful = bool(self.chain.suspects)
        try:
            self._try_model()
            while not self.stop.is_set():
                try:
                    work = self.chain.end.get(timeout=IDLE_SECONDS)
                except StopIteration:
                    self._finish()
                    return True
                if work is not None:
                    self.last_read = work if work.was_read else self.last_read
                    self.pending += self.verdict.judge(work)
                self._commit_if_due()
                self.chain.check()
                if self._is_over():
                    self._commit()
                    shard.ledger.record(self._progress())
                    return False
            self._commit()
            raise Interrupted("SIGTERM: the finished work is committed. Clear the task, and it goes on from there.")
        except GlobalFault:
            self._commit()
            raise
        finally:
            self.chain.close()

    def _finish(self) -> None:
        self.pending += self.verdict.close()
        while self.pending:
            self._commit()
        self.chain.meters.check(self.shard.descriptor.label, self.chain.rows)
        self.shard.ledger.record(self._progress())

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
        with self.chain.meters["commit"].work(len(finished)):
            pictured = self._settle_thumbnails(finished)
            closed = self.shard.ledger.commit(finished, self._progress())
            self._forget_erased(pictured, closed)
        for work in done:
            self.pending += self.chain.twins.release(work)
        self.has_committed = self.has_committed or bool(closed)
        self.on_progress(len(closed))
        self._observe(Counter(closed.values()))

    def _settle_thumbnails(self, finished: list[Finished]) -> dict[str, bytes]:
        """Before images are committed, which are never decoded again: {key: digest} of those that have a thumbnail now."""
        if self.chain.thumbnails is None:
            return {}
        digests = {item.key: item.digest for item in finished if item.digest is not None}
        there = self.chain.thumbnails.settle(set(digests.values()))
        return {key: digest for key, digest in digests.items() if digest in there}

    def _forget_erased(self, pictured: dict[str, bytes], closed: Mapping[str, str]) -> None:
        """What was erased while it was in hand leaves no thumbnail behind. What was predicted is there, and is not asked for."""
        doubtful = {key: digest for key, digest in pictured.items() if closed.get(key, "failed") == "failed"}
        if doubtful and self.chain.thumbnails is not None:
            self.chain.thumbnails.forget(self.shard.ledger.forgotten(doubtful))

    def _observe(self, outcomes: Counter[str]) -> None:
        before, self.observed = self.observed, self.chain.times()
        seconds, use = since(before, self.observed)
        self.shard.observe(Observation(self.shard.device, outcomes, seconds, use, self.chain.queue_fill()))

    def _progress(self) -> Progress:
        times = stage_times.total([self.times_before, stage_times.to_json(self.chain.times())])
        seconds = self.seconds_before + time.monotonic() - self.started
        reads, passes = self.chain.take_counts()
        return Progress(reads, passes, seconds, stage_times.to_json(times), self.shard.device)

    def _try_model(self) -> None:
        """One blank image for each model, before any image can be blamed for a broken one; reading and decoding have begun."""
        for bundle, runtime in zip(self.shard.model.stages, self.shard.runtimes, strict=True):
            _try(bundle, runtime)

    def _storage_works(self, held: list[Work]) -> bool:
        """Whether an object other than these suspects can be read: one that was read before, or others of the shard.

        They are tried at the same time, because each may take a store's whole time-out.
        """
        avoid = {work.listed.key for work in held}
        others = self.shard.ledger.candidates(avoid)
        last = [] if self.last_read is None else [self.last_read.listed]
        tried = [*last, *others]
        if not tried:
            return False
        with ThreadPoolExecutor(len(tried)) as pool:
            return any(pool.map(lambda image: read_object(self.shard.store, image).was_read, tried))


def _try(bundle: Bundle, runtime: Runtime) -> None:
    name, crop = bundle.spec.name, bundle.spec.preprocessing.crop
    try:
        logits = runtime.predict(blank(crop))
    except (AfterimageError, MemoryError):
        raise
    except Exception as error:
        raise GlobalFault(
            f"The model {name} fails on {runtime.device}, on a blank image already: {type(error).__name__}: {error}. Check the "
            "bundle and the device, then clear the task."
        ) from error
    if logits.shape != (1, len(bundle.labels)):
        raise ModelError(
            f"The model {name} gives {logits.shape[1:]} outputs for {len(bundle.labels)} labels. Correct the labels file."
        )
    if not np.isfinite(logits).all():
        raise GlobalFault(
            f"The output of the model {name} is not finite even for a blank image. Check the weights of the bundle."
        )


@contextmanager
def _lasting_objects() -> Iterator[None]:
    """Keep what was loaded up to here out of garbage collections.

    Half a million objects of imported modules last as long as the process, and each full collection went through all of
    them while every other thread waited for the interpreter's lock: 2 to 4 s of 26 over 6,000 photographs.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
