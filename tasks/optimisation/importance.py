"""What a channel is worth: how much the layers that take it would miss it.

With images, it is the squares of the weights with which a channel is taken, times the mean square of what arrives through
it: the energy that goes with it. Without images, weights alone are asked. SqueezeNet 1.0 with 30 % of all channels gone
and its weights fitted again saw 24 of 100 photographs as before when ranked the first way, and 10 the second way; with
30 % of each layer it was 7 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Moments = Mapping[str, Tensor]
"""The mean square of each input channel of a layer, float [channels], by the layer's name."""


def moments_of(network: nn.Module, images: Tensor) -> Moments:
    """What arrives at every convolution and linear layer for float [n, 3, crop, crop], normalised."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(_note(name, found))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.inference_mode():
            network.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _note(name: str, found: dict[str, Tensor]) -> Any:
    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken = inputs[0].transpose(0, 1) if isinstance(module, nn.Conv2d) else inputs[0].movedim(-1, 0)
        found[name] = taken.flatten(1).square().mean(1)

    return note


def scores_of(tools: Any, graph: Any, group: Any, names: Mapping[nn.Module, str], moments: Moments | None) -> Tensor:
    """A score for each channel of a group of Torch-Pruning's that holds all of them, in proportion to their mean."""
    if moments is None:
        scores: Tensor = tools.importance.GroupMagnitudeImportance(p=2)(group)
        return scores
    energy = torch.zeros(len(group[0].idxs))
    for item in group:
        module = item.dep.target.module
        name = names.get(module, "")
        if name in moments and takes(graph, item.dep):
            taken = (_weights(module) * moments[name])[item.idxs]
            energy.scatter_add_(0, torch.tensor(item.root_idxs), taken)
    return energy / energy.mean().clamp_min(torch.finfo(energy.dtype).tiny)


def takes(graph: Any, dependency: Any) -> bool:
    """Whether these channels of a group are inputs of a convolution or a linear layer.

    A depthwise convolution, which has a filter for each channel, passes channels on and takes none itself.
    """
    module = dependency.target.module
    if isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1:
        return False
    return isinstance(module, nn.Conv2d | nn.Linear) and bool(graph.is_in_channel_pruning_fn(dependency.handler))


def _weights(module: nn.Conv2d | nn.Linear) -> Tensor:
    """The squares of all weights with which each input channel is taken, float [channels]."""
    squares = module.weight.detach().square()
    if isinstance(module, nn.Linear):
        return squares.sum(0)
    return squares.sum((2, 3)).view(module.groups, -1, squares.shape[1]).sum(1).flatten()
