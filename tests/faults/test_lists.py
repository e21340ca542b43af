"""Listings over boto3's own road: everything but the reading of its answers is boto3's, and where they begin is found out."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tasks.errors import AccessDenied, ConfigurationError, StorageError, TransientStorageError
from tasks.settings import load_settings
from tasks.storage import ImageObject
from tasks.storage.local import LocalStore
from tasks.storage.s3 import S3Store, client
from tests.faults.fake_s3.control import FakeS3
from tests.list_answers import answer, as_boto3_reads_it, told
from tests.property.values import ODD_KEYS

pytestmark = pytest.mark.usefixtures("impatient")

GOOD = answer(["raw/a.png", "raw/b.png"])


def a_store(bucket: str = "bucket", **changes: str) -> S3Store:
    keys = {"s3_access_key": "a", "s3_secret_key": "b", "s3_region": "eu-central-1"}
    return S3Store(bucket, load_settings(**keys | changes))


def keys_of(store: S3Store, prefix: str = "", after: str | None = None) -> list[str]:
    return [image.key for page in store.pages(prefix, after) for image in page]


# The same as boto3


def by_boto3(given: dict[str, str], bucket: str) -> list[ImageObject]:
    """What a client of boto3 lists, on which nothing of ours is registered."""
    asked = client(load_settings(**given)).get_paginator("list_objects_v2").paginate(Bucket=bucket)
    entries = [entry for page in asked for entry in page.get("Contents", [])]
    return [ImageObject(each["Key"], each["ETag"].strip('"'), each["Size"], each["LastModified"]) for each in entries]


@pytest.mark.parametrize("server", ["fake", "moto"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=30), min_size=1)
)
@example(keys=[key for key in ODD_KEYS if "\0" not in key])
def test_it_lists_what_boto3_lists(fake: FakeS3, request: pytest.FixtureRequest, server: str, keys: list[str]) -> None:
    given = fake.settings if server == "fake" else request.getfixturevalue("s3_settings")
    name, writer = f"same-{uuid.uuid4().hex[:12]}", client(load_settings(**given))
    writer.create_bucket(Bucket=name)
    for key in keys:
        if server == "fake" or (key.isprintable() and key not in (".", "..") and not key.startswith("/")):
            writer.put_object(Bucket=name, Key=key, Body=key.encode())

    assert [image for page in S3Store(name, load_settings(**given)).pages("") for image in page] == by_boto3(
        given, name
    )


def test_boto3_parses_no_answer_to_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would twice: once to look for an error in a success, at half the cost, and once for good."""
    store = a_store()
    told(store, GOOD)

    def refuse(*_arguments: Any, **_named: Any) -> None:
        raise AssertionError("boto3 parses")

    monkeypatch.setattr("xml.etree.ElementTree.XMLParser", refuse)

    assert list(store.pages("raw/")) == [GOOD_IMAGES]


GOOD_IMAGES = as_boto3_reads_it(GOOD).images


def test_it_asks_as_boto3_asks() -> None:
    store = a_store()
    asked = told(store, answer(["raw/äb"], "1/+="), answer(["raw/äc"]))

    assert keys_of(store, "raw/", "raw/ä") == ["raw/äb", "raw/äc"]
    queries = [request.url.partition("?")[2] for request in asked]
    assert all(
        request.url.startswith("https://bucket.s3.eu-central-1.amazonaws.com/?list-type=2&") for request in asked
    )
    assert "start-after=raw%2F%C3%A4" in queries[0]
    assert "continuation-token=1%2F%2B%3D" in queries[1]
    assert all("encoding-type=url" in query and "prefix=raw%2F" in query for query in queries)
    assert all(b"AWS4-HMAC-SHA256 Credential=a/" in request.headers["Authorization"] for request in asked)


