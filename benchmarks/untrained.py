"""Untrained networks of torchvision's whose numbers are as large as a trained one's. torch and torchvision are enough."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.models.architectures import build
from tasks.models.loading import Classifier, wrap
from tasks.models.spec import ModelSpec, Policy, Precision, Preprocessing

RESIZE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABELS, SEEN = 1_000, 16


def spec_of(name: str, precision: Precision, policy: Policy = "exact-1") -> ModelSpec:
    """A network of torchvision's with the usual preprocessing."""
    preprocessing = Preprocessing(RESIZE, CROP, MEAN, STD, decode=policy)
    return ModelSpec(name, f"torchvision:{name}", preprocessing, precision=precision)


def classifier(name: str, precision: Precision = "fp32", crop: int = CROP) -> Classifier:
    """A network with the same weights every time: its rate is that of a trained one."""
    torch.manual_seed(0)
    spec = spec_of(name, precision)
    network = build(spec.architecture, LABELS, spec.options)
    take_statistics(network, torch.randn(SEEN, 3, crop, crop), SEEN)
    return wrap(network, spec)


def take_statistics(network: nn.Module, images: Tensor, batch: int) -> None:
    """BatchNorm's mean and variance become those of the images, float32 [n, 3, height, width], seen in batches.

    Without that the numbers shrink from layer to layer: MobileNetV3's logits are 1e-9, which is 0 in fp16, and a network of
    zeros can be quicker than one of numbers.
    """
    network.eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.train()
    with torch.no_grad():
        for some in torch.split(images, batch):
            network(some)
    network.eval()
