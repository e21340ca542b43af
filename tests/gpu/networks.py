"""Networks made in memory, so that these tests need torch, torchvision, Pillow and NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import untrained
from tasks.models.loading import Classifier
from tasks.models.spec import Precision

CROP = 96  # pixels: networks of torchvision take any size, and smaller ones are tested sooner

MEAN, STD = untrained.MEAN, untrained.STD


def classifier(name: str = "resnet18", precision: Precision = "fp32") -> Classifier:
    """An untrained network of torchvision's, with the same weights every time."""
    return untrained.classifier(name, precision, CROP)


def noise(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Pixels of images that differ, uint8 [count, CROP, CROP, 3]."""
    random = np.random.default_rng(seed)
    colours = random.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.ascontiguousarray(colours.repeat(CROP // 6, axis=1).repeat(CROP // 6, axis=2))


def on_cpu(name: str, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """fp32 logits of the eager network on the CPU."""
    with torch.inference_mode():
        return classifier(name)(torch.from_numpy(pixels)).numpy()
