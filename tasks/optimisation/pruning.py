"""Fewer channels: a network whose layers are narrower, and faster without any help of the runtime's.

Torch-Pruning finds which dimensions of which layers belong together (DepGraph, arXiv:2301.12900); what is removed, and
how much, is decided here. The channels that are worth least go (importance.py). The network's inputs and outputs stay, and
so do channels that reach a layer which a bundle cannot load narrower (tasks/models/shapes.py).

Every network is checked on the spot: pruned, it must answer what the original answers whose removed channels are muted.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tasks.errors import ModelError
from tasks.extras import require
from tasks.models.shapes import SHRINKABLE
from tasks.optimisation.importance import Moments, scores_of, takes

Ranking = Literal["layer", "global"]

# Vector units and caches take channels by eights, so that other numbers cost what the next multiple costs.
MULTIPLE = 8

# Of no layer more than this share goes, whatever a ranking over all layers says.
MOST = 0.8

# Logits of the check may differ by this share of the largest: the sums have another order.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Pruning:
    """`channels` is the share of channels to remove, above 0 and below 1.

    With the ranking "layer" it is the share of each layer; with "global" that of all layers together, where a channel is
    ranked by its worth in proportion to the layer's mean. Either way a layer's number is rounded (see `kept`).
    """

    channels: float
    ranking: Ranking = "global"


@dataclass(frozen=True)
class Pruned:
    """A narrower network, and which channels of the original it kept, in order, by the names of the layers: of their outputs
    and of their inputs. A layer without an entry kept all."""

    network: nn.Module
    outputs: Mapping[str, list[int]]
    inputs: Mapping[str, list[int]]


@dataclass(frozen=True)
class _Cut:
    """Channels of a layer that go, and with them what belongs to them in other layers; `groups` of equal rank."""

    layer: nn.Module
    handler: Any
    scores: Tensor
    groups: int

    def indices(self, kept: int) -> list[int]:
        """The channels with the lowest scores, in each group of the layer."""
        count = len(self.scores)
        lowest = torch.argsort(self.scores, stable=True)[: count - kept].tolist()
        return [index + group * count for group in range(self.groups) for index in lowest]


def kept(channels: int, removed: float, multiple: int = MULTIPLE) -> int:
    """How many of a layer's channels stay: the multiple next to what is asked for, and at least one multiple.

    Layers of fewer than three multiples keep all their channels: half of them would be too many to lose.
    """
    if channels < 3 * multiple:
        return channels
    return min(channels, max(multiple, multiple * round(channels * (1.0 - removed) / multiple)))


def prune(network: nn.Module, pruning: Pruning, crop: int, moments: Moments | None = None) -> Pruned:
    """A narrower copy of a network that takes float [n, 3, crop, crop] and gives logits [n, classes].

    `moments` say what arrives at its layers; without them the weights alone rank the channels.

    Raises ModelError where the network cannot be pruned, ConfigurationError where Torch-Pruning is not installed.
    """
    tools = require("torch_pruning", "Pruning")
    _refuse_attention(network)
    narrow = copy.deepcopy(network).eval()
    images = torch.randn(2, 3, crop, crop, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of dimensions that are left alone
        graph = _graph(tools, narrow, images)
        chosen = _choose(_cuts(tools, graph, narrow, moments), pruning)
        if not chosen:
            raise ModelError(
                f"Nothing can be pruned: no layer of this network has {3 * MULTIPLE} channels or more that may go, or a share "
                f"of {pruning.channels:g} is rounded to none. Ask for more channels, or keep the network as it is."
            )
        removed = list(_removed(graph, narrow, chosen))
        for layer, handler, indices in chosen:
            graph.get_pruning_group(layer, handler, indices).prune()
    _check(narrow, _mute(network, removed), images)
    layers = dict(network.named_modules())
    outputs = {name: _without(layers[name].weight.shape[0], gone) for name, is_input, gone in removed if not is_input}
    inputs: dict[str, list[int]] = {}
    for name, is_input, gone in removed:
        if is_input:  # more than once for a layer that takes what others have put side by side
            inputs[name] = [each for each in inputs.get(name, range(_inputs(layers[name]))) if each not in set(gone)]
    return Pruned(narrow, outputs, inputs)


def _without(count: int, gone: Sequence[int]) -> list[int]:
    left = set(range(count)) - set(gone)
    return sorted(left)


def _inputs(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def _refuse_attention(network: nn.Module) -> None:
    found = next((module for module in network.modules() if "Attention" in type(module).__name__), None)
    if found is not None:
        raise ModelError(
            f"This network holds attention ({type(found).__name__}), and only networks of convolutions can be pruned here. "
            "Take another architecture, or make this one smaller with ./afterimage models optimise."
        )


def _graph(tools: Any, network: nn.Module, images: Tensor) -> Any:
    """Which dimensions of which layers belong together."""
    try:
        return tools.DependencyGraph().build_dependency(network, example_inputs=images)
    except Exception as error:  # it follows what it knows, and fails as it likes where it does not
        raise ModelError(
            f"This network cannot be pruned: Torch-Pruning does not understand how its channels are connected ({error!r}), as "
            "where channels are shuffled. Take another architecture, or ./afterimage models optimise."
        ) from None


def _choose(found: Iterator[_Cut], pruning: Pruning) -> list[tuple[nn.Module, Any, list[int]]]:
    """What goes: (layer, how, channels)."""
    cuts = list(found)
    shares = _shares([cut.scores for cut in cuts], pruning)
    chosen = []
    for cut, share in zip(cuts, shares, strict=True):
        # Of a grouped convolution all groups together have to be a multiple.
        indices = cut.indices(kept(len(cut.scores), share, MULTIPLE // math.gcd(MULTIPLE, cut.groups)))
        if indices:
            chosen.append((cut.layer, cut.handler, indices))
    return chosen


def _shares(scores: Sequence[Tensor], pruning: Pruning) -> list[float]:
    """The share of channels that goes from each layer."""
    if pruning.ranking == "layer" or not scores:
        return [pruning.channels] * len(scores)
    bar = torch.cat(list(scores)).quantile(pruning.channels)
    return [min(MOST, (each < bar).double().mean().item()) for each in scores]


def _cuts(tools: Any, graph: Any, network: nn.Module, moments: Moments | None) -> Iterator[_Cut]:
    """Every set of dimensions that can go together, with a score for each channel; in the network's order."""
    names = {module: name for name, module in network.named_modules()}
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        targets = [dependency.target for dependency, _ in group]
        # Channels that no layer takes are the network's outputs.
        is_taken = any(takes(graph, dependency) for dependency, _ in group)
        if is_taken and all(_may_go(tools, target) for target in targets):
            groups = max(_groups(target.module) for target in targets)
            scores = scores_of(tools, graph, group, names, moments).view(groups, -1).mean(0)
            root = group[0].dep
            yield _Cut(root.target.module, root.handler, scores, groups)


