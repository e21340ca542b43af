"""A folder that compiled code is loaded from: this user's alone.

Compiled programs are machine code: whoever can write them runs code in the worker. So they are loaded from one place
only, a folder that this process made for its own user, and never from a bundle, a bucket or a shared cache. Each user
has a folder of their own, so that workers who share AFTERIMAGE_HOME do not meet in one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(compiled: Path, kind: str) -> Path | None:
    """The folder of this user's compiled programs of one kind below `compiled`, made if need be.

    None, with a warning, where it is not this user's alone, or cannot be made.
    """
    folder = compiled / f"{kind}-{os.geteuid()}"
    try:
        compiled.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        log.warning("%s cannot be made: %s. Compiled programs are not kept: make it writable.", folder, error.strerror)
        return None
    return folder if is_private(folder) else None


def is_private(path: Path) -> bool:
    """Whether a folder or file belongs to this user, is no link, and can be written by nobody else; warns if not."""
    found = path.lstat()
    is_own = found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode)
    if is_own and not found.st_mode & _OTHERS_MAY_WRITE:
        return True
    log.warning(
        "%s belongs to user %d with mode %o; expected user %d and nobody else who may write. No code is loaded from "
        "there: remove it, and it is made anew.",
        path,
        found.st_uid,
        stat.S_IMODE(found.st_mode),
        os.geteuid(),
    )
    return False


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a scratch file and rename it to `path`, so that nobody ever sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    scratch = Path(name)
    try:
        write(scratch)
        scratch.chmod(0o600)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the block for a folder; the others wait. One that dies leaves it.

    On a file system without locks nobody waits: what is done in the block must be right without it, and only cost more.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s cannot be locked: %s. Several workers may do the same work.", folder, error.strerror)
        yield
    finally:
        os.close(handle)
