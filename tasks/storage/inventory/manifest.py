"""The manifest of an inventory: `YYYY-MM-DDTHH-MMZ/manifest.json`, and beside it manifest.checksum, which is written last."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tasks.errors import ConfigurationError, TransientStorageError
from tasks.storage.s3 import S3Store

log = logging.getLogger(__name__)

CSV, PARQUET = "CSV", "Parquet"

# What a row must tell, as S3's console names it, and how CSV and Parquet name it.
NEEDED = {"Key": "key", "Size": "size", "LastModifiedDate": "last_modified_date", "ETag": "e_tag"}

_PART = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\dZ)/(manifest\.json|manifest\.checksum)")
_PARQUET_FIELD = re.compile(r"\b(?:required|optional)\s+\w+\s+(\w+)")


@dataclass(frozen=True, slots=True)
class InventoryFile:
    """A file with rows, and the MD5 that it must have, in hex."""

    key: str
    size: int
    md5: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an inventory says of itself.

    `key` is that of manifest.json, `created` the moment at which S3 began to write, `form` CSV or Parquet, and `columns` the
    names of the fields, in the order of CSV's columns.
    """

    key: str
    created: datetime
    form: str
    columns: tuple[str, ...]
    files: tuple[InventoryFile, ...]


def newest_manifest(store: S3Store, prefix: str, bucket: str) -> Manifest:
    """The newest inventory below a prefix that is complete. Raises ConfigurationError where none can be used."""
    for key, is_complete in _manifests(store, prefix):
        if is_complete:
            return _read(store, key, bucket)
        log.info("Passed over s3://%s/%s: it has no manifest.checksum, so it is still being written", store.bucket, key)
    raise ConfigurationError(
        f"There is no complete inventory below s3://{store.bucket}/{prefix}: expected folders such as 2026-03-01T01-00Z/ that "
        "hold manifest.json and manifest.checksum. Give `inventory` as s3://BUCKET/PREFIX/SOURCE-BUCKET/CONFIG-ID/; S3 takes up "
        "to 48 hours to write the first one, and until then the key may be left out."
    )


def _manifests(store: S3Store, prefix: str) -> list[tuple[str, bool]]:
    """Keys of manifests, the newest first, and whether their checksum is there."""
    parts: dict[str, set[str]] = defaultdict(set)
    for page in store.pages(f"{prefix}2"):  # The year: not data/ and hive/, which hold many files.
        for image in page:
            if found := _PART.fullmatch(image.key, len(prefix)):
                parts[found[1]].add(found[2])
    return [
        (f"{prefix}{moment}/manifest.json", len(parts[moment]) == 2)
        for moment in sorted(parts, reverse=True)
        if "manifest.json" in parts[moment]
    ]


def _read(store: S3Store, key: str, bucket: str) -> Manifest:
    where = f"s3://{store.bucket}/{key}"
    data = store.read(key, None).data
    promised = store.read(f"{key.removesuffix('json')}checksum", None).data.decode("latin-1").strip()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if promised.lower() != found:
        raise TransientStorageError(
            f"{where} has the MD5 {found}, and manifest.checksum says {promised[:64]!r}. It is tried again; if it stays, "
            "somebody has changed one of the two: wait for the next inventory."
        )
    manifest = _parsed(data, key, where, bucket)
    _check_fields(manifest, where, bucket)
    return manifest


def _parsed(data: bytes, key: str, where: str, bucket: str) -> Manifest:
    try:
        told: dict[str, Any] = json.loads(data)
        source, form, schema = told["sourceBucket"], told["fileFormat"], told["fileSchema"]
        created = datetime.fromtimestamp(int(told["creationTimestamp"]) / 1000, UTC)
        files = tuple(
            InventoryFile(str(one["key"]), int(one["size"]), str(one["MD5checksum"])) for one in told["files"]
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigurationError(
            f"{where} is no manifest of an S3 Inventory ({type(error).__name__}: {error}). Correct `inventory`."
        ) from None
    if source != bucket:
        raise ConfigurationError(
            f"{where} is an inventory of the bucket {source!r}, and the images lie in {bucket!r}. Correct `inventory` or "
            "`images`."
        )
    if form not in (CSV, PARQUET):
        raise ConfigurationError(
            f"{where} lists files in the form {form}, and only CSV and Parquet are read. Choose one of them in the inventory's "
            "configuration; the next inventory has it."
        )
    return Manifest(key, created, form, _columns(form, str(schema)), files)


def _columns(form: str, schema: str) -> tuple[str, ...]:
    """CSV: `Bucket, Key, Size`; Parquet: `message s3.inventory { required binary bucket (UTF8); ... }`."""
    if form == CSV:
        return tuple(name.strip() for name in schema.split(","))
    return tuple(_PARQUET_FIELD.findall(schema))


def _check_fields(manifest: Manifest, where: str, bucket: str) -> None:
    names = NEEDED.values() if manifest.form == PARQUET else NEEDED
    missing = [told for told, name in zip(NEEDED, names, strict=True) if name not in manifest.columns]
    if missing:
        raise ConfigurationError(
            f"{where} lacks the field {' and the field '.join(missing)}; it has {', '.join(manifest.columns)}. Add it to the "
            f"inventory's configuration (bucket {bucket}, Management, Inventory configurations, Additional metadata fields; in "
            "the API OptionalFields): the next inventory has it."
        )
