"""A model bundle: a folder with model.toml, safetensors weights and a file of labels.

    name = "digits"
    version = "1"
    architecture = "small_cnn"              # or "torchvision:squeezenet1_0"
    weights = "weights.safetensors"
    labels = "labels.txt"                   # one label a line, in the order of the network's outputs
    precision = "fp32"                      # fp32, bf16 or fp16: declared here, never chosen by a worker
    top_k = 5

    [preprocessing]
    decode = "exact"                        # or "fast", "nvjpeg"; tasks/inference/decoding/policies.py says what they are
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
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.errors import ModelError
from tasks.models.fingerprint import fingerprint
from tasks.models.spec import ModelSpec, Preprocessing

__all__ = ["Bundle", "ModelSpec", "Preprocessing", "read_bundle", "write_bundle"]


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
        spec = self.spec.plain()
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
    from tasks.models.manifest import check_manifest

    spec = check_manifest(manifest, table)
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

    top = spec.plain()
    tables = {key: top.pop(key) for key in ("preprocessing", "options")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"
