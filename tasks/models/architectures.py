"""The network shapes that a bundle may name. Weights are data; code comes from this list only.

`torchvision:NAME` is any of torchvision's classification networks, `timm:NAME` any that timm itself has: never one that a
hub describes. `small_cnn` is our own, for small images.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from tasks.errors import ModelError
from tasks.extras import require


class SmallCnn(nn.Module):
    """Two convolutions and a linear layer for images of some 8 to 64 pixels. Input [n, 3, h, w], output [n, classes]."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
        )
        self.classifier = nn.Linear(2 * width * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a normalised batch."""
        return self.classifier(self.features(images).flatten(1))  # type: ignore[no-any-return]


def build(architecture: str, classes: int, options: Mapping[str, Any]) -> nn.Module:
    """A network of that shape with `classes` outputs and untrained weights. Raises ModelError for unknown names."""
    library, _, name = architecture.rpartition(":")
    try:
        if architecture == "small_cnn":
            return SmallCnn(classes, **options)
        if library == "torchvision" and name in classifiers():
            network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
            return network
        if library == "timm" and in_timm(name):
            return _of_timm(name, classes, options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{architecture} does not take these options: {error}. Correct [options] in model.toml."
        ) from None
    raise ModelError(
        f"The architecture {architecture!r} is not known. Use small_cnn, timm: with one of timm.list_models(), or torchvision: "
        f"with one of {classifiers()}."
    )


def in_timm(name: str) -> bool:
    """Whether timm has a network of this name, or weights of this name and tag. Raises ConfigurationError without timm."""
    timm = require("timm", f"timm:{name}")
    return name in timm.list_models(pretrained="." in name)


def _of_timm(name: str, classes: int, options: Mapping[str, Any]) -> nn.Module:
    """The network with fresh weights. Options are the network's own: none of those that make timm read a file."""
    timm = require("timm", f"timm:{name}")
    reserved = sorted(set(options) & set(inspect.signature(timm.create_model).parameters))
    if reserved:
        raise ValueError(f"{reserved} say where timm finds weights, which are the bundle's")
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **options)
    return network


def classifiers() -> list[str]:
    """Names of torchvision's classification networks."""
    return list(torchvision.models.list_models(module=torchvision.models))
