"""JPEG files in memory: those of a folder, or made ones. Pillow and NumPy are enough."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

MADE = 256  # pictures, where no folder is given


def photographs(folder: Path) -> list[bytes]:
    """Every JPEG file below a folder. Raises SystemExit where there is none."""
    found = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not found:
        raise SystemExit(f"{folder} holds no *.jpg or *.jpeg. Give a folder of photographs, or none to have some made.")
    return found


def made_pictures() -> list[bytes]:
    """Pictures with as many bytes as photographs of their size have: large areas, edges and grain."""
    return [made_picture(np.random.default_rng(seed)) for seed in range(MADE)]


def made_picture(random: np.random.Generator) -> bytes:
    """One of 500 x 375 pixels, some 75 kB."""
    areas = Image.fromarray(random.integers(0, 256, (19, 25, 3), dtype=np.uint8)).resize((500, 375), 3)
    levels: npt.NDArray[np.float64] = np.asarray(areas) + random.normal(0, 9, (375, 500, 1))
    out = io.BytesIO()
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()
