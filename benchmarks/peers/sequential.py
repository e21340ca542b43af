"""The loop that everybody writes first: open, transform, stack, forward.

Documented: torchvision, "Models and pre-trained weights" (https://docs.pytorch.org/vision/stable/models.html), in batches.
Tuned: Pillow in threads while OpenVINO works on the batch before; no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from benchmarks.peers import contract
from benchmarks.peers.contract import Job, Row


def documented(job: Job) -> Iterator[Row]:
    """Eager torch, one picture after the other."""
    import torch

    network, transform = contract.build_network(job), contract.reference_transforms()
    for paths in contract.batches(job.photographs):
        images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
        yield from contract.rows(paths, contract.eager_logits(network, images))


def tuned(job: Job) -> Iterator[Row]:
    """The next batch is decoded while this one is in the forward pass."""
    forward = contract.open_converted(job)
    with ThreadPoolExecutor(job.workers) as pool:
        waiting = None
        for paths in contract.batches(job.photographs):
            decoding = paths, [pool.submit(contract.crop_pixels, path) for path in paths]
            if waiting is not None:
                yield from contract.rows(waiting[0], forward(np.stack([one.result() for one in waiting[1]])))
            waiting = decoding
        if waiting is not None:
            yield from contract.rows(waiting[0], forward(np.stack([one.result() for one in waiting[1]])))


if __name__ == "__main__":
    asked = contract.read_job()
    contract.store(asked, (tuned if asked.form == contract.TUNED else documented)(asked))
