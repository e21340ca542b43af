"""A folder or a file that is there as a whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder beside it that becomes `folder` at the end of the block, and is gone after an error.

    Raises OSError where `folder` is there by then, as after a race that another process won.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp gives it to this user alone; workers may run as others
        os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A scratch file beside it that takes its place at the end of the block, and is gone after an error."""
    number, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        os.close(number)
        yield Path(scratch)
        with open(scratch, "rb+") as written:
            os.fsync(written.fileno())
        os.chmod(scratch, 0o666 & ~_umask())  # mkstemp gives it to this user alone.
        os.replace(scratch, path)
    finally:
        Path(scratch).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
