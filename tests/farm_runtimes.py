"""What runs the networks in the farm's task processes: the real runtime, watched, or one that waits as for a GPU.

A DAG file puts `predict_shard` in the place of the road's.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from tasks.inference.bisecting import BLANK
from tasks.models import runtimes
from tasks.models.bundle import Bundle
from tasks.models.runtimes import Logits, Pixels, Runtime
from tasks.plan import ShardDescriptor
from tasks.settings import Settings
from tasks.worker import predict_shard as real_predict_shard

WAITING = "waiting"
"""The name of a bundle that no network stands behind."""

RATE = "FARM_IMAGES_PER_SECOND"
RECORDS = "FARM_RECORDS"

real_open_runtime = runtimes.open_runtime


def predict_shard(descriptor: ShardDescriptor, *given: Any, **named: Any) -> dict[str, int]:
    """The worker function over the farm's runtimes; its process does nothing else."""

    def open_runtime(bundle: Bundle, settings: Settings) -> Runtime:
        if bundle.spec.name == WAITING:
            crop = bundle.spec.preprocessing.crop
            return WaitingRuntime(crop, len(bundle.labels), float(os.environ[RATE]))
        name = f"{descriptor.run_no}-{descriptor.shard}-{os.getpid()}"
        return WatchedRuntime(real_open_runtime(bundle, settings), Path(os.environ[RECORDS], name))

    runtimes.open_runtime = open_runtime
    return real_predict_shard(descriptor, *given, **named)


class WatchedRuntime:
    """A runtime that writes a line for each picture before its forward pass: a digest of its pixels."""

    def __init__(self, real: Runtime, record: Path) -> None:
        self._real, self._record = real, record
        self.device, self.batch_size, self.streams = real.device, real.batch_size, real.streams

    def buffer(self) -> Pixels:
        """See Runtime.buffer."""
        return self._real.buffer()

    def predict(self, pixels: Pixels) -> Logits:
        """See Runtime.predict."""
        digests = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pixels if not (picture == BLANK).all()]
        with open(self._record, "a", encoding="ascii") as out:
            out.write("".join(f"{digest}\n" for digest in digests))
        return self._real.predict(pixels)

    def close(self) -> None:
        """See Runtime.close."""
        self._real.close()


class WaitingRuntime:
    """Takes as long as a GPU of `rate` images a second would, and no processor meanwhile; its answers follow the pixels."""

    device = "waiting"
    batch_size = 8
    streams = 1

    def __init__(self, crop: int, classes: int, rate: float) -> None:
        self._shape = (self.batch_size, crop, crop, 3)
        self._classes, self._rate = classes, rate

    def buffer(self) -> Pixels:
        """See Runtime.buffer."""
        return np.empty(self._shape, np.uint8)

    def predict(self, pixels: Pixels) -> Logits:
        """See Runtime.predict."""
        time.sleep(len(pixels) / self._rate)
        rows = pixels.reshape(len(pixels), -1)[:, : self._classes]
        return rows.astype(np.float32) / np.float32(64)

    def close(self) -> None:
        """See Runtime.close."""


def pictures_through(records: Path, run_no: int) -> dict[int, list[list[str]]]:
    """{shard: for each process that worked on it, in their order, digests of the pictures that it began to predict}."""
    found: dict[int, list[list[str]]] = {}
    for file in sorted(records.glob(f"{run_no}-*-*"), key=lambda file: file.stat().st_mtime):
        shard = int(file.name.split("-")[1])
        found.setdefault(shard, []).append(file.read_text(encoding="ascii").split())
    return found
