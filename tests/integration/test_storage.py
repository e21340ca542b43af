"""Both stores through their one protocol: what is listed can be read, and what goes wrong has a name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.stub import Stubber

from tasks.errors import (
    AccessDenied,
    ConfigurationError,
    ObjectChanged,
    ObjectVanished,
    StorageError,
    TransientStorageError,
)
from tasks.location import parse_location
from tasks.settings import load_settings
from tasks.storage import ImageObject, ObjectStore, open_store
from tasks.storage.local import LocalStore
from tasks.storage.s3 import S3Store, client
from tests.conftest import free_port
from tests.list_answers import answer, told
from tests.s3_server import by_boto3_alone

NFC, NFD = unicodedata.normalize("NFC", "café.png"), unicodedata.normalize("NFD", "café.png")

ANYWHERE_KEYS = (
    "plain.png",
    "deep/er/still.png",
    " leading and trailing space ",
    "emoji-\U0001f408.png",
    "a#b?c%d&e=f+g%20.png",
    "tab\there.png",
    "quote\"'<>\\.png",
    NFC,
    NFD,
)
S3_KEYS = (*ANYWHERE_KEYS, "a//b.png", "../x.png", "/leading.png", "x/./y.png", "k" * 1_024)
LOCAL_KEYS = (*ANYWHERE_KEYS, "new\nline.png", "k" * 250, f"{'k' * 200}/" * 5 + "end.png")


@dataclass
class Filled:
    """A store, and how to put objects into it."""

    store: ObjectStore
    put: Callable[[str, bytes], None]
    delete: Callable[[str], None]
    keys: tuple[str, ...]


@pytest.fixture
def s3_store(bucket: str, s3_settings: dict[str, str]) -> S3Store:
    return S3Store(bucket, load_settings(**s3_settings))


@pytest.fixture(params=["s3", "local"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Filled:
    if request.param == "s3":
        store = request.getfixturevalue("s3_store")
        client = store._client
        return Filled(
            store,
            lambda key, data: client.put_object(Bucket=store.bucket, Key=key, Body=data),
            lambda key: client.delete_object(Bucket=store.bucket, Key=key),
            S3_KEYS,
        )
    root = tmp_path / "root"
    root.mkdir()

    def put(key: str, data: bytes) -> None:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)

    return Filled(LocalStore(str(root)), put, lambda key: (root / key).unlink(), LOCAL_KEYS)


def listing(store: ObjectStore, prefix: str = "") -> list[ImageObject]:
    return [image for page in store.pages(prefix) for image in page]


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [image.key for image in listing(store, prefix)]


def test_every_key_is_listed_as_it_is_and_can_be_read(filled: Filled) -> None:
    for key in filled.keys:
        filled.put(key, key.encode())

    found = listing(filled.store)

    assert sorted(image.key for image in found) == sorted(filled.keys)
    for image in found:
        blob = filled.store.read(image.key, image.etag)
        assert (blob.data, blob.etag) == (image.key.encode(), image.etag)


def test_every_key_can_be_fetched_under_its_signed_url(filled: Filled) -> None:
    for key in filled.keys:
        filled.put(key, key.encode())
        with urllib.request.urlopen(filled.store.sign(key, 60)) as answer:
            assert answer.read() == key.encode()


def test_an_object_comes_with_size_etag_and_moment_in_utc(filled: Filled) -> None:
    filled.put("a.png", b"12345")

    (found,) = listing(filled.store)

    assert (found.key, found.size) == ("a.png", 5)
    assert '"' not in found.etag
    assert found.last_modified.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - found.last_modified) < timedelta(minutes=1)


def test_only_what_begins_with_the_prefix_is_listed(filled: Filled) -> None:
    for key in ("raw/a.png", "raw/deep/b.png", "rawer/c.png", "other/raw/d.png", "raw.png"):
        filled.put(key, b"x")

    assert sorted(keys(filled.store, "raw/")) == ["raw/a.png", "raw/deep/b.png"]
    assert sorted(keys(filled.store, "raw")) == ["raw.png", "raw/a.png", "raw/deep/b.png", "rawer/c.png"]
    assert sorted(keys(filled.store, "raw/de")) == ["raw/deep/b.png"]
    assert keys(filled.store, "nothing/here/") == []


@pytest.mark.parametrize(("endpoint", "when"), [("http://127.0.0.1:1", "when_required"), (None, "when_supported")])
def test_checksums_are_computed_for_compatibles_only_when_they_ask(endpoint: str | None, when: str) -> None:
    keys = {"s3_access_key": "test", "s3_secret_key": "test", "s3_region": "us-east-1"}
    config: Any = client(load_settings(s3_endpoint=endpoint, **keys)).meta.config

    assert (config.request_checksum_calculation, config.response_checksum_validation) == (when, when)
    assert (config.connect_timeout, config.read_timeout, config.retries["mode"]) == (5, 60, "standard")
    assert config.max_pool_connections == 64  # as many as may be in flight


def test_more_than_a_page_of_objects_comes_in_pages(filled: Filled) -> None:
    expected = [f"{number:05}.png" for number in range(1_003)]
    for key in expected:
        filled.put(key, b"")

    pages = list(filled.store.pages(""))

    assert [len(page) for page in pages] == [1_000, 3]
    assert sorted(image.key for page in pages for image in page) == expected


def test_an_empty_store_has_no_objects(filled: Filled) -> None:
    assert keys(filled.store) == []


def test_the_etag_changes_with_the_bytes(filled: Filled) -> None:
    filled.put("a.png", b"one")
    (before,) = listing(filled.store)
    filled.put("a.png", b"two")
    (after,) = listing(filled.store)

    assert before.etag != after.etag


def test_an_object_that_was_overwritten_is_refused_under_its_old_etag(filled: Filled) -> None:
    filled.put("a.png", b"one")
    (before,) = listing(filled.store)
    filled.put("a.png", b"two!")

    with pytest.raises(ObjectChanged, match=r"a\.png"):
        filled.store.read("a.png", before.etag)
    blob = filled.store.read("a.png", None)
    assert blob.data == b"two!"
    assert blob.etag == listing(filled.store)[0].etag


def test_an_object_that_was_deleted_has_vanished(filled: Filled) -> None:
    filled.put("deep/a.png", b"one")
    (before,) = listing(filled.store)
    filled.delete("deep/a.png")

    for etag in (before.etag, None):
        with pytest.raises(ObjectVanished, match=r"a\.png"):
            filled.store.read("deep/a.png", etag)


def test_nothing_is_sent_before_the_first_call() -> None:
    nobody = load_settings(s3_endpoint=f"http://127.0.0.1:{free_port()}")

    open_store(parse_location("s3://bucket/prefix"), nobody).pages("")
    open_store(parse_location("/no/such/folder"), nobody).pages("")


# S3 alone


def stubbed(*answers: tuple[str, dict[str, Any] | str, int]) -> S3Store:
    """A store whose client gives these answers: (operation, response or error code, HTTP status)."""
    settings = load_settings(s3_access_key="a", s3_secret_key="b", s3_region="eu-central-1")
    store = by_boto3_alone(S3Store("bucket", settings))
    stubber = Stubber(store._client)
    for operation, given, status in answers:
        if isinstance(given, str):
            stubber.add_client_error(operation, given, http_status_code=status)
        else:
            stubber.add_response(operation, given)
    stubber.activate()
    return store


def test_directory_markers_are_listed_as_any_object(s3_store: S3Store) -> None:
    s3_store._client.put_object(Bucket=s3_store.bucket, Key="raw/", Body=b"")

    assert [(image.key, image.size) for image in listing(s3_store)] == [("raw/", 0)]


LISTING = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><Prefix></Prefix>
<KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>
<Contents><Key>control%01%25.png</Key><LastModified>2026-03-01T06:00:00.000Z</LastModified>
<ETag>&quot;def&quot;</ETag><Size>7</Size><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>new%0Aline%0D.png</Key><LastModified>2026-03-01T06:00:00.000Z</LastModified>
<ETag>&quot;abc-2&quot;</ETag><Size>5</Size><StorageClass>STANDARD</StorageClass></Contents>
</ListBucketResult>"""


