"""A model bundle: a folder with model.toml, safetensors weights and a file of labels.

    name = "digits"
    version = "1"
    architecture = "small_cnn"              # or "torchvision:squeezenet1_0"
    weights = "weights.safetensors"
    labels = "labels.txt"                   # one label a line, in the order of the network's outputs
    precision = "fp32"                      # fp32, bf16 or fp16: declared here, never chosen by a worker
    top_k = 5

    [preprocessing]
    decode = "exact"                        # or "fast"; tasks/inference/decoding.py says what they are
    resize = 256                            # pixels of the shorter side
    crop = 224                              # pixels, a centred square
    interpolation = "bilinear"              # or "bicubic"
    mean = [0.485, 0.456, 0.406]            # of RGB scaled to 0..1
    std = [0.229, 0.224, 0.225]

    [options]                               # arguments of the architecture, if it takes any

A bundle is immutable: a change of any of this is another model, with another `model_id`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import ModelError
from tasks.models.fingerprint import fingerprint

Channels = tuple[float, float, float]
FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]


def _newest(policy: object) -> object:
    """`exact` and `fast` stand for the newest policy of that name."""
    return {"exact": "exact-1", "fast": "fast-1"}.get(policy, policy) if isinstance(policy, str) else policy


class Preprocessing(BaseModel):
    """From decoded pixels to the network's input: uint8 RGB [crop, crop, 3], then (x / 255 - mean) / std."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decode: Annotated[Literal["exact-1", "fast-1"], BeforeValidator(_newest)] = "exact-1"
    resize: Annotated[int, Field(ge=1, le=4096)]
    crop: Annotated[int, Field(ge=1, le=4096)]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Channels
    std: Channels

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}; make resize at least as large")
        if any(value <= 0 for value in self.std):
            raise ValueError("every std must be above 0")
        return self


class ModelSpec(BaseModel):
    """What model.toml says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]
    version: str = "1"
    architecture: Annotated[str, Field(min_length=1)]
    weights: FileName = "weights.safetensors"
    labels: FileName = "labels.txt"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    top_k: Annotated[int, Field(ge=1, le=100)] = 5
    preprocessing: Preprocessing
    options: Mapping[str, bool | int | float | str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were read and checked; `folder` is where it lies and no part of what it is."""

    folder: Path
    spec: ModelSpec
    labels: tuple[str, ...]

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / self.spec.weights

    @cached_property
    def model_id(self) -> str:
        """64 hex digits; see fingerprint.py."""
        return fingerprint(self.identity(), self.weights)

    def identity(self) -> dict[str, Any]:
        """Everything besides the weights that a prediction depends on, as plain JSON values."""
        spec = self.spec.model_dump(mode="json")
        used = ("architecture", "options", "precision", "preprocessing", "top_k")
        return {**{key: spec[key] for key in used}, "labels": list(self.labels)}


def read_bundle(folder: Path) -> Bundle:
    """Read and check a bundle folder. Raises ModelError, which names the file and what to do."""
    manifest = folder / "model.toml"
    try:
        table = tomllib.loads(manifest.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{manifest} does not exist. Point `model` at a bundle folder, or at torchvision:NAME."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{manifest} is not valid TOML: {error}. Mend that line.") from None
    try:
        spec = ModelSpec(**table)
    except ValidationError as error:
        raise ModelError("\n".join(_problems(manifest, error))) from None
    if not (folder / spec.weights).is_file():
        raise ModelError(
            f"{folder / spec.weights} does not exist. Put the weights there, or correct `weights` in {manifest}."
        )
    return Bundle(folder, spec, _labels(folder / spec.labels))


def _labels(path: Path) -> tuple[str, ...]:
    try:
        # Lines end with a line feed and with nothing else: a label may hold the other ends that Unicode knows.
        labels = tuple(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist. Write one label a line, in the order of the outputs.") from None
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from None
    blank = [number for number, label in enumerate(labels, 1) if not label.strip()]
    if blank or not labels:
        raise ModelError(f"{path} has no label in line {blank[0] if blank else 1}. Give every output a label.")
    return labels


def write_bundle(folder: Path, spec: ModelSpec, labels: Iterable[str], weights: bytes) -> None:
    """Write a bundle into a folder that exists; the inverse of read_bundle."""
    (folder / spec.weights).write_bytes(weights)
    (folder / spec.labels).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    (folder / "model.toml").write_text(_toml(spec), encoding="utf-8")


def _toml(spec: ModelSpec) -> str:
    """model.toml of a spec. The standard library reads TOML and does not write it; JSON strings are TOML strings."""
    import json

    top = spec.model_dump(mode="json")
    tables = {key: top.pop(key) for key in ("preprocessing", "options")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _problems(manifest: Path, error: ValidationError) -> Iterable[str]:
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "the table"
        yield f"{manifest}: {key} = {problem['input']!r}: {problem['msg']}. Correct model.toml."
