"""Ray Data: read_images, map, and map_batches with a class.

Documented: "Working with Images" and "Image Classification Batch Inference with PyTorch" of Ray's own documentation
(https://docs.ray.io/en/latest/data/working-with-images.html). Those put ToTensor before torchvision's transforms, so the whole
picture is resized as float32: `documented` does the same, and its answers differ a little. `reference` is the same program with
the transforms on the picture, which is faster and gives the answers of everybody else.
Tuned: "Advanced: Performance Tips and Tuning"; uint8 crops, few large blocks, OpenVINO on both cores, no dashboard.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
from PIL import Image

from benchmarks.peers import contract
from benchmarks.peers.contract import Job, Row

Table = dict[str, Any]


class Classifier:
    """An actor that holds the network."""

    def __init__(self, job: Job) -> None:
        self.network = contract.build_network(job)

    def __call__(self, batch: Table) -> Table:
        import torch

        return _answers(batch["path"], contract.eager_logits(self.network, torch.from_numpy(batch["image"])))


class ConvertedClassifier:
    """An actor that holds OpenVINO's network."""

    def __init__(self, job: Job) -> None:
        self.forward = contract.open_converted(job, threads=2)

    def __call__(self, batch: Table) -> Table:
        return _answers(batch["path"], self.forward(np.ascontiguousarray(batch["image"])))


def documented(job: Job) -> Iterator[Row]:
    """One actor: of two cores, reading and transforming need the other one."""
    images = ray.data.read_images(str(job.folder), mode="RGB", include_paths=True)
    transformed = images.map(_transform(job.form))
    answers = transformed.map_batches(
        Classifier,
        fn_constructor_args=(job,),
        batch_size=contract.BATCH,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    return _rows(answers)


def tuned(job: Job) -> Iterator[Row]:
    """Reading, decoding and cropping in one task; few columns; the actor asks for no core of its own."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=512 * 2**20)
    ray.data.DataContext.get_current().enable_progress_bars = False
    paths = ray.data.from_items(job.photographs, override_num_blocks=max(4, len(job.photographs) // 250))
    answers = paths.map_batches(_crops, batch_size=2 * contract.BATCH).map_batches(
        ConvertedClassifier,
        fn_constructor_args=(job,),
        batch_size=2 * contract.BATCH,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.01,
    )
    return _rows(answers)


def _transform(form: str) -> Callable[[Table], Table]:
    from torchvision import transforms

    if form == contract.REFERENCE:
        reference = contract.reference_transforms()
        return lambda row: {"path": row["path"], "image": reference(Image.fromarray(row["image"])).numpy()}
    published = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(contract.RESIZE),
            transforms.CenterCrop(contract.CROP),
            transforms.Normalize(contract.MEAN, contract.STD),
        ]
    )
    return lambda row: {"path": row["path"], "image": published(row["image"]).numpy()}


def _crops(batch: Table) -> Table:
    paths = list(batch["item"])
    return {"path": paths, "image": np.stack([contract.crop_pixels(path) for path in paths])}


def _answers(paths: Any, logits: contract.Logits) -> Table:
    found = contract.rows(list(paths), logits)
    return {name: [row[place] for row in found] for place, name in enumerate(("key", "label_index", "score", "top_k"))}


def _rows(answers: Any) -> Iterator[Row]:
    for row in answers.iter_rows():
        yield row["key"], int(row["label_index"]), float(row["score"]), row["top_k"]


if __name__ == "__main__":
    logging.getLogger("ray").setLevel(logging.ERROR)
    asked = contract.read_job()
    contract.store(asked, (tuned if asked.form == contract.TUNED else documented)(asked))
