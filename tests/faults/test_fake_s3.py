"""The fake S3 against moto, and against itself: what it lists can be read, whatever the key, and however many there are."""

from __future__ import annotations

import tracemalloc
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.errors import ObjectChanged, ObjectVanished, StorageError
from tasks.settings import load_settings
from tasks.storage import s3
from tasks.storage.s3 import S3Store
from tests.faults.fake_s3.control import FakeS3
from tests.faults.fake_s3.objects import SyntheticBucket, page
from tests.s3_server import by_boto3_alone

# Against moto

AGREED_KEYS = (
    "a b+c.png",
    "a%2Fb&amp;c.png",
    "a//b.png",
    "../x.png",
    "/lead.png",
    "tail/",
    "emoji-\U0001f408.png",
    "tab\t.png",
)


def store_at(settings: dict[str, str], bucket: str) -> S3Store:
    return S3Store(bucket, load_settings(**settings))


def answer_of(call: Callable[[], Any]) -> Any:
    """What a call gives, or the name of its error."""
    try:
        return call()
    except StorageError as error:
        return type(error)


def scenario(store: S3Store) -> dict[str, Any]:
    """List, read odd keys, overwrite, delete; the answers that our store gives."""
    put = store._client.put_object
    for key in AGREED_KEYS:
        put(Bucket=store.bucket, Key=key, Body=key.encode())
    listed = {image.key: image for found in store.pages("") for image in found}
    read = {key: store.read(key, image.etag).data for key, image in listed.items()}
    put(Bucket=store.bucket, Key="a//b.png", Body=b"another")
    store._client.delete_object(Bucket=store.bucket, Key="../x.png")
    below = [image.key for found in store.pages("a") for image in found]
    return {
        "keys": list(listed),
        "states": [(image.etag, image.size) for image in listed.values()],
        "read": read,
        "overwritten": answer_of(lambda: store.read("a//b.png", listed["a//b.png"].etag)),
        "as it is now": store.read("a//b.png", None).data,
        "deleted": answer_of(lambda: store.read("../x.png", listed["../x.png"].etag)),
        "below a": below,
    }


def test_moto_and_the_fake_give_our_store_the_same_answers(
    fake: FakeS3, s3_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE_OBJECTS", 3)
    name = f"agreed-{uuid.uuid4().hex[:8]}"
    found = []
    for server in (fake.settings, s3_settings):
        store = store_at(server, name)
        store._client.create_bucket(Bucket=name)
        found.append(scenario(store))

    assert found[0] == found[1]
    assert (found[0]["overwritten"], found[0]["deleted"]) == (ObjectChanged, ObjectVanished)
    assert found[0]["keys"] == sorted(AGREED_KEYS)


# Keys

ODD_KEYS = (
    *("a//b", "//", "../a", "a/../b", "./a", "/a", "a/", "a b", " a ", "a+b", "a%2Fb", "%252F", "a&amp;b", "<&>\"'"),
    *(
        "a\nb",
        "a\rb",
        "a\tb",
        "a\x01b",
        "\x1f",
        "a\x7fb",
        "\u0085",
        "\u2028",
        "\ufeffa",
        "\uffff",
        "\U0001f408",
        "e\u0301",
        "é",
    ),
    *("k" * 1_024, "\U0001f408" * 256, "a?b=c#d", "[a]*", "a\\b", "?", "&", "=", ";", "s3://b/k"),
)
SEGMENTS = ("", ".", "..", "a", "%2e", "%2F", "+", "&amp;", " ", "\n", "\x08", "é")
keys_of_any_kind = st.one_of(
    st.sampled_from(ODD_KEYS),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40),
    st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=6).map("/".join),
).filter(bool)


@pytest.fixture(scope="module")
def reading(fake_server: FakeS3) -> S3Store:
    """A store that boto3 reads: the keys that obstore can name have tests of their own (tests/integration/test_gets.py)."""
    return by_boto3_alone(store_at(fake_server.settings, "odd"))


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(keys_of_any_kind, min_size=1, max_size=8, unique=True))
@example(list(ODD_KEYS))
def test_what_is_listed_is_the_same_key_and_can_be_read(fake_server: FakeS3, reading: S3Store, keys: list[str]) -> None:
    reading.bucket = f"odd-{uuid.uuid4().hex[:12]}"
    for key in keys:
        fake_server.put(reading.bucket, key, key.encode())

    found = [image for listed in reading.pages("") for image in listed]

    assert [image.key for image in found] == sorted(keys, key=str.encode)
    for image in found:
        assert reading.read(image.key, image.etag).data == image.key.encode()


def test_what_xml_cannot_carry_comes_only_because_we_ask_for_it_encoded(fake: FakeS3) -> None:
    """Without encoding-type=url AWS writes `&#x1;`, and one such key would end every listing."""
    fake.put("control", "a\x01b.png", b"x")

    with urllib.request.urlopen(f"{fake.endpoint}/control?list-type=2") as answer:
        assert b"<Key>a&#x1;b.png</Key>" in answer.read()
    assert [image.key for found in store_at(fake.settings, "control").pages("") for image in found] == ["a\x01b.png"]


# Numbers


def test_a_million_keys_are_listed_in_the_memory_of_a_page() -> None:
    keys = SyntheticBucket(1_000_000).keys
    tracemalloc.start()
    after, count, more = b"", 0, True
    while more:
        found, more = page(keys, b"", after, 10_000)
        count, after = count + len(found), found[-1]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (count, after) == (1_000_000, b"000999999.png")
    assert peak < 5_000_000, "a list of a million keys takes 50 MB"


def test_a_hundred_million_keys_cost_the_server_no_memory(fake: FakeS3) -> None:
    store = store_at(fake.settings, "keys-100000000")
    first = next(store.pages("0999"))  # The server has taken what a page needs.
    before = fake.memory()

    ends = [[image.key for found in store.pages(prefix) for image in found] for prefix in ("0000000", "0999999")]

    assert first[0].key == "099900000.png"
    assert [(len(keys), keys[-1]) for keys in ends] == [(100, "000000099.png"), (100, "099999999.png")]
    assert store.read("099999999.png", None).data == b"099999999.png"
    assert fake.memory() - before < 20_000_000, "a list of them takes 7 GB"


# Ranges and conditions


@pytest.mark.parametrize(
    ("headers", "status", "body"),
    [
        ({"Range": "bytes=2-4"}, 206, b"234"),
        ({"Range": "bytes=7-"}, 206, b"789"),
        ({"Range": "bytes=7-99"}, 206, b"789"),
        ({"Range": "bytes=10-"}, 416, None),
        ({"If-Match": '"no"'}, 412, None),
        ({}, 200, b"0123456789"),
    ],
)
def test_parts_and_states_are_given_as_s3_gives_them(
    fake: FakeS3, headers: dict[str, str], status: int, body: bytes | None
) -> None:
    fake.put("ranges", "a.png", b"0123456789")
    request = urllib.request.Request(f"{fake.endpoint}/ranges/a.png", headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            found = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        found = error.code, None

    assert found == (status, body)