def test_the_token_of_a_session_is_sent_and_renewed_as_boto3_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "from-role", "SECRET_ACCESS_KEY": "s", "SESSION_TOKEN": "first"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = S3Store("bucket", load_settings(s3_region="eu-central-1"))
    asked = told(store, answer(["a"], "1"), answer(["b"]))
    pages = store.pages("")

    next(pages)
    store._client._request_signer._credentials.token = "second"
    next(pages)

    assert [request.headers["X-Amz-Security-Token"] for request in asked] == [b"first", b"second"]
    assert all(b"Credential=from-role/" in request.headers["Authorization"] for request in asked)


# What goes wrong


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (GOOD[:-60], "is no XML, or not all of it"),
        (b"<html><body>Log in</body></html>", "is no <ListBucketResult> but <html>"),
        (b"<!DOCTYPE a [<!ENTITY a 'ha'>]>" + GOOD.partition(b"\n")[2], "declares a document type"),
        (b"", "is empty"),
        (GOOD.replace(b"<ETag>&quot;abc&quot;</ETag>", b""), "has an object without ETag: 'raw/a.png'"),
    ],
)
def test_an_answer_that_is_none_is_asked_for_again_and_then_an_error_that_names_it(body: bytes, says: str) -> None:
    store = a_store()
    asked = told(store, answer(["raw/a"], "1"), body)
    pages = store.pages("raw/")
    next(pages)

    with pytest.raises(TransientStorageError, match=rf"The answer for page 2 .*'s3://bucket/raw/' {says}.*a proxy"):
        next(pages)
    assert len(asked) == 3  # boto3's attempts; here it has two


def test_a_good_answer_behind_a_bad_one_is_all_there_is_to_see() -> None:
    for bad in (b"<html>", GOOD[:-60], error("InternalError"), (503, error("SlowDown")), (500, b"")):
        store = a_store()
        told(store, bad, GOOD)

        assert keys_of(store) == ["raw/a.png", "raw/b.png"]


@pytest.mark.parametrize(
    ("told_to_it", "expected", "says"),
    [
        ((200, error("SlowDown")), TransientStorageError, "SlowDown"),
        ((503, error("SlowDown")), TransientStorageError, "SlowDown"),
        ((502, b"<html>Bad gateway</html>"), TransientStorageError, "502"),
        ((403, error("AccessDenied")), AccessDenied, "s3:ListBucket"),
        ((403, b""), AccessDenied, "403"),
        ((400, error("ExpiredToken")), AccessDenied, "refuses the credentials"),
        ((404, error("NoSuchBucket")), ConfigurationError, "does not exist"),
        (
            (301, b"<Error><Code>PermanentRedirect</Code><Region>eu-west-1</Region></Error>"),
            ConfigurationError,
            "region",
        ),
    ],
)
def test_an_error_has_the_name_that_it_always_had(
    told_to_it: tuple[int, bytes], expected: type[StorageError], says: str
) -> None:
    store = a_store()
    told(store, told_to_it)

    with pytest.raises(expected, match=says):
        keys_of(store)


@pytest.mark.parametrize("fault", ["short", "reset", "cut", "slow_down", "internal"])
def test_a_page_that_breaks_off_once_is_asked_for_again(fake: FakeS3, fault: str) -> None:
    rule = fake.strike(fault, operation="list", times=1)

    found = keys_of(a_store("keys-1500", **fake.settings))

    assert (len(found), fake.struck(rule)) == (1_500, 1)
    assert fake.requests("list") == 3


# Where a listing begins

FOLDERS = ("raw/a/x.png", "raw/a/y.png", "raw/a-b.png", "raw/b.png")


def filled(given: dict[str, str], *keys: str) -> S3Store:
    store = a_store(f"begin-{uuid.uuid4().hex[:12]}", **given)
    store._client.create_bucket(Bucket=store.bucket)
    for key in keys:
        store._client.put_object(Bucket=store.bucket, Key=key, Body=b"x")
    return store


