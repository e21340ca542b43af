"""Dataset and DataLoader, the textbook answer.

Documented: torch.utils.data (https://docs.pytorch.org/docs/stable/data.html) with torchvision's reference transforms; the
number of workers is the one thing that it leaves open, so the harness tries several.
Tuned: uint8 crops cross from the workers, a quarter of the bytes; each worker keeps to one thread; OpenVINO.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import contract
from benchmarks.peers.contract import Job, Row


class Photographs(Dataset[tuple[torch.Tensor, str]]):
    """Pictures after the reference's transforms, with their paths."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.transform = contract.reference_transforms()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        path = self.paths[index]
        return self.transform(Image.open(path).convert("RGB")), path


class Crops(Dataset[tuple[Any, str]]):
    """Pictures as uint8 crops, with their paths."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, str]:
        path = self.paths[index]
        return contract.crop_pixels(path), path


def documented(job: Job) -> Iterator[Row]:
    """Eager torch on the batches that the workers send."""
    network = contract.build_network(job)
    loader = DataLoader(Photographs(job.photographs), batch_size=contract.BATCH, num_workers=job.workers)
    for images, paths in loader:
        yield from contract.rows(paths, contract.eager_logits(network, images))


def tuned(job: Job) -> Iterator[Row]:
    """OpenVINO on uint8 batches."""
    forward = contract.open_converted(job)
    loader = DataLoader(
        Crops(job.photographs),
        batch_size=contract.BATCH,
        num_workers=job.workers,
        collate_fn=_stack,
        prefetch_factor=4 if job.workers else None,
    )
    for pixels, paths in loader:
        yield from contract.rows(paths, forward(pixels.numpy()))


def _stack(items: list[tuple[Any, str]]) -> tuple[torch.Tensor, list[str]]:
    """A tensor goes through shared memory; an array would be pickled."""
    return torch.from_numpy(np.stack([pixels for pixels, _ in items])), [path for _, path in items]


if __name__ == "__main__":
    asked = contract.read_job()
    contract.store(asked, (tuned if asked.form == contract.TUNED else documented)(asked))
