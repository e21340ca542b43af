"""The weights that are left, made to do the work of those that are gone: least squares, layer by layer, without labels.

Behind a pruned layer the next one lacks inputs, and its outputs are off; a few layers on, nothing is left of the answer.
So each layer's weights are fitted such that its outputs are those of the original, on images of the user's (He, Zhang and
Sun, arXiv:1707.06168). The layers are fitted in the order in which they are reached, each on what the fitted ones before
it give. That takes one forward pass of each network, and is where distillation begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.optimisation.pruning import Pruned

IMAGES = 64
"""As many images are enough: each gives up to a hundred places to fit a convolution on."""

SAMPLES = 8_192

# How strongly weights are held to what they were, as a share of what the inputs weigh: few images must not twist them.
RIDGE = 1e-3


def reconstruct(original: nn.Module, pruned: Pruned, images: Tensor) -> None:
    """Fit the weights of the pruned network in place. `images`: float [n, 3, crop, crop], normalised, for both networks."""
    layers = [name for name, module in pruned.network.named_modules() if _is_fitted(module)]
    original.eval()
    pruned.network.eval()
    with torch.inference_mode(False), torch.no_grad():
        wanted: dict[str, Tensor] = {}
        with _hooked(original, layers, lambda name: _keep(name, wanted, pruned)):
            original(images)
        with _hooked(pruned.network, layers, lambda name: _fit(name, wanted)):
            pruned.network(images)


def _is_fitted(module: nn.Module) -> bool:
    """Convolutions over all channels, and linear layers. One with groups loses no inputs, or few."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


@contextmanager
def _hooked(network: nn.Module, layers: list[str], hook_of: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    hooks = [network.get_submodule(name).register_forward_hook(hook_of(name)) for name in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keep(name: str, wanted: dict[str, Tensor], pruned: Pruned) -> Callable[..., None]:
    """A hook that keeps the outputs of a layer at some places, for the channels that are left: [samples, outputs]."""

    def keep(module: nn.Module, _inputs: object, output: Tensor) -> None:
        if name not in wanted:
            rows = _outputs(output, _places(output))
            wanted[name] = rows[:, pruned.outputs[name]] if name in pruned.outputs else rows.clone()

    return keep


def _fit(name: str, wanted: dict[str, Tensor]) -> Callable[..., Tensor | None]:
    """A hook that fits a layer's weights when it is reached, and passes on what the fitted layer gives."""

    def fit(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        target = wanted.pop(name, None)
        if target is None:
            return None
        assert isinstance(module, nn.Conv2d | nn.Linear)
        places = _places(output)
        taken = _patches(module, inputs[0], places)
        if module.bias is not None:
            taken = torch.cat([taken, torch.ones_like(taken[:, :1])], dim=1)
        change = least_squares(taken, target - _outputs(output, places))
        if module.bias is not None:
            module.bias += change[-1]
            change = change[:-1]
        module.weight += change.T.reshape(module.weight.shape)
        fitted: Tensor = module.forward(inputs[0])
        return fitted

    return fit


def _places(output: Tensor) -> Tensor | None:
    """Where a layer's outputs are compared, int64 [images, places]; None for a linear layer's, which have no places."""
    if output.dim() != 4:
        return None
    count, _, lines, columns = output.shape
    places = min(lines * columns, max(1, SAMPLES // count))
    random = torch.Generator().manual_seed(lines * columns)
    return torch.stack([torch.randperm(lines * columns, generator=random)[:places] for _ in range(count)])


def _outputs(output: Tensor, places: Tensor | None) -> Tensor:
    """[images, channels, lines, columns] at the places: [samples, channels]."""
    if places is None:
        return output.flatten(0, -2)
    rows = output.flatten(2)
    return torch.cat([rows[image][:, where.to(output.device)].T for image, where in enumerate(places)])


def _patches(module: nn.Conv2d | nn.Linear, taken: Tensor, places: Tensor | None) -> Tensor:
    """What a layer sees at the places: [samples, inputs], in the order of its weights."""
    if places is None or isinstance(module, nn.Linear):
        return taken.flatten(0, -2)
    rows = []
    for image, where in enumerate(places):
        shape: dict[str, Any] = {"dilation": module.dilation, "padding": module.padding, "stride": module.stride}
        columns = functional.unfold(taken[image : image + 1], module.kernel_size, **shape)[0]
        rows.append(columns[:, where.to(taken.device)].T)
    return torch.cat(rows)


def least_squares(taken: Tensor, missing: Tensor) -> Tensor:
    """The change of weights [inputs, outputs] that brings [samples, inputs] closest to what is missing [samples, outputs].

    With a ridge; in whichever of the two forms has the smaller system.
    """
    taken, missing = taken.double(), missing.double()
    samples, inputs = taken.shape
    change: Tensor
    ridge = max(RIDGE * taken.square().sum().item() / inputs, 1e-12)
    if samples < inputs:
        system = taken @ taken.T
        system.diagonal().add_(ridge)
        change = taken.T @ torch.linalg.solve(system, missing)
        return change.float()
    system = taken.T @ taken
    system.diagonal().add_(ridge)
    change = torch.linalg.solve(system, taken.T @ missing)
    return change.float()
