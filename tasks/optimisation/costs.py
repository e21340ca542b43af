"""What a network costs: its parameters, and the multiplications of one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """`parameters` are numbers that training changes; `macs` multiply-accumulates of the convolutions and linear layers for
    one image."""

    parameters: int
    macs: int


def cost_of(network: nn.Module, crop: int) -> Cost:
    """What a network costs for float [1, 3, crop, crop]. Shapes alone go through it, so it takes milliseconds."""
    macs = 0

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d | nn.Linear)
        macs += output.numel() * module.weight[0].numel()

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    hollow = {name: tensor.to("meta") for name, tensor in tensors.items()}
    was_training = network.training
    try:
        torch.func.functional_call(network.eval(), hollow, (torch.zeros(1, 3, crop, crop, device="meta"),))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return Cost(sum(parameter.numel() for parameter in network.parameters()), macs)
