"""A model bundle: a folder with model.toml, safetensors weights and a file of labels.

    name = "digits"
    version = "1"
    architecture = "small_cnn"              # or "torchvision:NAME", "timm:NAME"; or "openvino", "onnx", "torch.export"
    weights = "weights.safetensors"         # for the last three: the file that holds the network, or its numbers
    labels = "labels.txt"                   # one label a line, in the order of the network's outputs
    precision = "fp32"                      # fp32, bf16, fp16 or int8: declared here, never chosen by a worker
    top_k = 5

    [preprocessing]
    decode = "exact"                        # or "fast", "nvjpeg"; tasks/inference/decoding/policies.py says what they are
    resize = 256                            # pixels of the shorter side
    crop = 224                              # pixels, a centred square
    interpolation = "bilinear"              # or "bicubic"
    mean = [0.485, 0.456, 0.406]            # of RGB scaled to 0..1
    std = [0.229, 0.224, 0.225]

    [options]                               # arguments of the architecture, if it takes any

    [files]                                 # sha256 of each file; a file that differs is refused
    "weights.safetensors" = "..."

    [provenance]                            # where it comes from; no part of what it is

Three more keys are rare: `network`, the .xml beside the weights of "openvino"; `pruned = true`, where the weights have fewer
channels than the architecture says; `trusted = true`, without which no "torch.export" is opened.

A bundle is immutable: a change of any of this is another model, with another `model_id`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.errors import ModelError
from tasks.models.fingerprint import file_digest, fingerprint
from tasks.models.spec import ModelSpec, Preprocessing

__all__ = ["Bundle", "ModelSpec", "Preprocessing", "read_bundle", "read_labels", "write_bundle"]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were read and checked; `folder` is where it lies and no part of what it is."""

    folder: Path
    spec: ModelSpec
    labels: tuple[str, ...]

    @property
    def weights(self) -> Path:
        """The file of weights; for "onnx" and "torch.export" the one that holds the network too."""
        return self.folder / self.spec.weights

    @property
    def network(self) -> Path:
        """The file that says what the network looks like, where its architecture is no code of ours."""
        return self.folder / (self.spec.network or self.spec.weights)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that it consists of, besides model.toml."""
        names = (self.spec.network, self.spec.weights, self.spec.labels)
        return tuple(self.folder / name for name in names if name)

    @cached_property
    def model_id(self) -> str:
        """64 hex digits; see fingerprint.py. Raises ModelError where a file is not the one that model.toml pins."""
        return fingerprint(self.identity())

    def identity(self) -> dict[str, Any]:
        """Everything that a prediction depends on, as plain JSON values."""
        spec = self.spec.plain()
        used = ("architecture", "options", "precision", "preprocessing", "top_k")
        identity = {**{key: spec[key] for key in used}, "labels": list(self.labels)}
        identity["weights"] = checked_digest(self.weights, self.spec)
        if self.spec.network:
            identity["network"] = checked_digest(self.network, self.spec)
        return identity


def read_bundle(folder: Path) -> Bundle:
    """Read and check a bundle folder. Raises ModelError, which names the file and what to do."""
    manifest = folder / "model.toml"
    try:
        table = tomllib.loads(manifest.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{manifest} does not exist. Point `model` at a bundle folder, or at torchvision:NAME."
        ) from None
    except OSError as error:
        raise ModelError(
            f"{manifest} cannot be read: {error.strerror}. Make it a file that this user may read."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{manifest} is not valid TOML: {error}. Mend that line.") from None
    from tasks.models.manifest import check_manifest

    spec = check_manifest(manifest, table)
    for key, name in (("weights", spec.weights), ("network", spec.network), ("labels", spec.labels)):
        if name and (folder / name).is_dir():
            raise ModelError(f"{folder / name} cannot be read: Is a directory. Put the file with the {key} there.")
        if name and not (folder / name).is_file():
            raise ModelError(f"{folder / name} does not exist. Put the {key} there, or correct `{key}` in {manifest}.")
        if name and not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{folder / name} is a link that leads out of the bundle. Put the {key} itself there.")
    labels = read_labels(folder / spec.labels)
    checked_digest(folder / spec.labels, spec)
    return Bundle(folder, spec, labels)


def checked_digest(path: Path, spec: ModelSpec) -> str:
    """sha256 of a bundle's file. Raises ModelError where model.toml pins another one."""
    found, expected = file_digest(path), spec.files.get(path.name)
    if expected not in (None, found):
        raise ModelError(
            f"{path} has the sha256 {found[:12]}..., and model.toml expects {expected[:12]}...: it was changed since the "
            "bundle was made. Bring the file back; if the change is meant, make a new bundle with ./afterimage models add."
        )
    return found


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels of a file, one a line, in its order. Raises ModelError, which names the file and the line."""
    try:
        # Lines end with a line feed and with nothing else: a label may hold the other ends that Unicode knows.
        labels = tuple(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist. Write one label a line, in the order of the outputs.") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}. Make it a file that this user may read.") from None
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from None
    blank = [number for number, label in enumerate(labels, 1) if not label.strip()]
    if blank or not labels:
        raise ModelError(f"{path} has no label in line {blank[0] if blank else 1}. Give every output a label.")
    return labels


def write_bundle(folder: Path, spec: ModelSpec, labels: Iterable[str], weights: bytes | None = None) -> None:
    """Write a bundle into a folder that exists, with the sha256 of each file; the inverse of read_bundle.

    Without `weights` the files of the network are there already.
    """
    if weights is not None:
        (folder / spec.weights).write_bytes(weights)
    (folder / spec.labels).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    names = [name for name in (spec.network, spec.weights, spec.labels) if name]
    pinned = replace(spec, files={name: file_digest(folder / name) for name in names})
    (folder / "model.toml").write_text(_toml(pinned), encoding="utf-8")


def _toml(spec: ModelSpec) -> str:
    """model.toml of a spec. The standard library reads TOML and does not write it; JSON strings are TOML strings."""
    import json

    top = spec.plain()
    tables = {key: top.pop(key) for key in ("preprocessing", "options", "files", "provenance") if key in top}
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_key(key)} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A key of TOML: a file's name needs quotes."""
    import json

    return name if name.replace("_", "").isalnum() and name.isascii() else json.dumps(name)