@pytest.fixture
def scripted() -> Iterator[tuple[S3Store, list[str], Callable[[int, str, dict[str, str]], None]]]:
    """A store over a server that gives one answer to everything: the store, the paths asked for, `answer`."""
    asked: list[str] = []
    answers: list[tuple[int, str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, body, headers = answers[0]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    store = S3Store("bucket", load_settings(s3_endpoint=endpoint, s3_access_key="a", s3_secret_key="b"))
    yield store, asked, lambda *answer: answers.insert(0, answer)
    server.shutdown()
    server.server_close()
    thread.join()


def test_keys_with_newlines_and_control_characters_are_listed_as_they_are(scripted: Any) -> None:
    store, asked, answer = scripted
    answer(200, LISTING, {})

    assert listing(store) == [
        ImageObject("control\x01%.png", "def", 7, datetime(2026, 3, 1, 6, tzinfo=UTC)),
        ImageObject("new\nline\r.png", "abc-2", 5, datetime(2026, 3, 1, 6, tzinfo=UTC)),
    ]
    assert "encoding-type=url" in asked[0]


def test_a_key_with_a_newline_is_asked_for_as_it_is(scripted: Any) -> None:
    store, asked, answer = scripted
    answer(200, "pixel", {"ETag": '"abc"', "Last-Modified": "Sun, 01 Mar 2026 06:00:00 GMT"})

    blob = store.read("new\nline\r.png", "abc")

    assert blob.data == b"pixel"
    assert asked == ["/bucket/new%0Aline%0D.png"]


def test_a_body_that_breaks_off_is_transient(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, answer = scripted
    headers = {"ETag": '"abc"', "Last-Modified": "Sun, 01 Mar 2026 06:00:00 GMT", "Content-Length": "500"}
    answer(200, "only this", headers)

    with pytest.raises(TransientStorageError, match=r"a\.png"):
        store.read("a.png", "abc")


def test_a_missing_bucket_is_a_matter_of_configuration(s3_settings: dict[str, str]) -> None:
    store = S3Store("no-such-bucket-here", load_settings(**s3_settings))

    with pytest.raises(ConfigurationError, match="'no-such-bucket-here' does not exist"):
        keys(store)
    with pytest.raises(ConfigurationError, match="'no-such-bucket-here' does not exist"):
        store.read("a.png", None)


def test_a_bucket_that_cannot_be_one_is_a_matter_of_configuration(s3_settings: dict[str, str]) -> None:
    store = open_store(parse_location("s3://my photos/raw/"), load_settings(**s3_settings))

    with pytest.raises(ConfigurationError, match=r"s3://my photos/.*Correct `images`"):
        keys(store)


@pytest.mark.parametrize("endpoint", ["localhost:9000", "minio", "ftp://host:21", "http://"])
def test_an_endpoint_that_is_no_web_address_is_a_matter_of_configuration(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"AFTERIMAGE_S3_ENDPOINT is '{endpoint}'.*http://HOST:PORT"):
        S3Store("bucket", load_settings(s3_endpoint=endpoint))


def test_an_endpoint_where_nobody_listens_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "botocore.config.Config", lambda **options: Config(**options | {"retries": {"total_max_attempts": 1}})
    )
    endpoint = f"http://127.0.0.1:{free_port()}"
    store = S3Store("bucket", load_settings(s3_endpoint=endpoint, s3_access_key="a", s3_secret_key="b"))

    for call in (lambda: keys(store), lambda: store.read("a.png", None)):
        with pytest.raises(TransientStorageError, match=endpoint):
            call()


def test_missing_credentials_are_a_matter_of_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_endpoint: str
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(ConfigurationError, match="AFTERIMAGE_S3_ACCESS_KEY"):
        keys(S3Store("bucket", load_settings(s3_endpoint=s3_endpoint)))


@pytest.mark.parametrize(
    ("code", "status", "expected", "says"),
    [
        ("AccessDenied", 403, AccessDenied, "s3:GetObject"),
        ("InvalidObjectState", 403, AccessDenied, "InvalidObjectState"),
        ("InvalidAccessKeyId", 403, AccessDenied, "refuses the credentials"),
        ("SignatureDoesNotMatch", 403, AccessDenied, "refuses the credentials"),
        ("ExpiredToken", 400, AccessDenied, "refuses the credentials"),
        ("", 403, AccessDenied, "403"),
        ("NoSuchKey", 404, ObjectVanished, "is gone"),
        ("404", 404, ObjectVanished, "is gone"),
        ("NoSuchVersion", 404, ObjectVanished, "is gone"),
        ("PreconditionFailed", 412, ObjectChanged, "overwritten"),
        ("412", 412, ObjectChanged, "overwritten"),
        ("NoSuchBucket", 404, ConfigurationError, "does not exist"),
        ("SlowDown", 503, TransientStorageError, "SlowDown"),
        ("InternalError", 500, TransientStorageError, "InternalError"),
        ("RequestTimeout", 400, TransientStorageError, "RequestTimeout"),
        ("Unheard", 418, TransientStorageError, "Unheard"),
    ],
)
def test_what_the_store_answers_has_a_name(code: str, status: int, expected: type[Exception], says: str) -> None:
    with pytest.raises(expected, match=says) as raised:
        stubbed(("get_object", code, status)).read("a.png", "abc")

    assert type(raised.value) is expected


@pytest.mark.parametrize(("code", "expected"), [("AccessDenied", AccessDenied), ("SlowDown", TransientStorageError)])
def test_a_listing_that_is_refused_has_a_name_too(code: str, expected: type[StorageError]) -> None:
    with pytest.raises(expected, match="s3://bucket/raw/"):
        keys(stubbed(("list_objects_v2", code, 403 if code == "AccessDenied" else 503)), "raw/")


def test_a_page_that_fails_after_a_good_one_is_not_taken_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_arguments: 0.0)
    store = S3Store("bucket", load_settings(s3_access_key="a", s3_secret_key="b", s3_region="eu-central-1"))
    told(store, answer(["a"], "more"), (503, SLOW_DOWN))
    pages = store.pages("")

    assert [image.key for image in next(pages)] == ["a"]
    with pytest.raises(TransientStorageError, match="SlowDown"):
        next(pages)


SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>No.</Message></Error>"


def test_a_signed_url_holds_no_secret_and_expires(s3_store: S3Store, s3_settings: dict[str, str]) -> None:
    url = S3Store(s3_store.bucket, load_settings(**s3_settings | {"s3_secret_key": "hunter2"})).sign("a.png", 77)

    assert "hunter2" not in url
    assert "77" in url or "Expires=" in url


# Local folders alone


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.png").write_bytes(b"secret")
    return folder


def test_a_missing_folder_is_a_matter_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing does not exist.*Create it"):
        keys(LocalStore(str(tmp_path / "missing")))


def test_a_link_out_of_the_root_is_passed_over_and_refused(
    root: Path, outside: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "a.png").write_bytes(b"x")
    (root / "link.png").symlink_to(outside / "secret.png")
    store = LocalStore(str(root))

    assert keys(store) == ["a.png"]
    assert "link.png" in caplog.text
    for call in (lambda: store.read("link.png", None), lambda: store.sign("link.png", 60)):
        with pytest.raises(AccessDenied, match="leads out of"):
            call()


@pytest.mark.parametrize(
    "key",
    ["../outside/secret.png", "a/../../outside/secret.png", "/../outside/secret.png", "..", "../../../../etc/passwd"],
)
def test_a_key_that_leads_out_of_the_root_is_refused(root: Path, outside: Path, key: str) -> None:
    with pytest.raises(AccessDenied, match="leads out of"):
        LocalStore(str(root)).read(key, None)


@pytest.mark.parametrize("key", ["/etc/passwd", "//etc/passwd", "/proc/self/environ", "/dev/zero"])
def test_an_absolute_key_lies_below_the_root_all_the_same(root: Path, key: str) -> None:
    with pytest.raises(ObjectVanished):
        LocalStore(str(root)).read(key, None)


@pytest.mark.parametrize("call", ["read", "sign"])
def test_a_key_with_a_nul_byte_is_refused(root: Path, call: str) -> None:
    (root / "a.png").write_bytes(b"x")
    with pytest.raises(AccessDenied, match="NUL byte"):
        getattr(LocalStore(str(root)), call)("a.png\0/../../etc/passwd", 60 if call == "sign" else None)


@pytest.mark.parametrize("target", ["/proc/self/environ", "/proc/self/root/etc/passwd", "/dev/zero"])
def test_a_link_into_the_system_is_refused_before_a_byte_is_read(root: Path, target: str) -> None:
    (root / "a.png").symlink_to(target)
    with pytest.raises(AccessDenied, match="leads out of"):
        LocalStore(str(root)).read("a.png", None)


def test_a_link_that_is_swapped_between_look_and_open_gives_nothing_away(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap happens in the last moment there is: right before the file is opened. What was opened is what is judged."""
    (root / "inner.png").write_bytes(b"inside")
    link = root / "a.png"
    link.symlink_to(root / "inner.png")
    store = LocalStore(str(root))
    assert keys(store) == ["a.png", "inner.png"]
    opened = os.open

    def swap(path: str, *given: Any, **named: Any) -> int:
        if str(path).endswith("a.png"):
            link.unlink()
            link.symlink_to(outside / "secret.png")
        return opened(path, *given, **named)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(AccessDenied, match="leads out of"):
        store.read("a.png", None)
    assert os.readlink(link) == str(outside / "secret.png"), "the swap took place"


def test_a_folder_whose_name_begins_like_the_root_lies_outside(root: Path) -> None:
    beside = root.with_name("root-beside")
    beside.mkdir()
    (beside / "a.png").write_bytes(b"x")

    with pytest.raises(AccessDenied):
        LocalStore(str(root)).read("../root-beside/a.png", None)


def test_without_proc_a_link_out_of_the_root_is_refused_all_the_same(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(path: str) -> str:
        raise FileNotFoundError(path)

    (root / "a.png").write_bytes(b"x")
    monkeypatch.setattr(os, "readlink", none)
    store = LocalStore(str(root))
    assert store.read("a.png", None).data == b"x"
    with pytest.raises(AccessDenied, match="leads out of"):
        store.read("../outside/secret.png", None)


def test_a_pipe_is_no_image_and_keeps_nobody_waiting(root: Path) -> None:
    os.mkfifo(root / "a.png")
    with pytest.raises(ObjectVanished, match="no file any more"):
        LocalStore(str(root)).read("a.png", None)


def test_a_prefix_that_leads_out_of_the_root_is_refused(root: Path, outside: Path) -> None:
    with pytest.raises(AccessDenied):
        keys(LocalStore(str(root)), "../outside/")


def test_a_link_to_a_folder_is_not_followed(root: Path, outside: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "a.png").write_bytes(b"x")
    (root / "inner").symlink_to(root / "real")
    (root / "outer").symlink_to(outside)
    store = LocalStore(str(root))

    assert keys(store) == ["real/a.png"]
    assert keys(store, "inner/") == []
    assert keys(store, "outer/") == []


def test_a_link_to_a_file_inside_the_root_is_an_image(root: Path) -> None:
    (root / "a.png").write_bytes(b"x")
    (root / "b.png").symlink_to(root / "a.png")
    store = LocalStore(str(root))

    assert keys(store) == ["a.png", "b.png"]
    assert store.read("b.png", listing(store)[1].etag).data == b"x"


def test_links_that_lead_nowhere_or_to_themselves_are_passed_over(root: Path) -> None:
    (root / "a.png").write_bytes(b"x")
    (root / "broken.png").symlink_to(root / "missing")
    (root / "loop.png").symlink_to(root / "loop.png")

    assert keys(LocalStore(str(root))) == ["a.png"]


def test_what_is_no_regular_file_is_passed_over(root: Path) -> None:
    (root / "a.png").write_bytes(b"x")
    os.mkfifo(root / "pipe.png")

    assert keys(LocalStore(str(root))) == ["a.png"]


def test_a_root_that_is_a_link_is_the_folder_that_it_leads_to(root: Path, tmp_path: Path) -> None:
    (root / "a.png").write_bytes(b"x")
    (tmp_path / "link").symlink_to(root)

    store = LocalStore(str(tmp_path / "link"))

    assert keys(store) == ["a.png"]
    assert store.read("a.png", None).data == b"x"


def test_a_name_that_is_not_utf8_is_passed_over(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "a.png").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png")).write_bytes(b"x")
    deep = Path(os.fsdecode(os.fsencode(root) + b"/\xff"))
    deep.mkdir()
    (deep / "b.png").write_bytes(b"x")

    assert keys(LocalStore(str(root))) == ["a.png"]
    assert caplog.text.count("Passed over") == 2


def test_a_folder_in_place_of_a_file_has_vanished(root: Path) -> None:
    (root / "a.png").mkdir()
    (root / "b").write_bytes(b"x")
    store = LocalStore(str(root))

    for key in ("a.png", "b/c.png", ""):
        with pytest.raises(ObjectVanished):
            store.read(key, None)


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_has_another_etag(root: Path) -> None:
    file = root / "a.png"
    file.write_bytes(b"one")
    store = LocalStore(str(root))
    (before,) = listing(store)
    moment = file.stat()
    (root / "new").write_bytes(b"two")
    os.utime(root / "new", ns=(moment.st_atime_ns, moment.st_mtime_ns))
    (root / "new").rename(file)

    with pytest.raises(ObjectChanged):
        store.read("a.png", before.etag)


def test_a_file_that_is_only_touched_counts_as_changed(root: Path) -> None:
    (root / "a.png").write_bytes(b"one")
    store = LocalStore(str(root))
    (before,) = listing(store)
    os.utime(root / "a.png", ns=(0, 1))

    with pytest.raises(ObjectChanged):
        store.read("a.png", before.etag)


WRITER = """
import sys, time
with open(sys.argv[1], "ab", buffering=0) as file:
    while True:
        file.write(b"more")
        time.sleep(0.0005)
"""


def test_a_file_that_is_written_while_it_is_read_has_changed(root: Path) -> None:
    file = root / "a.png"
    file.write_bytes(b"x" * 64_000_000)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file)])
    try:
        deadline = time.monotonic() + 10
        while file.stat().st_size == 64_000_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(ObjectChanged, match="written while it was read"):
            LocalStore(str(root)).read("a.png", None)
    finally:
        writer.kill()
        writer.wait()

    assert LocalStore(str(root)).read("a.png", None).data.endswith(b"more")


def test_what_vanishes_during_the_listing_is_passed_over(root: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d/e.png", "f.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    walk = LocalStore(str(root))._walk(str(root), "")

    assert next(walk).key == "a.png"
    (root / "b.png").unlink()  # The folder's names were taken before the first one was looked at.
    (root / "d" / "e.png").unlink()
    (root / "d").rmdir()

    assert [image.key for image in walk] == ["c.png", "f.png"]


def test_a_listing_reads_no_more_folders_than_it_must(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("2026-03-01/left/a.png", "2026-03-01/right/b.png", "2026-03-02/c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    walked: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: (walked.append(os.path.relpath(folder, root)), scandir(folder))[1])

    assert keys(LocalStore(str(root)), "2026-03-01/le") == ["2026-03-01/left/a.png"]
    assert walked == ["2026-03-01", "2026-03-01/left"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_this_user_may_not_read_is_denied(root: Path) -> None:
    (root / "a.png").write_bytes(b"x")
    (root / "a.png").chmod(0)
    (root / "closed").mkdir(mode=0)
    store = LocalStore(str(root))

    with pytest.raises(AccessDenied, match="read permission"):
        store.read("a.png", None)
    with pytest.raises(AccessDenied, match="read permission"):
        keys(store)
    (root / "closed").chmod(0o700)


# URIs


@pytest.mark.parametrize(
    ("uri", "scheme", "root", "prefix"),
    [
        ("s3://bucket", "s3", "bucket", ""),
        ("s3://bucket/raw/", "s3", "bucket", "raw/"),
        ("s3://bucket//a?b#c%20", "s3", "bucket", "/a?b#c%20"),
        ("/data/photos/", "file", "/data/photos", ""),
        ("file:///data/photos", "file", "/data/photos", ""),
        ("/data/raw-{{ ds }}/left/", "file", "/data", "raw-{{ ds }}/left/"),
        ("/{{ ds }}/", "file", "/", "{{ ds }}/"),
    ],
)
def test_a_uri_is_taken_apart(uri: str, scheme: str, root: str, prefix: str) -> None:
    found = parse_location(uri)

    assert (found.scheme, found.root, found.prefix) == (scheme, root, prefix)
    assert (found.template is not None) == ("{{" in uri)


@pytest.mark.parametrize(("uri", "says"), [("gs://bucket/", "gs://"), ("s3:///raw", "no bucket"), ("s3://", "no buc")])
def test_a_uri_that_no_store_serves_is_refused(uri: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as refused:
        parse_location(uri)

    assert repr(uri) in str(refused.value)


def test_a_source_is_store_and_bucket_and_never_a_prefix() -> None:
    assert parse_location("s3://b/raw/").source(None) == parse_location("s3://b/other/").source(None) == "s3://b"
    assert parse_location("s3://b/raw/").source("http://minio:9000/") == "s3://b@http://minio:9000"
    assert parse_location("/data/raw/{{ ds }}/").source("http://minio:9000") == "file:///data/raw"
