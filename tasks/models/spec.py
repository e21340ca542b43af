"""What a bundle says about its model, as plain values: the standard library is all that they need.

They are checked where a manifest is read (manifest.py), which needs pydantic; a spec that is built in code is taken as
it is, so that a machine with torch alone can run a model that was made in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Channels = tuple[float, float, float]
Policy = Literal["exact-1", "fast-1", "nvjpeg-1"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Option = bool | int | float | str

# What a bundle's network is written in: safetensors for an architecture that is code here, or a file that holds the
# network itself. `architecture` says which: these names stand for themselves, and every other one is code.
Form = Literal["torch", "openvino", "onnx", "torch.export"]
GRAPHS: tuple[Form, ...] = ("openvino", "onnx", "torch.export")

NEWEST: Mapping[str, Policy] = {"exact": "exact-1", "fast": "fast-1", "nvjpeg": "nvjpeg-1"}


@dataclass(frozen=True)
class Preprocessing:
    """From decoded pixels to the network's input: uint8 RGB [crop, crop, 3], then (x / 255 - mean) / std.

    `resize` and `crop` are in pixels; `mean` and `std` belong to RGB scaled to 0..1. A policy's name without a number
    stands for the newest policy of that name.
    """

    resize: int
    crop: int
    mean: Channels
    std: Channels
    decode: Policy = "exact-1"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        """Floats and numbered policies only, so that equal preprocessing has one fingerprint."""
        set_field = object.__setattr__  # the dataclass is frozen from here on
        set_field(self, "decode", NEWEST.get(self.decode, self.decode))
        set_field(self, "mean", tuple(float(value) for value in self.mean))
        set_field(self, "std", tuple(float(value) for value in self.std))


@dataclass(frozen=True)
class ModelSpec:
    """What model.toml says; bundle.py shows one.

    `files` holds the sha256 of each file by its name, `provenance` tells where the bundle comes from. Neither is part of
    what the model is.
    """

    name: str
    architecture: str
    preprocessing: Preprocessing
    version: str = "1"
    weights: str = "weights.safetensors"
    labels: str = "labels.txt"
    precision: Precision = "fp32"
    top_k: int = 5
    options: Mapping[str, Option] = field(default_factory=dict)
    network: str | None = None
    pruned: bool = False
    trusted: bool = False
    files: Mapping[str, str] = field(default_factory=dict, compare=False)
    provenance: Mapping[str, Option] = field(default_factory=dict, compare=False)

    @property
    def form(self) -> Form:
        """What the network is written in."""
        return next((form for form in GRAPHS if form == self.architecture), "torch")

    def plain(self) -> dict[str, Any]:
        """The values of model.toml by key, as dictionaries, lists, numbers and strings; without what is left at its default
        by nearly all bundles."""
        values = asdict(self)
        for key in ("network", "pruned", "trusted", "files", "provenance"):
            if not values[key]:
                del values[key]
        preprocessing = values["preprocessing"]
        for key in ("mean", "std"):
            preprocessing[key] = list(preprocessing[key])
        return values
