"""Objects through obstore and through boto3: the same bytes, the same requests, the same errors."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from posixpath import normpath
from typing import ClassVar
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from obstore import Bytes
from obstore.exceptions import GenericError

from tasks.errors import AccessDenied, ConfigurationError, ObjectChanged, ObjectVanished, TransientStorageError
from tasks.settings import load_settings
from tasks.storage import gets, s3
from tasks.storage.gets import FAILURES_IN_A_ROW, is_representable
from tasks.storage.s3 import S3Store
from tests.conftest import free_port
from tests.s3_server import Answer, Request, Server, by_boto3_alone, serve, store_over

# Keys

ODD_KEYS = [
    *["a//b", "/a", "a/", "//", ".", "..", "./a", "a/.", "a/..", "../a", "a/./b", "a/../b", "a/../../b"],
    *[
        "a%2Fb",
        "%2e%2e/a",
        ".%2e/a",
        "%2E",
        "a%",
        "a%25b",
        "a+b",
        "a?b=c",
        "a#b",
        "a\\b",
        "..\\a",
        "...",
        ".a",
        "~a",
        "a*b",
        "[a]",
        "{a}",
        "<&>'\"`|^",
        "a;b",
        "a:b",
        "http://a/b",
        "a@b",
    ],
    *["a b", " a ", "\x00", "a\nb", "a\tb", "a\x7fb", "\x85", "\u2028", "\ufeffa", "\u202ea", "a\u3000", "\uffff"],
    *["é", "e\u0301", "\U0001f408", "k" * 1024],
]
keys_of_any_kind = st.one_of(
    st.sampled_from(ODD_KEYS),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    st.lists(st.sampled_from(["", ".", "..", "a", "%2e", "%2F", "\\", " ", "é"]), min_size=1, max_size=5).map("/".join),
).filter(bool)


@pytest.fixture(scope="module")
def echoing() -> Iterator[tuple[Server, S3Store, S3Store]]:
    with serve() as server:
        yield server, store_over(server.endpoint), by_boto3_alone(store_over(server.endpoint))


def path_asked_for(server: Server, store: S3Store, key: str) -> tuple[str, str]:
    """Who asked, and the path that went over the wire."""
    server.asked.clear()
    store.read(key, None)
    (request,) = server.asked
    return request.by, request.path


def ask_for_the_same(echoing: tuple[Server, S3Store, S3Store], key: str) -> None:
    server, fast, slow = echoing

    by, path = path_asked_for(server, fast, key)

    assert by == ("obstore" if is_representable(key) else "boto3")
    assert path == path_asked_for(server, slow, key)[1]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_both_ask_for_the_same_path(echoing: tuple[Server, S3Store, S3Store], key: str) -> None:
    ask_for_the_same(echoing, key)


@settings(max_examples=300, deadline=None)
@given(key=keys_of_any_kind)
def test_both_ask_for_the_same_path_whatever_the_key(echoing: tuple[Server, S3Store, S3Store], key: str) -> None:
    ask_for_the_same(echoing, key)


@pytest.mark.parametrize("key", [key for key in ODD_KEYS if not is_representable(key)])
def test_obstore_would_refuse_or_change_what_it_is_not_given(
    echoing: tuple[Server, S3Store, S3Store], key: str
) -> None:
    """So that no key goes the slow way without need."""
    server, fast, slow = echoing
    _, right = path_asked_for(server, slow, key)
    obstore = fast._fast._open()
    assert obstore is not None
    server.asked.clear()

    with suppress(ValueError):
        gets._get(obstore, key, None)

    assert right not in [request.path for request in server.asked]


def test_a_key_that_is_no_text_is_none_for_obstore() -> None:
    assert not is_representable("a\ud800")


def neighbours(key: str) -> set[str]:
    """The keys that a client with other ideas might ask for instead."""
    found = {key.strip("/"), key.replace("//", "/"), normpath(key), quote(key), unquote(key), key.strip(), key.lower()}
    return {other for other in found if 0 < len(other.encode()) <= 1_000 and other != key}


@pytest.fixture
def both(bucket: str, s3_settings: dict[str, str]) -> tuple[S3Store, S3Store]:
    """One bucket, through obstore where it can and through boto3 alone."""
    found = [S3Store(bucket, load_settings(**s3_settings)) for _ in range(2)]
    return found[0], by_boto3_alone(found[1])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=keys_of_any_kind.filter(lambda key: not {"\n", "\r", "\x00"} & set(key)))
@example("a//b")
@example("a%2Fb")
@example("../a")
@example("a/")
def test_what_is_read_is_what_was_put_under_exactly_that_key(both: tuple[S3Store, S3Store], key: str) -> None:
    """moto answers 404 to keys with a newline even where boto3 puts them, so those are left out here."""
    fast, slow = both
    put = slow._client.put_object
    for other in neighbours(key):
        put(Bucket=slow.bucket, Key=other, Body=b"another object")
    body = uuid.uuid4().bytes
    etag = put(Bucket=slow.bucket, Key=key, Body=body)["ETag"].strip('"')

    assert (fast._fast.read(key, etag) is not None) == is_representable(key)
    assert fast.read(key, etag) == slow.read(key, etag)
    assert fast.read(key, None).data == body


# Answers


def test_an_object_comes_through_obstore_over_connections_that_are_used_again(server: Server) -> None:
    store = store_over(server.endpoint)

    blobs = [store.read(f"{number}.png", "abc") for number in range(20)]

    assert set(server.clients) == {"obstore"}
    assert len(server.connections) <= 3  # One goes back to the others a moment after its answer.
    assert {blob.data for blob in blobs} == {b"pixels"}
    assert (blobs[0].etag, blobs[0].last_modified) == ("abc", datetime(2026, 3, 1, 6, tzinfo=UTC))
    assert type(blobs[0].data) is bytes
    assert {request.headers["if-match"] for request in server.asked} == {'"abc"'}
    assert "Credential=access/" in server.asked[0].headers["authorization"]


def test_without_an_etag_there_is_no_condition(server: Server) -> None:
    store_over(server.endpoint).read("a.png", None)

    assert server.clients == ["obstore"]
    assert "if-match" not in server.asked[0].headers


def test_a_body_that_says_it_is_compressed_stays_as_it_is(server: Server) -> None:
    answer = Answer(headers={**Answer().headers, "Content-Encoding": "gzip"})
    server.answer = lambda _request: answer
    store = store_over(server.endpoint)

    assert store.read("a.png", None) == by_boto3_alone(store_over(server.endpoint)).read("a.png", None)
    assert server.clients == ["obstore", "boto3"]


def test_an_empty_object_is_an_object(server: Server) -> None:
    server.answer = lambda _request: Answer(body=b"")

    assert store_over(server.endpoint).read("a.png", "abc").data == b""
    assert server.clients == ["obstore"]


def test_many_threads_each_get_their_own_object(server: Server) -> None:
    server.answer = lambda request: Answer(body=request.path.encode() * 1_000)
    store = store_over(server.endpoint)

    with ThreadPoolExecutor(16) as pool:
        blobs = list(pool.map(lambda number: store.read(f"{number}.png", None), range(300)))

    assert [blob.data[: blob.data.index(b"g") + 1] for blob in blobs] == [
        f"/bucket/{number}.png".encode() for number in range(300)
    ]
    assert set(server.clients) == {"obstore"}


# Faults

STALLED = threading.Event()
FAULTS = {
    "denied": (Answer.error(403, "AccessDenied"), AccessDenied),
    "archived": (Answer.error(403, "InvalidObjectState"), AccessDenied),
    "no such user": (Answer.error(403, "InvalidAccessKeyId"), AccessDenied),
    "wrong secret": (Answer.error(403, "SignatureDoesNotMatch"), AccessDenied),
    "expired": (Answer.error(400, "ExpiredToken"), AccessDenied),
    "forbidden without a word": (Answer(403, b"", {}), AccessDenied),
    "unauthorized": (Answer(401, b"", {}), TransientStorageError),
    "gone": (Answer.error(404, "NoSuchKey"), ObjectVanished),
    "no bucket": (Answer.error(404, "NoSuchBucket"), ConfigurationError),
    "changed": (Answer.error(412, "PreconditionFailed"), ObjectChanged),
    "slow down": (Answer.error(503, "SlowDown"), TransientStorageError),
    "internal": (Answer.error(500, "InternalError"), TransientStorageError),
    "bad gateway": (Answer(502, b"<html>", {}), TransientStorageError),
    "too many": (Answer.error(429, "TooManyRequests"), TransientStorageError),
    "redirect": (Answer.error(301, "PermanentRedirect"), ConfigurationError),
    "hangs up": (Answer(body=None), TransientStorageError),
    "breaks off": (Answer(length=500), TransientStorageError),
    "stalls": (Answer(stalls=STALLED), TransientStorageError),
}


@pytest.mark.usefixtures("one_attempt")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_one_name_whoever_met_it(server: Server, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    for module in (gets, s3):
        monkeypatch.setattr(module, "READ_SECONDS", 0.3)
    answer, expected = FAULTS[fault]
    server.answer = lambda _request: answer
    messages = []
    for store in (store_over(server.endpoint), by_boto3_alone(store_over(server.endpoint))):
        with pytest.raises(expected) as raised:
            store.read("a.png", "abc")
        assert type(raised.value) is expected
        messages.append(str(raised.value))

    assert server.clients[:2] == ["obstore", "boto3"]
    assert messages[0] == messages[1]


@pytest.mark.usefixtures("one_attempt")
def test_where_nobody_listens_the_error_is_boto3s() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"

    with pytest.raises(TransientStorageError, match=f"{endpoint}.*tried again"):
        store_over(endpoint).read("a.png", None)


def test_a_store_that_stays_down_is_asked_once_more_than_by_boto3_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_arguments: 0.0)
    server.answer = lambda _request: Answer.error(503, "SlowDown")

    with pytest.raises(TransientStorageError, match="SlowDown"):
        store_over(server.endpoint).read("a.png", None)

    assert server.clients == ["obstore", *["boto3"] * 5]


def test_what_fails_once_is_read_by_boto3_and_the_next_by_obstore_again(server: Server) -> None:
    server.answer = lambda request: Answer.error(500, "InternalError") if request.by == "obstore" else Answer()
    store = store_over(server.endpoint)
    assert store.read("a.png", None).data == b"pixels"
    server.answer = lambda _request: Answer()

    store.read("b.png", None)

    assert server.clients == ["obstore", "boto3", "obstore"]


def test_failures_that_are_not_in_a_row_do_not_tire_it(server: Server) -> None:
    def answer(request: Request) -> Answer:
        fails = request.by == "obstore" and request.path.endswith("bad.png")
        return Answer.error(500, "InternalError") if fails else Answer()

    server.answer = answer
    store = store_over(server.endpoint)

    for _ in range(FAILURES_IN_A_ROW + 1):
        store.read("bad.png", None)
        store.read("good.png", None)

    assert server.clients == ["obstore", "boto3", "obstore"] * (FAILURES_IN_A_ROW + 1)


def test_obstore_rests_after_failures_in_a_row_and_wakes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gets, "REST_SECONDS", 0.3)
    server.answer = lambda request: Answer.error(403, "AccessDenied") if request.by == "obstore" else Answer()
    store = store_over(server.endpoint)

    for _ in range(FAILURES_IN_A_ROW + 2):
        assert store.read("a.png", None).data == b"pixels"
    assert server.clients == [*["obstore", "boto3"] * FAILURES_IN_A_ROW, "boto3", "boto3"]

    time.sleep(0.35)
    server.answer = lambda _request: Answer()
    store.read("a.png", None)
    assert server.clients[-1] == "obstore"


@pytest.mark.parametrize("code", ["NoSuchKey", "PreconditionFailed"])
def test_objects_that_are_gone_or_changed_do_not_tire_it(server: Server, code: str) -> None:
    server.answer = lambda _request: Answer.error(404 if code == "NoSuchKey" else 412, code)
    store = store_over(server.endpoint)

    for _ in range(FAILURES_IN_A_ROW + 2):
        with pytest.raises((ObjectVanished, ObjectChanged)):
            store.read("a.png", "abc")

    assert server.clients == ["obstore", "boto3"] * (FAILURES_IN_A_ROW + 2)


def test_a_bucket_in_another_region_is_read_there_once_boto3_knows_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gets, "REST_SECONDS", 0.0)

    def answer(request: Request) -> Answer:
        if "/eu-west-1/" in request.headers["authorization"]:
            return Answer()
        return Answer.error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")

    server.answer = answer
    store = store_over(server.endpoint)
    for _ in range(FAILURES_IN_A_ROW):
        assert store.read("a.png", None).data == b"pixels"
    server.asked.clear()

    assert store.read("a.png", None).data == b"pixels"
    assert server.clients == ["obstore"]


class Short:
    """What obstore would give if its transport let a short body through."""

    meta: ClassVar = {"size": 7, "e_tag": '"abc"', "last_modified": datetime(2026, 3, 1, tzinfo=UTC)}

    @staticmethod
    def bytes() -> Bytes:
        return Bytes(b"pixels")


def test_a_body_that_is_too_short_is_not_taken(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obstore.get", lambda *_arguments, **_options: Short)

    assert store_over(server.endpoint).read("a.png", None).data == b"pixels"
    assert server.clients == ["boto3"]


def test_an_answer_without_its_whole_body_is_not_taken(server: Server) -> None:
    """Whatever the transport makes of it."""
    store = store_over(server.endpoint)
    obstore = store._fast._open()
    assert obstore is not None
    server.answer = lambda _request: replace(Answer(), length=500)

    with pytest.raises((GenericError, ValueError)):
        gets._get(obstore, "a.png", None)
