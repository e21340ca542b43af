"""The network shapes that a bundle may name. Weights are data; code comes from this list only.

`torchvision:NAME` is any of torchvision's classification networks. `small_cnn` is our own, for small images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from tasks.errors import ModelError


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
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{architecture} does not take these options: {error}. Correct [options] in model.toml."
        ) from None
    raise ModelError(
        f"The architecture {architecture!r} is not known. Use small_cnn or torchvision: with one of {classifiers()}."
    )


def classifiers() -> list[str]:
    """Names of torchvision's classification networks."""
    return list(torchvision.models.list_models(module=torchvision.models))
