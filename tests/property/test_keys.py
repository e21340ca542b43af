"""A key is the same from the listing to the views, whatever it is; what no database can hold never ends a listing."""

from __future__ import annotations

import csv
import io
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from tasks.cache import contract, erasing
from tasks.cache.database import connect
from tasks.listing import KeyFilter, Page, can_be_stored, list_pages
from tasks.location import parse_location
from tasks.settings import load_settings
from tasks.storage import open_store
from tasks.storage.base import Blob, ImageObject
from tasks.storage.s3 import S3Store, client
from tasks.tables import cell
from tasks.window import EVERYTHING
from tests.database_roles import as_owner
from tests.property import rows
from tests.property.values import KEYS, ODD_KEYS, names

ALL = KeyFilter(("*",), ())


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(as_owner(database_url))  # who may erase
    yield engine
    engine.dispose()


class Listing:
    """A store that lists what it is told, as an S3 that holds keys which others refuse."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def pages(self, prefix: str) -> Iterator[list[ImageObject]]:
        yield [rows.listed(key) for key in self.keys if key.startswith(prefix)]

    def read(self, key: str, etag: str | None) -> Blob:
        raise NotImplementedError

    def sign(self, key: str, seconds: int) -> str:
        raise NotImplementedError


def pages_of(store: Listing | S3Store) -> list[Page]:
    return list(list_pages(store, parse_location("s3://bucket/"), EVERYTHING, ALL))


@settings(max_examples=5)
@given(keys=names(KEYS))
@example(keys=list(ODD_KEYS))
def test_a_key_is_the_same_from_the_listing_to_the_views(engine: Engine, keys: list[str]) -> None:
    (page,) = pages_of(Listing(keys))
    wanted = {key for key in keys if not key.endswith("/")}  # Directory markers are no images.
    assert {image.key for image in page.images} == wanted
    assert page.ignored == len(keys) - len(wanted)
    staging = rows.staged(engine, [page.images])
    outcomes = rows.predicted(engine, staging, rows.model(engine), page.images)
    assert outcomes.keys() == wanted
    assert all(any(row["key"] == key for row in contract.predictions_of(engine, key)) for key in wanted)
    for key in wanted:
        erasing.erase(engine, erasing.Target(key=key), block=False, dry_run=False)
        assert contract.predictions_of(engine, key) == []


@given(names(st.text(st.characters(), max_size=20) | st.sampled_from(["a\0b", "\ud800", "\udcff.png", "\0"])))
def test_what_no_database_can_hold_is_ignored_and_said(caplog: pytest.LogCaptureFixture, keys: list[str]) -> None:
    """A surrogate alone, which is no text, and NUL, which PostgreSQL's text cannot hold."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        (page,) = pages_of(Listing(keys))
    usable = [key for key in keys if can_be_stored(key) and not key.endswith("/")]
    assert [image.key for image in page.images] == usable
    assert page.ignored == len(keys) - len(usable)
    said = [record.getMessage() for record in caplog.records]
    refused = [key for key in keys if not can_be_stored(key) and not key.endswith("/")]
    assert said == [
        f"Passed over {key!r}: a key must be UTF-8 without NUL to be stored. Rename the object." for key in refused
    ]


NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: name not in (b".", b"..") and not {0, 47} & set(name))


@settings(max_examples=15)
@given(found=st.lists(NAMES, min_size=1, max_size=12, unique=True))
@example(found=[b"\xff.png", "\u00e9.png".encode(), b"a\nb.png", b"-rf", b" ", b"\xed\xa0\x80", b"'\"\\"])
def test_any_name_of_a_file_is_its_key_or_is_passed_over(
    tmp_path: Path, database_here: Engine, found: list[bytes]
) -> None:
    folder = tmp_path / uuid.uuid4().hex
    (folder / "in").mkdir(parents=True)
    for name in found:
        (Path(os.fsdecode(bytes(folder) + b"/in/" + name))).write_bytes(b"x")
    location = parse_location(str(folder))
    pages = list(list_pages(open_store(location, load_settings()), location, EVERYTHING, ALL))
    expected = {f"in/{name.decode()}" for name in found if _is_text(name)}
    images = [image for page in pages for image in page.images]
    assert {image.key for image in images} == expected
    staging = rows.staged(database_here, [images])
    rows.predicted(database_here, staging, rows.model(database_here), images)
    assert all(contract.predictions_of(database_here, key) for key in expected)


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.fixture
def database_here(tmp_path: Path) -> Iterator[Engine]:
    from tasks.cache.migrating import migrate

    engine = connect(f"sqlite:///{tmp_path / 'cache.db'}")
    migrate(engine)
    yield engine
    engine.dispose()


@settings(max_examples=3)
@given(keys=names(KEYS))
@example(keys=list(ODD_KEYS))
def test_s3_lists_and_reads_the_keys_that_it_was_given(
    bucket: str, s3_settings: dict[str, str], keys: list[str]
) -> None:
    given_settings = load_settings(**s3_settings)
    s3 = client(given_settings)
    for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
        s3.delete_object(Bucket=bucket, Key=entry["Key"])
    stored = [key for key in keys if _is_taken(s3, bucket, key)]
    assert len(stored) > 25 or len(keys) < len(ODD_KEYS), "it takes nearly all of the odd ones"
    store = S3Store(bucket, given_settings)
    images = [image for page in store.pages("") for image in page]
    assert sorted(image.key for image in images) == sorted(stored)
    for image in images:
        assert store.read(image.key, image.etag).data == image.key.encode()


def _is_taken(s3: Any, bucket: str, key: str) -> bool:
    """Put an object, unless this very server has no road to such a key: `/` is one of its pages, and lines end its paths."""
    try:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    except ClientError:
        return False
    return True


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
@example(list(ODD_KEYS))
@example(["'=1", "=1", "''=1", "'", ""])
def test_any_key_comes_back_from_a_csv_reader(keys: list[str]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([[cell(key), cell(1)] for key in keys])
    found = [row[0] for row in csv.reader(io.StringIO(out.getvalue(), newline=""))]
    assert [_as_it_was(text) for text in found] == keys
    assert not any(text.startswith(FORMULAS) for text in found)


FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def _as_it_was(text: str) -> str:
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(FORMULAS) else text
