"""A disk that is full when a test wants it to be: a tmpfs of some megabytes, and a file that takes what is left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BLOCK = 4096


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a tmpfs; the test is skipped where this user may not."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def seen_read_only(folder: Path, seen: Path) -> Iterator[Path]:
    """The same folder once more, on a mount that takes no writes: root may write whatever the file's mode says."""
    seen.mkdir()
    _mount("--bind", str(folder), str(seen))
    try:
        _mount("-o", "remount,ro,bind", str(seen))
        yield seen
    finally:
        subprocess.run(["umount", "--lazy", str(seen)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[int]:
    """Take all the room that a disk has left; the bytes that were taken."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(BLOCK))
        except OSError:
            taken = out.tell()
    try:
        yield taken
    finally:
        ballast.unlink()


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small disk here ({done.stderr.strip()}): run the tests as root, with CAP_SYS_ADMIN")
