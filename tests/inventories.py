"""Inventories as S3 writes them: real files of gzipped CSV and of Parquet, with manifest.json and manifest.checksum."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as parquet

FIELDS = (
    "Bucket",
    "Key",
    "VersionId",
    "IsLatest",
    "IsDeleteMarker",
    "Size",
    "LastModifiedDate",
    "ETag",
    "StorageClass",
)
TYPES = {
    "Bucket": ("bucket", pa.string(), "required binary bucket (UTF8)"),
    "Key": ("key", pa.binary(), "required binary key (UTF8)"),
    "VersionId": ("version_id", pa.string(), "optional binary version_id (UTF8)"),
    "IsLatest": ("is_latest", pa.bool_(), "optional boolean is_latest"),
    "IsDeleteMarker": ("is_delete_marker", pa.bool_(), "optional boolean is_delete_marker"),
    "Size": ("size", pa.int64(), "optional int64 size"),
    "LastModifiedDate": (
        "last_modified_date",
        pa.timestamp("ms", "UTC"),
        "optional int64 last_modified_date (TIMESTAMP_MILLIS)",
    ),
    "ETag": ("e_tag", pa.string(), "optional binary e_tag (UTF8)"),
    "StorageClass": ("storage_class", pa.string(), "optional binary storage_class (UTF8)"),
}


@dataclass(frozen=True)
class Entry:
    """One row of an inventory."""

    key: str
    etag: str
    size: int
    last_modified: datetime
    is_latest: bool = True
    is_delete_marker: bool = False

    def value(self, field: str, bucket: str) -> Any:
        """What stands in one column; a delete marker has neither size nor ETag."""
        values = {
            "Bucket": bucket,
            "Key": self.key,
            "VersionId": "v1",
            "IsLatest": self.is_latest,
            "IsDeleteMarker": self.is_delete_marker,
            "Size": None if self.is_delete_marker else self.size,
            "LastModifiedDate": self.last_modified,
            "ETag": None if self.is_delete_marker else self.etag,
            "StorageClass": "STANDARD",
        }
        return values[field]


def encoded(key: str) -> str:
    """A key as S3 writes it into CSV and into its notifications: slashes stay, a space is a plus."""
    return quote_plus(key, safe="/", errors="surrogateescape")


def _text(field: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
    return encoded(value) if field == "Key" else str(value)


def csv_file(entries: Sequence[Entry], bucket: str, fields: Sequence[str]) -> bytes:
    """Gzipped CSV, all of it in quotes, without a header."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([_text(field, entry.value(field, bucket)) for field in fields] for entry in entries)
    return gzip.compress(out.getvalue().encode())


def parquet_file(entries: Sequence[Entry], bucket: str, fields: Sequence[str]) -> bytes:
    """Parquet with small row groups."""
    columns: dict[str, pa.Array] = {}
    for field in fields:
        values = [entry.value(field, bucket) for entry in entries]
        if field == "Key":
            values = [value.encode("utf-8", "surrogateescape") for value in values]
        columns[TYPES[field][0]] = pa.array(values, TYPES[field][1])
    table = pa.table(columns)
    out = io.BytesIO()
    parquet.write_table(table, out, row_group_size=3)
    return out.getvalue()


@dataclass
class Inventories:
    """Writes inventories of one bucket into another; `form` is CSV, Parquet or ORC."""

    client: Any
    source: str
    destination: str
    form: str
    fields: tuple[str, ...] = FIELDS

    @property
    def prefix(self) -> str:
        return f"lists/{self.source}/daily/"

    @property
    def uri(self) -> str:
        """The key `inventory` of a pipeline."""
        return f"s3://{self.destination}/{self.prefix}"

    def entries(self) -> list[Entry]:
        """The bucket as it is now."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.source)
        return [
            Entry(found["Key"], found["ETag"].strip('"'), found["Size"], found["LastModified"])
            for page in pages
            for found in page.get("Contents", [])
        ]

    def write(
        self,
        moment: datetime,
        entries: Sequence[Entry] | None = None,
        files: int = 2,
        checksum: bool = True,
        **told: Any,
    ) -> str:
        """An inventory of a moment: of the bucket as it is, or of some entries. `told` replaces values of the manifest.

        Returns the key of its manifest.
        """
        entries = self.entries() if entries is None else entries
        make, ending = (csv_file, "csv.gz") if self.form == "CSV" else (parquet_file, "parquet")
        listed = []
        for number in range(files):
            data = make(entries[number::files], self.source, self.fields)
            key = f"{self.prefix}data/{moment:%Y%m%d%H%M}-{number}.{ending}"
            self.put(key, data)
            listed.append({"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()})
        schema = ", ".join(self.fields)
        if self.form != "CSV":
            schema = "message s3.inventory { " + " ".join(f" {TYPES[field][2]};" for field in self.fields) + "}"
        manifest = {
            "sourceBucket": self.source,
            "destinationBucket": f"arn:aws:s3:::{self.destination}",
            "version": "2016-11-30",
            "creationTimestamp": str(int(moment.timestamp() * 1000)),
            "fileFormat": self.form,
            "fileSchema": schema,
            "files": listed,
            **told,
        }
        body = json.dumps(manifest).encode()
        folder = f"{self.prefix}{moment:%Y-%m-%dT%H-%MZ}/"
        self.put(f"{folder}manifest.json", body)
        self.put(f"{self.prefix}hive/dt={moment:%Y-%m-%d-%H-%M}/symlink.txt", b"")
        if checksum:
            self.put(f"{folder}manifest.checksum", hashlib.md5(body).hexdigest().encode())
        return f"{folder}manifest.json"

    def put(self, key: str, data: bytes) -> None:
        """Write one object beside the inventories."""
        self.client.put_object(Bucket=self.destination, Key=key, Body=data)

    def without(self, *fields: str) -> Inventories:
        """The same, configured with fewer fields."""
        return replace(self, fields=tuple(field for field in self.fields if field not in fields))