def _may_go(tools: Any, target: Any) -> bool:
    """Whether dimensions may go that reach this: no output of the network's, nothing that a bundle cannot load narrower."""
    kinds = tools.ops.OPTYPE
    if target.type in (kinds.OUTPUT, kinds.PARAMETER):
        return False
    return isinstance(target.module, SHRINKABLE) or not any(True for _ in target.module.parameters())


def _groups(module: nn.Module) -> int:
    """The groups of a grouped convolution, which stay equally wide; a depthwise one has none that could differ."""
    is_grouped = isinstance(module, nn.Conv2d) and module.groups != module.out_channels
    return module.groups if is_grouped else 1  # type: ignore[return-value]


Removed = tuple[str, bool, list[int]]
"""A layer's name, whether it is inputs (or outputs) that go, and which; numbered as in the original."""


def _removed(graph: Any, narrow: nn.Module, chosen: Sequence[tuple[nn.Module, Any, list[int]]]) -> Iterator[Removed]:
    """What goes of convolutions and linear layers. A depthwise convolution loses outputs only: the inputs go with them."""
    names = {module: name for name, module in narrow.named_modules()}
    for layer, handler, indices in chosen:
        for dependency, channels in graph.get_pruning_group(layer, handler, indices):
            module = dependency.target.module
            if isinstance(module, nn.Conv2d | nn.Linear):
                yield names[module], takes(graph, dependency), channels


def _mute(network: nn.Module, removed: Sequence[Removed]) -> nn.Module:
    """The original with weights of 0 wherever a layer takes a channel that goes."""
    muted = copy.deepcopy(network).eval()
    layers = dict(muted.named_modules())
    for name, is_input, channels in removed:
        layer: Any = layers[name]
        if is_input and isinstance(layer, nn.Linear):
            layer.weight.data[:, channels] = 0.0
        elif is_input:
            _mute_inputs(layer, channels)
    return muted


def _mute_inputs(layer: Any, channels: Sequence[int]) -> None:
    """Input channel i of a convolution is taken by the outputs of its group alone."""
    wide, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for channel in channels:
        group, index = divmod(channel, wide)
        layer.weight.data[group * outputs : (group + 1) * outputs, index] = 0.0


def _check(narrow: nn.Module, muted: nn.Module, images: Tensor) -> None:
    """Raises ModelError where the pruned network is not the original without those channels."""
    with torch.inference_mode():
        expected = muted(images)
        try:
            found = narrow(images)
            is_same = found.shape == expected.shape
        except RuntimeError:
            is_same = False
        if is_same:
            difference = (found - expected).abs().max().item()
            is_same = difference <= TOLERANCE * expected.abs().max().item()
    if not is_same:
        raise ModelError(
            "This network cannot be pruned: without the channels it does not compute what the original computes without them, "
            "so its code must rely on their number or order. Take another architecture, or ./afterimage models optimise."
        )
