"""Objects through obstore: where it asks, as whom, whom it trusts, and where it leaves all to boto3."""

from __future__ import annotations

import logging
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from botocore.credentials import RefreshableCredentials

from tasks.errors import StorageError, TransientStorageError
from tasks.settings import load_settings
from tasks.storage import gets
from tasks.storage.gets import Address
from tasks.storage.s3 import S3Store
from tests.conftest import ROOT, outer_environment
from tests.s3_server import Answer, Server, serve, store_over


@pytest.mark.parametrize(
    ("bucket", "changes", "expected"),
    [
        ("b-c", {}, Address("https://b-c.s3.amazonaws.com", "us-east-1")),
        ("b-c", {"s3_region": "eu-central-1"}, Address("https://b-c.s3.eu-central-1.amazonaws.com", "eu-central-1")),
        ("b.c", {"s3_region": "eu-central-1"}, Address("https://s3.eu-central-1.amazonaws.com/b.c", "eu-central-1")),
        ("b-c", {"s3_endpoint": "http://store:9/base/"}, Address("http://store:9/base/b-c", "us-east-1")),
        ("b-c", {"s3_endpoint": "https://store", "s3_region": "x"}, Address("https://store/b-c", "x")),
        ("no bucket", {}, None),
        ("x--use1-az4--x-s3", {"s3_region": "us-east-1"}, None),  # S3 Express signs with keys of a session.
        ("arn:aws:s3::123456789012:accesspoint/m.mrap", {}, None),  # Several regions: signed with v4a.
    ],
)
def test_a_bucket_is_where_boto3_would_look(
    monkeypatch: pytest.MonkeyPatch, bucket: str, changes: dict[str, str], expected: Address | None
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    keys = {"s3_access_key": "access", "s3_secret_key": "secret"}

    assert S3Store(bucket, load_settings(**keys, **changes))._fast._find() == expected


def test_the_addressing_that_boto3_is_told_holds_for_obstore(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    found = store_over("http://localhost:9")._fast._find()

    assert found == Address("http://bucket.localhost:9", "us-east-1")


def test_what_obstore_would_take_from_the_environment_does_not_reach_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ENDPOINT": "http://127.0.0.1:1",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REQUEST_PAYER": "true",
        "AWS_S3_EXPRESS": "true",
        "AWS_ACCESS_KEY_ID": "another",
        "AWS_SECRET_ACCESS_KEY": "another",
        "AWS_SESSION_TOKEN": "another",
        "AWS_REGION": "ap-south-1",
        "AWS_PROXY_URL": "http://127.0.0.1:1",
        "AWS_TIMEOUT": "1ns",
    }.items():
        monkeypatch.setenv(name, value)

    store_over(server.endpoint, s3_region="eu-west-1").read("a.png", None)

    (request,) = server.asked
    assert request.by == "obstore"
    assert "Credential=access/" in request.headers["authorization"]
    assert "/eu-west-1/s3/" in request.headers["authorization"]
    assert not {"x-amz-request-payer", "x-amz-security-token"} & set(request.headers)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_through_a_proxy_boto3_reads(server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, server.endpoint)

    store_over("http://store.invalid:9").read("a.png", None)

    assert server.clients == ["boto3"]
    assert server.asked[0].path == "http://store.invalid:9/bucket/a.png"


def test_past_a_proxy_obstore_reads(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    store_over(server.endpoint).read("a.png", None)

    assert server.clients == ["obstore"]


def test_objects_that_are_encrypted_with_a_key_from_the_environment_are_left_to_boto3(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """obstore would send the key; boto3 does not."""
    monkeypatch.setenv("AWS_SSE_CUSTOMER_KEY_BASE64", "a2V5")

    store_over(server.endpoint).read("a.png", None)

    assert server.clients == ["boto3"]


def test_time_outs_attempts_and_connections_are_set(server: Server) -> None:
    store = store_over(server.endpoint, readers=33)._fast._open()
    assert store is not None
    options = store.client_options
    assert options is not None

    assert (options["connect_timeout"], options["read_timeout"], options["timeout"]) == ("2s", "1m", "1day")
    assert options["pool_max_idle_per_host"] == "33"
    assert store.retry_config is not None
    assert store.retry_config["max_retries"] == 0  # The other attempts are boto3's.


def test_credentials_are_renewed_when_they_expire(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[int] = []

    def renew() -> dict[str, str]:
        renewed.append(1)
        expiry = (datetime.now(UTC) + timedelta(hours=1 if len(renewed) > 1 else 0)).isoformat()
        number = len(renewed)
        return {"access_key": f"key{number}", "secret_key": "s", "token": f"token{number}", "expiry_time": expiry}

    credentials = RefreshableCredentials.create_from_metadata(renew(), renew, "test")
    monkeypatch.setattr(gets, "_CREDENTIALS_LIFE", timedelta(milliseconds=50))
    monkeypatch.setattr("botocore.session.Session.get_credentials", lambda _session: credentials)
    store = store_over(server.endpoint, s3_access_key=None, s3_secret_key=None)
    store.read("a.png", None)
    credentials._expiry_time = datetime.now(UTC)
    time.sleep(0.2)

    store.read("b.png", None)

    assert server.clients == ["obstore", "obstore"]
    assert [request.headers["x-amz-security-token"] for request in server.asked] == ["token2", "token3"]
    assert "Credential=key3/" in server.asked[1].headers["authorization"]


@pytest.mark.usefixtures("one_attempt")
def test_credentials_that_cannot_be_renewed_are_boto3s_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def renew() -> dict[str, str]:
        raise OSError("no answer")

    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    stale = {"access_key": "a", "secret_key": "s", "token": "t", "expiry_time": past}
    credentials = RefreshableCredentials.create_from_metadata(stale, renew, "test")
    monkeypatch.setattr("botocore.session.Session.get_credentials", lambda _session: credentials)

    with pytest.raises(TransientStorageError, match="no answer"):
        store_over(server.endpoint, s3_access_key=None, s3_secret_key=None).read("a.png", None)
    assert server.asked == []


def test_where_obstore_cannot_be_imported_boto3_reads_and_one_line_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    store = store_over(server.endpoint)

    with caplog.at_level(logging.WARNING):
        for key in ("a.png", "b.png"):
            assert store.read(key, "abc").data == b"pixels"

    assert server.clients == ["boto3", "boto3"]
    assert [record.levelname for record in caplog.records if "obstore cannot be used" in record.message] == ["WARNING"]


FORKED = """
import os, sys
from tasks.settings import load_settings
from tasks.storage.s3 import S3Store

def store():
    return S3Store("bucket", load_settings(s3_endpoint=sys.argv[1], s3_access_key="a", s3_secret_key="b"))

before = store()
before.read("parent", None)
child = os.fork()
if child == 0:
    before.read("child", None)
    store().read("child", None)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_reads_through_boto3(server: Server) -> None:
    command = [sys.executable, "-c", FORKED, server.endpoint]

    done = subprocess.run(command, env=outer_environment(), cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("0\n", "")
    assert server.clients == ["obstore", "boto3", "boto3"]


def test_importing_the_store_does_not_import_obstore() -> None:
    script = "import sys, tasks.storage.s3; print('obstore' in sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", script], env=outer_environment(), cwd=ROOT, capture_output=True, text=True
    )

    assert done.stdout == "False\n"


@contextmanager
def behind_tls(server: Server, authority: trustme.CA) -> Iterator[str]:
    """The endpoint of a server behind the certificate that an authority gave it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with serve(context) as secure:
        secure.asked = server.asked
        secure.answer = lambda request: server.answer(request)
        yield secure.endpoint.replace("http://127.0.0.1", "https://localhost")


@pytest.mark.usefixtures("one_attempt")
@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_whom_boto3_trusts_obstore_trusts(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ours.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "others.pem")
    for each in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(each, raising=False)
    with behind_tls(server, authority) as endpoint:
        monkeypatch.setenv(name, str(tmp_path / "ours.pem"))
        assert store_over(endpoint).read("a.png", "abc").data == b"pixels"
        assert server.clients == ["obstore"]

        monkeypatch.setenv(name, str(tmp_path / "others.pem"))
        with pytest.raises(TransientStorageError, match="CERTIFICATE_VERIFY_FAILED"):
            store_over(endpoint).read("a.png", "abc")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours.pem"))  # The system's trust is not boto3's.
        with pytest.raises(TransientStorageError, match="CERTIFICATE_VERIFY_FAILED"):
            store_over(endpoint).read("a.png", "abc")
    assert len(server.asked) == 1


@pytest.mark.usefixtures("one_attempt")
def test_a_store_behind_tls_cannot_send_anybody_to_plain_http(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such as a cloud's metadata service. obstore follows redirects, boto3 only those to another region of S3."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ours.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ours.pem"))
    with serve() as inner, behind_tls(server, authority) as endpoint:
        location = {"Location": f"{inner.endpoint}/bucket/a.png"}
        server.answer = lambda _request: Answer(307, b"", location)
        with pytest.raises(StorageError):
            store_over(endpoint).read("a.png", None)

    assert server.clients == ["obstore", "boto3"]
    assert inner.asked == []
