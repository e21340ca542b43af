"""From a bundle to an eager torch module that takes decoded pixels.

Only safetensors are read: tensors and nothing else, so no pickle is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype
        self.register_buffer("scale", torch.tensor([1.0 / (255.0 * deviation) for deviation in std]))
        self.register_buffer(
            "shift", torch.tensor([-value / deviation for value, deviation in zip(mean, std, strict=True)])
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of a batch of pixels.

        (levels / 255 - mean) / std as one multiplication and one addition, over whole rows, and before the channels move:
        behind the permutation OpenVINO would put them apart for the arithmetic and together again for the first
        convolution, which takes 6 % of MobileNetV3-Small's time.
        """
        lines, columns = pixels.shape[1:3]
        rows = pixels.flatten(2).to(torch.float32) * self.scale.repeat(columns) + self.shift.repeat(columns)
        images = rows.view(-1, lines, columns, 3).permute(0, 3, 1, 2)
        logits: Tensor = self.network(images.to(self.dtype))
        return logits.to(torch.float32)


def load_classifier(bundle: Bundle) -> Classifier:
    """Build the network, fill in the weights and wrap it. Raises ModelError where they do not fit, or are not finite."""
    if bundle.spec.form == "torch.export":
        from tasks.models.exported import load_exported

        return wrap(load_exported(bundle), bundle.spec)
    if bundle.spec.form != "torch":
        raise ModelError(
            f'{bundle.folder} holds a network of architecture = "{bundle.spec.architecture}", and torch needs one that is '
            "code. Use the bundle that it was made from, or a worker whose runtime takes it (docs/models.md)."
        )
    network = build(bundle.spec.architecture, len(bundle.labels), bundle.spec.options)
    state = read_weights(bundle.weights)
    problems = misfits(network, state)
    if problems:
        raise ModelError(
            f"{bundle.weights} does not fit {bundle.spec.architecture} with {len(bundle.labels)} labels: {problems}. "
            "Check architecture, labels and weights of this bundle against each other."
        )
    # Into its own, because that knows the version of each module: MNASNet refuses weights without one.
    own = network.state_dict()
    own.update(state)
    network.load_state_dict(own, strict=True)
    return wrap(network, bundle.spec)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises ModelError where it is none, or where a number is not finite."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is no safetensors file: {error}. Convert the weights to safetensors.") from None
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"{path} has numbers that are not finite (NaN or infinite) in {_some(broken)}. The training diverged, or the file "
            "is damaged: use weights from an earlier step."
        )
    return state


def misfits(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What keeps the tensors from being this network's weights, in words; empty where nothing does."""
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {list(state[name].shape)} and should be {list(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    parts = (("it lacks", missing), ("it has besides", unknown), ("of another shape:", shapes))
    return "; ".join(f"{what} {_some(names)}" for what, names in parts if names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def wrap(network: nn.Module, spec: ModelSpec) -> Classifier:
    """A network, made ready to take decoded pixels in the precision that the spec declares."""
    return Classifier(network, spec.preprocessing.mean, spec.preprocessing.std, DTYPES[spec.precision]).eval()
