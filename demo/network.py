"""The demo's model: a small CNN, trained in seconds on one half of the scans, saved as a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from demo.bucket import SIDE, is_training, scans
from tasks.models.architectures import build
from tasks.models.bundle import ModelSpec, Preprocessing, write_bundle
from tasks.models.loading import Classifier

SEED = 20_26
EPOCHS = 60
BATCH = 64

SPEC = ModelSpec(
    name="digits",
    version="1",
    architecture="small_cnn",
    top_k=3,
    preprocessing=Preprocessing(resize=SIDE, crop=SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)
LABELS = tuple(str(digit) for digit in range(10))


def write_model(folder: Path, version: str = SPEC.version, epochs: int = EPOCHS) -> None:
    """Train the network and write its bundle; a bundle that is there already stays."""
    if (folder / "model.toml").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_bundle(folder, replace(SPEC, version=version), LABELS, save(train(epochs).state_dict()))


def train(epochs: int) -> nn.Module:
    """A network trained on the even scans, with a fixed seed."""
    torch.manual_seed(SEED)
    network = build(SPEC.architecture, len(LABELS), SPEC.options)
    classifier = Classifier(network, SPEC.preprocessing.mean, SPEC.preprocessing.std, torch.float32).train()
    pixels, digits = _training_set()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _epoch in range(epochs):
        for chosen in torch.split(torch.randperm(len(digits)), BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(classifier(pixels[chosen]), digits[chosen]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return network.eval()


def _training_set() -> tuple[Tensor, Tensor]:
    """uint8 [n, SIDE, SIDE, 3] and int64 [n]."""
    pixels, digits = scans()
    chosen = [number for number in range(len(digits)) if is_training(number)]
    enlarged = np.kron(pixels[chosen], np.ones((1, SIDE // 8, SIDE // 8), np.uint8))
    return torch.from_numpy(np.repeat(enlarged[..., None], 3, axis=3)), torch.from_numpy(digits[chosen])
