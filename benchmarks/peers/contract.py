"""What is the same for every peer: its arguments, the network, the preprocessing, and the rows.

Imports are inside the functions where they are slow, so that a tuned form pays only for what it uses.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    import torch

RESIZE, CROP, BATCH, TOP_K = 256, 224, 32, 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DOCUMENTED, REFERENCE, TUNED = "documented", "reference", "tuned"

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Row = tuple[str, int, float, str]


@dataclass(frozen=True)
class Job:
    """What a peer is asked to do: all photographs of a folder, with one network, into one SQLite file."""

    folder: Path
    network: str
    weights: Path
    database: Path
    form: str
    workers: int
    converted: Path

    @property
    def photographs(self) -> list[str]:
        """Paths, in order."""
        return [str(path) for path in sorted(self.folder.iterdir())]


def read_job() -> Job:
    """The job on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", required=True, help="a classification network of torchvision")
    parser.add_argument("--weights", type=Path, required=True, help="its state dict, in safetensors")
    parser.add_argument("--database", type=Path, required=True, help="the SQLite file to write")
    parser.add_argument("--form", default=DOCUMENTED, choices=(DOCUMENTED, REFERENCE, TUNED))
    parser.add_argument("--workers", type=int, default=2, help="processes or threads that load photographs")
    parser.add_argument("--converted", type=Path, required=True, help="the network as OpenVINO reads it")
    return Job(**vars(parser.parse_args()))


def build_network(job: Job) -> torch.nn.Module:
    """torchvision's network with the weights that everybody loads, ready for inference."""
    import torchvision
    from safetensors.torch import load_file

    network: torch.nn.Module = torchvision.models.get_model(job.network, weights=None)
    network.load_state_dict(load_file(job.weights))
    return network.eval()


def reference_transforms() -> Callable[[Image.Image], torch.Tensor]:
    """From a picture to the network's input, as torchvision's documentation preprocesses for evaluation."""
    from torchvision import transforms

    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.Resize(RESIZE),
            transforms.CenterCrop(CROP),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def eager_logits(network: torch.nn.Module, images: torch.Tensor) -> Logits:
    """One forward pass in eager torch."""
    import torch

    with torch.inference_mode():
        return network(images).numpy()  # type: ignore[no-any-return]


def crop_pixels(path: str) -> Pixels:
    """The reference's pixels before ToTensor, uint8 [CROP, CROP, 3], by Pillow alone: importing torch costs seconds."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    short, long = sorted(image.size)
    scaled = int(RESIZE * long / short)
    size = (RESIZE, scaled) if width <= height else (scaled, RESIZE)
    left, top = round((size[0] - CROP) / 2), round((size[1] - CROP) / 2)
    resized = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + CROP, top + CROP)))


def open_converted(job: Job, threads: int | None = None) -> Callable[[Pixels], Logits]:
    """OpenVINO's forward pass in fp32; uint8 [n, CROP, CROP, 3] goes in, normalisation is part of the network."""
    import openvino as ov

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = ov.Core()
    request = core.compile_model(core.read_model(job.converted), "CPU", settings).create_infer_request()
    return lambda pixels: request.infer([pixels])[0].copy()


def rows(paths: Sequence[str], logits: Logits) -> list[Row]:
    """(key, label index, score, top five as JSON) of a batch."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
    return [
        (
            Path(path).name,
            int(order[0]),
            float(row[order[0]]),
            json.dumps([[int(i), float(row[i])] for i in order]),
        )
        for path, row, order in zip(paths, scores, best, strict=True)
    ]


def store(job: Job, found: Iterable[Row]) -> None:
    """Write all rows in one transaction, which is the fastest way, and say so: the harness stops its clock at this line."""
    with sqlite3.connect(job.database) as connection:
        connection.execute("CREATE TABLE prediction (key TEXT PRIMARY KEY, label_index INT, score REAL, top_k TEXT)")
        written = connection.executemany("INSERT INTO prediction VALUES (?, ?, ?, ?)", found).rowcount
    print(json.dumps({"rows": written}), flush=True)


def batches(paths: Sequence[str]) -> Iterable[Sequence[str]]:
    """Slices of BATCH paths."""
    return (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))
