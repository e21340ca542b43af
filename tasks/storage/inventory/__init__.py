"""S3 Inventory: the list of a bucket that S3 itself writes into a bucket, once a day or once a week.

manifest.py       the newest complete inventory: of which bucket, from when, which files
fetching.py       a file of it on this disk, with the checksum that its manifest promises
csv_files.py      gzipped CSV -> pages of ImageObject
parquet_files.py  Parquet -> pages of ImageObject, one row group at a time

An inventory is a day old or older, and may lack what came or went while it was written. So it is a source of images, and never
says that something is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.location import parse_location
from tasks.settings import Settings
from tasks.storage.base import ImageObject
from tasks.storage.inventory import csv_files, parquet_files
from tasks.storage.inventory.fetching import fetched
from tasks.storage.inventory.manifest import CSV, Manifest, newest_manifest
from tasks.storage.s3 import S3Store

__all__ = ["Inventory", "Manifest", "open_inventory"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inventory:
    """One inventory: where it lies, and what its manifest says."""

    store: S3Store
    manifest: Manifest

    def pages(self, prefix: str) -> Iterator[list[ImageObject]]:
        """What lay under a prefix, in no order, a thousand objects a page at the most.

        Each file is fetched and verified as a whole before its first row is given; on disk there is one at a time, in memory a
        page, or of Parquet a row group. Old versions and delete markers are passed over. A key may come twice, because an
        inventory is no snapshot. Raises TransientStorageError for a file that is not what the manifest says, ConfigurationError
        for rows that are none.
        """
        read = csv_files.pages if self.manifest.form == CSV else parquet_files.pages
        for number, file in enumerate(self.manifest.files, 1):
            log.info("Inventory file %d of %d: %r, %d bytes", number, len(self.manifest.files), file.key, file.size)
            with fetched(self.store, file) as data:
                yield from read(data, self.manifest.columns, prefix, f"s3://{self.store.bucket}/{file.key}")


def open_inventory(uri: str, bucket: str, settings: Settings) -> Inventory:
    """The newest complete inventory of a bucket below `uri`. Raises ConfigurationError where there is none that can be used."""
    location = parse_location(uri)
    store = S3Store(location.root, settings)
    return Inventory(store, newest_manifest(store, location.prefix.rstrip("/") + "/", bucket))
