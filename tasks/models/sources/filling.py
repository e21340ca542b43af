"""A bundle folder is there as a whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tasks.models.bundle import Bundle, read_bundle


def fill_once(folder: Path, fill: Callable[[Path], None]) -> Bundle:
    """Fill a bundle folder under a scratch name, then rename it; processes that race end with the same folder."""
    if not (folder / "model.toml").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            fill(scratch)
            scratch.chmod(0o755)  # mkdtemp gives it to this user alone; workers may run as others
            os.rename(scratch, folder)
        except OSError:
            if not (folder / "model.toml").exists():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return read_bundle(folder)
