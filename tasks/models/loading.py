"""From a bundle to an eager torch module that takes decoded pixels.

Only safetensors are read: tensors and nothing else, so no pickle is executed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.errors import ModelError
from tasks.models.architectures import build
from tasks.models.bundle import Bundle
from tasks.models.spec import ModelSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Classifier(nn.Module):
    """Normalisation and network in one module, so that only uint8 crosses from decode to forward.

    Input: uint8 [n, crop, crop, 3], RGB. Output: float32 logits [n, classes].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of a batch of pixels."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        logits: Tensor = self.network(((images - self.mean) / self.std).to(self.dtype))
        return logits.to(torch.float32)


def load_classifier(bundle: Bundle) -> Classifier:
    """Build the network, fill in the weights and wrap it. Raises ModelError where they do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = build(bundle.spec.architecture, len(bundle.labels), bundle.spec.options)
    try:
        network.load_state_dict(load_file(bundle.weights), strict=True)
    except SafetensorError as error:
        raise ModelError(
            f"{bundle.weights} is no safetensors file: {error}. Convert the weights to safetensors."
        ) from None
    except RuntimeError as error:
        raise ModelError(
            f"{bundle.weights} does not fit {bundle.spec.architecture} with {len(bundle.labels)} labels: {error}. "
            "Check architecture, labels and weights of this bundle against each other."
        ) from None
    return wrap(network, bundle.spec)


def wrap(network: nn.Module, spec: ModelSpec) -> Classifier:
    """A network, made ready to take decoded pixels in the precision that the spec declares."""
    return Classifier(network, spec.preprocessing.mean, spec.preprocessing.std, DTYPES[spec.precision]).eval()
