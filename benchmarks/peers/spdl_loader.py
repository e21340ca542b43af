"""SPDL: a pipeline of threads that loads, and a loop that predicts.

Documented: "Migrating from PyTorch DataLoader" (https://facebookresearch.github.io/spdl/): the dataset's own loading in threads,
`aggregate`, `default_collate`. Its own decoder, spdl.io, is not used: it needs FFmpeg's shared libraries from the system, and
FFmpeg's pixels are not the reference's.
Tuned: uint8 crops by Pillow in threads, stacked once, and OpenVINO.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from spdl.pipeline import PipelineBuilder

from benchmarks.peers import contract
from benchmarks.peers.contract import Job, Row


def documented(job: Job) -> Iterator[Row]:
    """Eager torch in the foreground."""
    from torch.utils.data import default_collate

    network, transform = contract.build_network(job), contract.reference_transforms()

    def load(path: str) -> tuple[Any, str]:
        return transform(Image.open(path).convert("RGB")), path

    pipeline = (
        PipelineBuilder()
        .add_source(job.photographs)
        .pipe(load, concurrency=job.workers, output_order="input")
        .aggregate(contract.BATCH)
        .pipe(default_collate)
        .add_sink(3)
        .build(num_threads=job.workers)
    )
    with pipeline.auto_stop():
        for images, paths in pipeline:
            yield from contract.rows(paths, contract.eager_logits(network, images))


def tuned(job: Job) -> Iterator[Row]:
    """A quarter of the bytes, one copy, OpenVINO; no torch."""
    forward = contract.open_converted(job)

    def load(path: str) -> tuple[Any, str]:
        return contract.crop_pixels(path), path

    def stack(items: list[tuple[Any, str]]) -> tuple[Any, list[str]]:
        return np.stack([pixels for pixels, _ in items]), [path for _, path in items]

    pipeline = (
        PipelineBuilder()
        .add_source(job.photographs)
        .pipe(load, concurrency=job.workers)
        .aggregate(contract.BATCH)
        .pipe(stack)
        .add_sink(3)
        .build(num_threads=job.workers)
    )
    with pipeline.auto_stop():
        for pixels, paths in pipeline:
            yield from contract.rows(paths, forward(pixels))


if __name__ == "__main__":
    asked = contract.read_job()
    contract.store(asked, (tuned if asked.form == contract.TUNED else documented)(asked))
