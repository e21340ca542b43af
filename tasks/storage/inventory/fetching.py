"""A file of an inventory on this disk. Parquet ends with what is read first, and no row is believed before the MD5 is."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from tasks.errors import TransientStorageError
from tasks.storage.inventory.manifest import InventoryFile
from tasks.storage.s3 import S3Store

log = logging.getLogger(__name__)

# A file may have gigabytes: a broken connection must not cost the others, which a new attempt of the task reads again.
ATTEMPTS = 3


@contextmanager
def fetched(store: S3Store, file: InventoryFile) -> Iterator[BinaryIO]:
    """The file below TMPDIR, from its beginning, while the context lasts. Raises TransientStorageError where its MD5 differs."""
    with tempfile.TemporaryFile(prefix="afterimage-inventory-") as data:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _fetch(store, file, data)
                break
            except TransientStorageError as error:
                if attempt == ATTEMPTS:
                    raise
                log.warning("Attempt %d of %d: %s", attempt, ATTEMPTS, error)
        data.seek(0)
        yield data


def _fetch(store: S3Store, file: InventoryFile, data: BinaryIO) -> None:
    data.seek(0)
    data.truncate()
    digest = hashlib.md5(usedforsecurity=False)
    for piece in store.pieces(file.key):
        digest.update(piece)
        data.write(piece)
    if digest.hexdigest() != file.md5.lower():
        raise TransientStorageError(
            f"s3://{store.bucket}/{file.key} has the MD5 {digest.hexdigest()}, and its manifest says {file.md5[:64]!r}. It is "
            "tried again; if it stays, somebody has changed the file: wait for the next inventory."
        )
