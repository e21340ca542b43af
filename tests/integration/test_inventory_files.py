"""The files of an inventory, as S3 writes them: what is read of them, and what is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.errors import ConfigurationError, TransientStorageError
from tasks.pipelines import make_pipeline
from tasks.settings import load_settings
from tasks.storage.base import ImageObject
from tasks.storage.inventory import open_inventory
from tasks.storage.s3 import S3Store, client
from tests.inventories import Entry, Inventories

NAMES = ("plain", "a b+c%20d", '"quoted", and,comma', "ä\U0001f408", "tab\t&amp;<b>", "k" * 1_000)
NOW = datetime.now(UTC)
YESTERDAY = NOW - timedelta(days=1)

Read = Callable[..., list[ImageObject]]


@pytest.fixture(params=["CSV", "Parquet"])
def inventories(request: pytest.FixtureRequest, bucket: str, s3_settings: dict[str, str]) -> Inventories:
    """Inventories of a bucket that holds some objects under odd keys."""
    s3 = client(load_settings(**s3_settings))
    for name in NAMES:
        s3.put_object(Bucket=bucket, Key=f"raw/{name}", Body=name.encode())
    s3.put_object(Bucket=bucket, Key="other/a.png", Body=b"elsewhere")
    destination = f"lists-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=destination)
    return Inventories(s3, bucket, destination, request.param)


@pytest.fixture
def read(inventories: Inventories, bucket: str, s3_settings: dict[str, str]) -> Read:
    """Reads the newest inventory, under raw/ where nothing else is said."""

    def objects(prefix: str = "raw/", uri: str | None = None) -> list[ImageObject]:
        found = open_inventory(uri or inventories.uri, bucket, load_settings(**s3_settings))
        return [image for page in found.pages(prefix) for image in page]

    return objects


def refused(read: Read, error: type[Exception], match: str, **given: Any) -> None:
    with pytest.raises(error, match=match):
        read(**given)


def test_it_tells_what_the_listing_told(
    inventories: Inventories, read: Read, bucket: str, s3_settings: dict[str, str]
) -> None:
    inventories.write(YESTERDAY)
    listed = [image for page in S3Store(bucket, load_settings(**s3_settings)).pages("raw/") for image in page]
    assert sorted(read(), key=lambda image: image.key) == listed
    assert len(listed) == len(NAMES)
    assert [image.key for image in read("raw/a ")] == ["raw/a b+c%20d"]


def test_old_versions_and_delete_markers_are_passed_over(inventories: Inventories, read: Read) -> None:
    entries = inventories.entries()
    old = [replace(entry, etag="0" * 32, is_latest=False) for entry in entries]
    marker = Entry("raw/gone.png", "", 0, YESTERDAY, is_delete_marker=True)
    inventories.write(YESTERDAY, [*old, marker, *entries], files=3)
    assert sorted(image.key for image in read()) == sorted(f"raw/{name}" for name in NAMES)
    assert all(image.etag != "0" * 32 for image in read())


def test_hostile_keys_come_as_they_are(inventories: Inventories, read: Read) -> None:
    names = (
        "line\nbreak\r\n.png",
        "+%2B% .png",
        "../x",
        "nul\0",
        "\udcff",
        "\u2028\u202e",
        "'\"\\;--",
        "%s{}",
        "k" * 1_020,
    )
    entries = [Entry(f"raw/{name}", "e" * 32, number, YESTERDAY) for number, name in enumerate(names)]
    inventories.write(YESTERDAY, entries)
    found = {image.key: (image.size, image.last_modified) for image in read()}
    moment = YESTERDAY.replace(microsecond=YESTERDAY.microsecond // 1000 * 1000)
    assert found == {entry.key: (entry.size, moment) for entry in entries}


def test_the_newest_complete_inventory_is_taken(inventories: Inventories, read: Read) -> None:
    inventories.write(YESTERDAY)
    inventories.write(YESTERDAY - timedelta(days=1), [])
    inventories.write(NOW, [], checksum=False)
    assert len(read()) == len(NAMES)


def test_no_inventory_at_all(inventories: Inventories, read: Read) -> None:
    refused(read, ConfigurationError, r"no complete inventory below .*CONFIG-ID")
    inventories.write(YESTERDAY)
    refused(read, ConfigurationError, "no complete inventory", uri=f"s3://{inventories.destination}/lists/")


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"sourceBucket": "another"}, "inventory of the bucket 'another'"),
        ({"fileFormat": "ORC"}, "in the form ORC, and only CSV and Parquet"),
        ({"fileSchema": None}, "lacks the field Key"),
        ({"creationTimestamp": "soon"}, "no manifest of an S3 Inventory"),
        ({"creationTimestamp": "9" * 30}, "no manifest of an S3 Inventory"),
    ],
)
def test_a_manifest_that_cannot_be_used(inventories: Inventories, read: Read, told: dict[str, Any], match: str) -> None:
    inventories.write(YESTERDAY, **told)
    refused(read, ConfigurationError, match)


def test_missing_fields_are_named(inventories: Inventories, read: Read) -> None:
    inventories.without("ETag", "LastModifiedDate").write(YESTERDAY)
    refused(read, ConfigurationError, "lacks the field LastModifiedDate and the field ETag; .*Add it to the inventory")
    inventories.without("IsLatest", "IsDeleteMarker", "VersionId", "StorageClass").write(NOW)
    assert len(read()) == len(NAMES), "the others are not needed"


def test_columns_in_another_order_and_fewer(inventories: Inventories, read: Read) -> None:
    inventories.write(YESTERDAY)
    before = read()
    replace(inventories, fields=("ETag", "LastModifiedDate", "Key", "Size", "Bucket")).write(NOW)
    assert read() == before


def test_checksums(inventories: Inventories, read: Read) -> None:
    checksum = inventories.write(YESTERDAY).replace("json", "checksum")
    kept = inventories.client.get_object(Bucket=inventories.destination, Key=checksum)["Body"].read()
    inventories.put(checksum, b"0" * 32)
    refused(read, TransientStorageError, "manifest.checksum says")
    inventories.put(checksum, kept.upper() + b"\n")
    data = f"{inventories.prefix}data/{YESTERDAY:%Y%m%d%H%M}-1.{'csv.gz' if inventories.form == 'CSV' else 'parquet'}"
    good = inventories.client.get_object(Bucket=inventories.destination, Key=data)["Body"].read()
    inventories.put(data, good[:-1] + bytes([good[-1] ^ 1]))
    refused(read, TransientStorageError, "MD5")
    inventories.put(data, good)
    assert len(read()) == len(NAMES)


def test_a_file_that_came_damaged_is_fetched_again(
    inventories: Inventories, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventories.write(YESTERDAY, files=1)
    pieces, calls = S3Store.pieces, []

    def unsteady(store: S3Store, key: str) -> Any:
        calls.append(key)
        yield from ([b"half of it"] if len(calls) < 3 else pieces(store, key))

    monkeypatch.setattr(S3Store, "pieces", unsteady)
    assert len(read()) == len(NAMES)
    assert len(calls) == 3


def test_rows_that_are_none(inventories: Inventories, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum is right, so this is how the file was written: it is no use to read it again."""
    inventories.write(YESTERDAY, [replace(entry, etag="") for entry in inventories.entries()])
    refused(read, ConfigurationError, "is not what its manifest says.*has no ETag")
    monkeypatch.setattr(f"tests.inventories.{inventories.form.lower()}_file", lambda *_given: b"\x1f\x8b\x08nothing")
    inventories.write(NOW)
    refused(read, ConfigurationError, "is not what its manifest says")


