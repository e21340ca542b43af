"""Run a package once, in a process that may die of it: `python -P package_trial.py GIVEN OPTIONS`, both JSON.

GIVEN holds file, shape and device of the pixels; OPTIONS are those of the loader. A script, so that the process needs torch
and nothing of this program, wherever that was started from.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch._inductor.package.package import load_package


def try_package(file: str, shape: list[int], device: str, options: dict[str, Any]) -> None:
    """Load it and let it answer black pixels, uint8 of this shape; twice, because the first run makes what later ones use."""
    with torch.inference_mode():
        pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        package = load_package(file, **options)
        for _ in range(2):
            package(pixels).cpu()


if __name__ == "__main__":
    try_package(**json.loads(sys.argv[1]), options=json.loads(sys.argv[2]))
