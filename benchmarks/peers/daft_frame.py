"""Daft: a frame of paths, download, decode, a function for each row and a class for the model.

Documented: "Working with Images" (https://docs.daft.ai/en/stable/modalities/images/) and Daft's published benchmark of image
classification, which puts ToTensor before torchvision's transforms. Its own decoder is not libjpeg's, so pixels and answers
differ a little. `reference` is the same program with Pillow and the transforms on the picture.
Tuned: uint8 crops of a fixed shape by Pillow, from the path, and OpenVINO.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import daft
import numpy as np
from PIL import Image

from benchmarks.peers import contract
from benchmarks.peers.contract import Job, Row

ANSWER = daft.DataType.struct(
    {
        "label_index": daft.DataType.int64(),
        "score": daft.DataType.float64(),
        "top_k": daft.DataType.string(),
    }
)
INPUT = daft.DataType.tensor(daft.DataType.float32(), shape=(3, contract.CROP, contract.CROP))
CROPPED = daft.DataType.tensor(daft.DataType.uint8(), shape=(contract.CROP, contract.CROP, 3))


@daft.cls(max_concurrency=1)
class Classifier:
    """The network in eager torch."""

    def __init__(self, job: Job) -> None:
        self.network = contract.build_network(job)

    @daft.method.batch(return_dtype=ANSWER, batch_size=contract.BATCH)
    def __call__(self, images: Any) -> list[dict[str, Any]]:
        import torch

        batch = torch.from_numpy(np.array(images.to_pylist()))
        return _answers(contract.eager_logits(self.network, batch))


@daft.cls(max_concurrency=1)
class ConvertedClassifier:
    """The network in OpenVINO."""

    def __init__(self, job: Job) -> None:
        self.forward = contract.open_converted(job)

    @daft.method.batch(return_dtype=ANSWER, batch_size=2 * contract.BATCH)
    def __call__(self, images: Any) -> list[dict[str, Any]]:
        return _answers(self.forward(np.stack(images.to_pylist())))


@daft.func(return_dtype=CROPPED)
def crop(path: str) -> Any:
    """A uint8 crop, straight from the file."""
    return contract.crop_pixels(path.removeprefix("file://"))


def documented(job: Job) -> Iterator[Row]:
    """Download, decode, transform and classify, column by column."""
    frame = daft.from_glob_path(str(job.folder / "*"))
    data = daft.col("path").download()
    if job.form == contract.REFERENCE:
        transform = contract.reference_transforms()
        frame = frame.with_column(
            "image",
            data.apply(lambda found: transform(Image.open(io.BytesIO(found)).convert("RGB")).numpy(), INPUT),
        )
    else:
        from torchvision import transforms

        published = transforms.Compose(
            [
                transforms.ToTensor(),
                transforms.Resize(contract.RESIZE),
                transforms.CenterCrop(contract.CROP),
                transforms.Normalize(contract.MEAN, contract.STD),
            ]
        )
        frame = frame.with_column("decoded", data.decode_image(mode=daft.ImageMode.RGB))
        frame = frame.with_column("image", daft.col("decoded").apply(lambda found: published(found).numpy(), INPUT))
    return _rows(frame.with_column("answer", Classifier(job)(daft.col("image"))))


def tuned(job: Job) -> Iterator[Row]:
    """Two columns, uint8, OpenVINO."""
    frame = daft.from_glob_path(str(job.folder / "*")).with_column("image", crop(daft.col("path")))
    return _rows(frame.with_column("answer", ConvertedClassifier(job)(daft.col("image"))))


def _answers(logits: contract.Logits) -> list[dict[str, Any]]:
    found = contract.rows([""] * len(logits), logits)
    return [{"label_index": index, "score": score, "top_k": top} for _, index, score, top in found]


def _rows(frame: Any) -> Iterator[Row]:
    for row in frame.select("path", "answer").iter_rows():
        answer = row["answer"]
        yield row["path"].rpartition("/")[2], answer["label_index"], answer["score"], answer["top_k"]


if __name__ == "__main__":
    asked = contract.read_job()
    contract.store(asked, (tuned if asked.form == contract.TUNED else documented)(asked))