def test_a_file_of_other_columns_than_the_manifest_says(inventories: Inventories, read: Read) -> None:
    """In CSV a column too few would shift all that follow."""
    whole = inventories.write(YESTERDAY)
    schema = json.loads(inventories.client.get_object(Bucket=inventories.destination, Key=whole)["Body"].read())
    inventories.without("Size").write(NOW, fileSchema=schema["fileSchema"])
    refused(read, ConfigurationError, "it has (8 columns and not 9|no column size)")


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"inventory": "s3://bucket"}, "expected s3://BUCKET/PREFIX/SOURCE-BUCKET/CONFIG-ID/"),
        ({"inventory": "lists/"}, "expected s3://BUCKET/PREFIX/SOURCE-BUCKET/CONFIG-ID/"),
        ({"inventory": "s3://bucket/{{ ds }}/"}, "expected s3://BUCKET/PREFIX/SOURCE-BUCKET/CONFIG-ID/"),
        ({"inventory": "ftp://bucket/"}, "which no store serves"),
        ({"inventory": "s3://b/p/", "images": "folder"}, "only a bucket has an inventory"),
        ({"reconcile_days": 0}, "greater than 0"),
    ],
)
def test_wrong_keys(table: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make_pipeline({"name": "x", "images": "s3://b/raw/", "model": "m", **table}, "pipelines.toml: [x]")
