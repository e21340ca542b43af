"""Small images and a small model, made on the spot, so that most tests need no photographs and no trained weights."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ("dark", "red", "green", "blue")


def picture(seed: int, size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    """The bytes of an image; another seed gives other bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def tinted_picture(seed: int) -> bytes:
    """As `picture`, in a colour of its own: small networks give such pictures different labels."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, 3) * 0.8 + draw.integers(0, 50, (30, 40, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def write_pictures(folder: Path, count: int, start: int = 0) -> list[str]:
    """`count` different images in a folder; returns their keys in order."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [f"{number:05d}.png" for number in range(start, start + count)]
    for number, key in enumerate(keys, start):
        (folder / key).write_bytes(picture(number))
    return keys


def write_small_bundle(
    folder: Path,
    seed: int = 0,
    crop: int = 16,
    labels: tuple[str, ...] = LABELS,
    pinned: bool = False,
    name: str = "small",
    width: int = 4,
) -> Path:
    """A bundle with an untrained small_cnn: its predictions mean nothing, and are the same every time."""
    import torch
    from safetensors.torch import save

    from tasks.models.architectures import build
    from tasks.models.bundle import ModelSpec, Preprocessing, write_bundle

    torch.manual_seed(seed)
    spec = ModelSpec(
        name=name,
        architecture="small_cnn",
        options={"width": width},
        top_k=2,
        preprocessing=Preprocessing(resize=crop, crop=crop, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_bundle(folder, spec, labels, save(build(spec.architecture, len(labels), spec.options).state_dict()))
    if not pinned:
        unpin(folder)
    return folder


def unpin(folder: Path) -> None:
    """Take [files] out of model.toml: a bundle as somebody writes it by hand, whose files may change under it."""
    manifest = folder / "model.toml"
    head, _, tail = manifest.read_text(encoding="utf-8").partition("\n[files]\n")
    _, _, rest = tail.partition("\n[")
    manifest.write_text(head + (f"\n[{rest}" if rest else ""), encoding="utf-8")
