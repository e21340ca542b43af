"""Bytes against their ETag: what is no MD5 is learnt, and a wrong bit is not believed."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from tasks.errors import TransientStorageError
from tasks.settings import load_settings
from tasks.storage.base import Blob
from tasks.storage.etags import STRANGERS_IN_A_ROW, EtagCheck
from tasks.storage.s3 import S3Store
from tests.s3_server import LAST_MODIFIED, Answer, Request, serve, store_over

MD5 = hashlib.md5(b"pixels").hexdigest()


def blob(etag: str, data: bytes = b"pixels") -> Blob:
    return Blob(data, etag, datetime(2026, 3, 1, tzinfo=UTC))


@pytest.mark.parametrize("etag", [MD5, f"{MD5}-3", MD5.upper(), "abc", f'"{MD5}"', f"{MD5}0", ""])
def test_only_what_has_the_form_of_an_md5_is_compared(etag: str) -> None:
    check = EtagCheck(is_wanted=True)

    assert not check.doubts(blob(etag))
    assert check.doubts(blob(etag, b"pixelz")) == (etag == MD5)


def test_a_store_whose_etags_are_none_is_not_doubted_for_long() -> None:
    check = EtagCheck(is_wanted=True)
    for _ in range(STRANGERS_IN_A_ROW):
        assert check.doubts(blob("0" * 32))
        check.believe()

    assert not check.doubts(blob("0" * 32))


def test_strangers_are_counted_in_a_row() -> None:
    check = EtagCheck(is_wanted=True)
    for _ in range(STRANGERS_IN_A_ROW + 1):
        check.believe()
        check.doubts(blob(MD5))

    assert check.doubts(blob("0" * 32))


@pytest.mark.parametrize(
    ("endpoint", "is_wanted"), [("http://store:9000", True), ("https://store", False), (None, False)]
)
def test_over_tls_nothing_is_compared(endpoint: str | None, is_wanted: bool) -> None:
    keys = {"s3_access_key": "a", "s3_secret_key": "b", "s3_region": "us-east-1"}
    store = S3Store("bucket", load_settings(s3_endpoint=endpoint, **keys))

    assert store._etags.doubts(blob("0" * 32)) == is_wanted


def test_wrong_bytes_are_read_again_and_the_right_ones_are_taken() -> None:
    """obstore gets a wrong bit, and boto3 does not."""

    def answer(request: Request) -> Answer:
        body = b"pixelz" if request.by == "obstore" else b"pixels"
        return Answer(body=body, headers={"ETag": f'"{MD5}"', "Last-Modified": LAST_MODIFIED})

    with serve() as server:
        server.answer = answer
        assert store_over(server.endpoint).read("a.png", MD5).data == b"pixels"
        assert server.clients == ["obstore", "boto3"]


def test_bytes_that_differ_each_time_are_not_believed() -> None:
    with serve() as server:
        server.answer = lambda _request: Answer(
            body=b"%d" % len(server.asked), headers={"ETag": f'"{MD5}"', "Last-Modified": LAST_MODIFIED}
        )
        with pytest.raises(TransientStorageError, match=r"came twice under the ETag .* use https"):
            store_over(server.endpoint).read("a.png", MD5)


def test_bytes_that_come_twice_alike_are_believed() -> None:
    """As from a store that makes its ETags in another way."""
    with serve() as server:
        server.answer = lambda _request: Answer(headers={"ETag": f'"{"0" * 32}"', "Last-Modified": LAST_MODIFIED})
        store = store_over(server.endpoint)
        for _ in range(5):
            assert store.read("a.png", None).data == b"pixels"
        assert server.clients == ["obstore", "boto3"] * STRANGERS_IN_A_ROW + ["obstore"] * 2
