"""A bundle folder is there as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasks.models.bundle import Bundle, read_bundle
from tasks.whole import whole_folder


def fill_once(folder: Path, fill: Callable[[Path], None]) -> Bundle:
    """Fill a bundle folder under a scratch name, then rename it; processes that race end with the same folder."""
    if not (folder / "model.toml").exists():
        try:
            with whole_folder(folder) as scratch:
                fill(scratch)
        except OSError:
            if not (folder / "model.toml").exists():
                raise
    return read_bundle(folder)
