"""A network that is code, made narrower to the shapes of a pruned bundle's tensors.

Pruning removes channels and keeps the architecture: the layers are the same, and some of their dimensions are smaller.
So the shapes of the tensors say all that is needed to build the pruned network, and no code or pickle comes with it.
Whether the shapes fit each other is asked of the network itself, by a forward pass of shapes without numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# What can be narrower. Pruning leaves alone all channels that reach a layer of another kind with numbers of its own.
SHRINKABLE = (nn.Conv2d, nn.Linear, _BatchNorm, nn.PReLU)


def shrink(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Make layers as narrow as their tensors in `state`, with numbers that mean nothing.

    Returns what keeps the tensors from being a pruning of this network, in words; empty where nothing does. Tensors that
    are missing or unknown are left to loading.misfits.
    """
    problems = []
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        own = {key: tensor for key, tensor in _own(module).items() if prefix + key in state}
        found = {key: state[prefix + key].shape for key in own}
        if all(found[key] == own[key].shape for key in own):
            continue
        wrong = [f"{prefix}{line}" for line in _unfit(own, found)]
        if not wrong and not isinstance(module, SHRINKABLE):
            wrong = [f"{prefix}{_differ(own, found)}, and a {type(module).__name__} is never pruned"]
        if not wrong and not _shrink(module, found):
            wrong = [f"{prefix}{_differ(own, found)}, which does not fit the layer's groups or its other tensors"]
        problems += wrong
    return "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module without those of the modules in it."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def _unfit(own: Mapping[str, Tensor], found: Mapping[str, torch.Size]) -> list[str]:
    """Tensors that are larger than the architecture's, or that differ in more than channels."""
    return [
        f"{key} is {list(found[key])} and should be at most {list(tensor.shape)} in the first two dimensions, "
        "and equal to it in the others"
        for key, tensor in own.items()
        if len(found[key]) != tensor.dim()
        or any(not 1 <= size <= most for size, most in zip(found[key], tensor.shape, strict=True))
        or found[key][2:] != tensor.shape[2:]
    ]


def _differ(own: Mapping[str, Tensor], found: Mapping[str, torch.Size]) -> str:
    key = next(key for key in own if found[key] != own[key].shape)
    return f"{key} is {list(found[key])} and the architecture has {list(own[key].shape)}"


def _shrink(module: nn.Module, found: Mapping[str, torch.Size]) -> bool:
    """Set the sizes of a layer and give it tensors of them; False where they contradict each other."""
    shape = next(iter(found.values()))
    if isinstance(module, nn.Conv2d):
        # A depthwise convolution has a group for each channel. Others keep their number of groups, and narrow each.
        groups = shape[0] if module.groups == module.out_channels else module.groups
        if shape[0] % groups:
            return False
        module.groups, module.in_channels, module.out_channels = groups, groups * shape[1], shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, _BatchNorm):
        module.num_features = shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    for key, tensor in _own(module).items():
        if key in found and found[key] != tensor.shape:
            fresh = torch.empty(found[key], dtype=tensor.dtype, device=tensor.device)
            setattr(module, key, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)
    return all(size[0] == shape[0] for size in found.values() if size)


def disconnections(network: nn.Module, crop: int, classes: int) -> str:
    """Where neighbouring layers of a network in evaluation mode do not fit each other, in words; empty where they do.

    A forward pass on torch's meta device, which computes shapes and no numbers: float [1, 3, crop, crop] to logits
    [1, classes].
    """
    hollow = {name: tensor.to("meta") for name, tensor in _tensors(network).items()}
    reached: list[str] = []
    hooks = [module.register_forward_pre_hook(_check(name, reached)) for name, module in network.named_modules()]
    was_training = network.training
    network.eval()
    try:
        images = torch.zeros(1, 3, crop, crop, device="meta")
        logits = torch.func.functional_call(network, hollow, (images,))
    except _Unequal as error:
        return str(error)
    except RuntimeError as error:
        return f"behind {reached[-1]} the numbers of channels do not fit: {str(error).splitlines()[0]}"
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    if tuple(logits.shape) != (1, classes):
        return f"{reached[-1]} leads to outputs of shape {list(logits.shape[1:])}, and there are {classes} labels"
    return ""


class _Unequal(Exception):
    """A layer gets another number of channels than it takes; says which and how many."""


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _check(name: str, reached: list[str]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that compares what a layer gets with what it takes, and notes the layers with numbers as they are reached."""

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, SHRINKABLE):
            reached.append(name)
        takes, dimension = _takes(module)
        if takes is not None and inputs[0].shape[dimension] != takes:
            raise _Unequal(f"{name} takes {takes} channels and gets {inputs[0].shape[dimension]}")

    return look


def _takes(module: nn.Module) -> tuple[int | None, int]:
    """How many channels a layer takes, and in which dimension of its input."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels, 1
    if isinstance(module, nn.Linear):
        return module.in_features, -1
    return (module.num_features, 1) if isinstance(module, _BatchNorm) else (None, 1)