@pytest.fixture(params=["fake", "moto"])
def server(request: pytest.FixtureRequest, fake: FakeS3) -> dict[str, str]:
    """The settings of either server."""
    found: dict[str, str] = fake.settings if request.param == "fake" else request.getfixturevalue("s3_settings")
    return found


def test_the_first_key_behind_another_is_found_by_one_question(server: dict[str, str]) -> None:
    store = filled(server, *FOLDERS, "raw/new line+%2B", "sea/z")
    ordered = sorted((*FOLDERS, "raw/new line+%2B"))

    assert store.first_key("raw/") == ordered[0]
    assert [store.first_key("raw/", key) for key in ordered] == [*ordered[1:], None]
    assert store.first_key("raw/", "raw/a.") == "raw/a/x.png"
    assert (store.first_key("raw/", "a"), store.first_key("raw/", "z"), store.first_key("none/")) == (
        ordered[0],
        None,
        None,
    )
    assert keys_of(store, "raw/", ordered[1]) == ordered[2:]


def test_a_store_that_begins_where_it_is_asked_to_says_so_and_is_asked_once(
    server: dict[str, str], fake: FakeS3
) -> None:
    store = filled(server, *FOLDERS)
    assert not store.begins_after("none/")  # where nothing lies, nothing can be known, and nothing is remembered
    assert store.begins_after("raw/")

    store._lists = None  # type: ignore[assignment]
    assert store.begins_after("raw/")


@pytest.mark.parametrize("keys", [FOLDERS, ("raw/one.png",), ("raw/a/x.png", "raw/a/y.png")])
@pytest.mark.parametrize("fault", ["ignores_start", "by_folders"])
def test_a_store_that_does_not_is_found_out_and_listed_flat(fake: FakeS3, fault: str, keys: tuple[str, ...]) -> None:
    store = filled(fake.settings, *keys)
    rule = fake.strike(fault, operation="list")
    shows = fault == "ignores_start" or "raw/a/x.png" in keys  # Without folders both orders are one.

    assert store.begins_after("raw/") is not shows
    assert 2 <= fake.struck(rule) <= 3
    assert sorted(keys_of(store, "raw/")) == sorted(keys)


def test_a_range_of_a_store_that_ignores_where_to_begin_is_an_error(fake: FakeS3) -> None:
    store = filled(fake.settings, *FOLDERS)
    fake.strike("ignores_start", operation="list")

    for call in (lambda: keys_of(store, "raw/", "raw/a/x.png"), lambda: store.first_key("raw/", "raw/b.png")):
        with pytest.raises(TransientStorageError, match=r"Page 1 .* turns back"):
            call()


def test_a_part_of_a_store_that_turns_out_to_go_by_folders_is_an_error(fake: FakeS3) -> None:
    """Its first key lay in no folder, so the store could not tell. Listed as a whole, by folders is as good as by bytes."""
    store = filled(fake.settings, "raw/1.png", *FOLDERS)
    assert store.begins_after("raw/")
    fake.strike("by_folders", operation="list")

    assert sorted(keys_of(store, "raw/")) == sorted(("raw/1.png", *FOLDERS))
    with pytest.raises(
        TransientStorageError, match=r"turns back: 'raw/a-b.png' follows 'raw/a/y.png'.*each, in byte order\."
    ):
        keys_of(store, "raw/", "raw/1.png")


def test_a_directory_bucket_is_not_even_asked() -> None:
    store = a_store("photos--use1-az4--x-s3", s3_region="us-east-1")
    asked = told(store, GOOD)

    assert not store.begins_after("raw/")
    assert asked == []


def test_a_folder_begins_nowhere_but_knows_its_least_key(tmp_path: Path) -> None:
    for name in ("b/x.png", "a.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    store = LocalStore(str(tmp_path))

    assert not store.begins_after("")
    assert [store.first_key("", after) for after in (None, "a.png", "b/x.png", "c.png")] == [
        "a.png",
        "b/x.png",
        "c.png",
        None,
    ]
