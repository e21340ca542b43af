"""Weights for a network that has none here, such that a comparison of answers means something.

    python -m benchmarks.probes.untrained mobilenet_v3_small PHOTOGRAPHS FILE.safetensors

Fresh weights give every photograph nearly the same logits, and a wrong pipeline would pass for a right one. So the BatchNorm
statistics are taken from the photographs (a cumulative average in training mode), and the last layer is shifted and scaled such
that each label's logit has mean 0, and all of them a standard deviation of 3, about as a trained network's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.peers.contract import BATCH, reference_transforms
from benchmarks.untrained import take_statistics

SEED, DEVIATION = 0, 3.0


def main(name: str, folder: Path, out: Path) -> None:
    """Build, adapt and save."""
    torch.manual_seed(SEED)
    network: nn.Module = torchvision.models.get_model(name, weights=None)
    transform = reference_transforms()
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())])
    take_statistics(network, images, BATCH)
    spread_logits(network, images)
    save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, out)
    print(json.dumps({"labels": len(set(logits(network, images).argmax(1).tolist()))}))


def spread_logits(network: nn.Module, images: Tensor) -> None:
    """Shift and scale the last linear layer."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    found = logits(network, images)
    means = found.mean(0)
    scale = DEVIATION / (found - means).std()
    with torch.no_grad():
        last.bias.sub_(means).mul_(scale)
        last.weight.mul_(scale)


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Of all images, in batches."""
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in torch.split(images, BATCH)])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
