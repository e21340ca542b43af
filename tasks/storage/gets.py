"""GETs through obstore: an S3 client in Rust, which costs a sixth of boto3's CPU time or less and lets other threads run.

It is the fast way and never the only one. It makes one attempt, and whatever comes of it other than the whole object is
left to boto3: its retries, its time-outs and its errors hold for both. So this module knows no error of S3; it only
says "not by me". Where it fails several times in a row, as at a dead endpoint, behind a certificate that only boto3
accepts, or in another region than the one set, it rests for a while, and asks boto3 for the address anew when it wakes:
by then boto3 has followed the redirect to the bucket's region.

boto3 also decides where a bucket is (virtual host or path, dots, accelerated, dual stack) and who signs; both are taken
from its client, as are the certificates to trust. What obstore would do otherwise than boto3 is left to boto3 from the
start: proxies, other ways of signing. One thing is not done here: boto3 compares the checksum that AWS may send with an
object; here the transport's own (TLS) has to do.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tasks.storage.base import Blob

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3 import S3Client
    from obstore.store import S3Credential
    from obstore.store import S3Store as Obstore

log = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3
REST_SECONDS = 10.0

# Long enough for one lost SYN; boto3 comes after it with time-outs of its own, and both together should not take long.
CONNECT_SECONDS = 2
READ_SECONDS = 60

# object_store has a time-out over the whole answer, which boto3 does not: large objects over thin lines take their time.
_NO_TIME_OUT = timedelta(days=1)

# How long credentials are used before boto3 is asked for them again: it renews its own minutes before they expire.
_CREDENTIALS_LIFE = timedelta(minutes=1)

# The process in which obstore's threads run: they do not live on in a fork, where a GET would wait for ever.
_first_process: int | None = None

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_representable(key: str) -> bool:
    """Whether object_store asks for exactly this key.

    Its Path drops a slash at either end, and refuses ASCII control characters and the segments "", "." and "..". All else
    it sends as it is, percent-encoded once. A lone surrogate is no text to it.
    """
    if _CONTROL.search(key) or any(segment in ("", ".", "..") for segment in key.split("/")):
        return False
    return key.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in key)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a bucket answers, and the region that requests to it are signed for."""

    url: str
    region: str


class Addresses:
    """Asks a boto3 client where it would send a GET, without sending one."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        self._asking = threading.local()
        # Registered once and for all: boto3 clients may not change while other threads use them.
        client.meta.events.register_first("before-call.s3.GetObject", self._intercept)

    def find(self) -> Address | None:
        """The address; None where the bucket's name is none, or requests are signed in a way that obstore does not know."""
        from botocore.exceptions import BotoCoreError

        self._asking.found = None
        self._asking.now = True
        try:
            self._client.get_object(Bucket=self._bucket, Key="k")
        except BotoCoreError:  # Reading through boto3 says what is wrong.
            return None
        finally:
            self._asking.now = False
        found: Address | None = self._asking.found
        return found

    def _intercept(self, params: dict[str, Any], context: dict[str, Any], **_others: object) -> Any:
        """Take the address from the request, and answer it here; requests of others go their way."""
        if not getattr(self._asking, "now", False):
            return None
        region = context.get("signing", {}).get("region") or self._client.meta.region_name
        if context.get("auth_type", "v4") == "v4" and params["url"].endswith("/k"):
            self._asking.found = Address(params["url"].removesuffix("/k"), region)
        return SimpleNamespace(status_code=200), {}


class FastGets:
    """One bucket's GETs through obstore. `read` may be called from several threads at once."""

    def __init__(
        self, find: Callable[[], Address | None], credentials: Callable[[], Credentials | None], connections: int
    ) -> None:
        self._find = find
        self._credentials = credentials
        self._connections = connections
        self._opening = threading.Lock()
        self._store: Obstore | None = None
        self._failures = 0
        self._rests_until = 0.0

    def read(self, key: str, etag: str | None) -> Blob | None:
        """The object, in the state that an etag names; None where boto3 must be asked."""
        if time.monotonic() < self._rests_until or not is_representable(key):
            return None
        store = self._open()
        if store is None:
            return None
        try:
            blob = _get(store, key, etag)
        except _answers():
            return None
        except Exception as error:
            self._fail(error)
            return None
        self._failures = 0  # No lock around the count: it need not be exact.
        return blob

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        if self._failures < FAILURES_IN_A_ROW:
            return
        self._failures = 0
        self._rests_until = time.monotonic() + REST_SECONDS
        self._store = None  # The address may be another one by then.
        reason = str(error).partition("\n")[0]
        log.info("boto3 alone reads for %.0f seconds, because obstore failed: %s", REST_SECONDS, reason)

    def _open(self) -> Obstore | None:
        if not _in_first_process():
            return None
        store = self._store
        if store is not None:
            return store
        with self._opening:
            if self._store is None:
                self._store = self._opened()
            if self._store is None:
                self._rests_until = float("inf")
            return self._store

    def _opened(self) -> Obstore | None:
        address, credentials = self._find(), self._credentials()
        if address is None or credentials is None or _differs_from_boto3(address.url):
            return None
        try:
            return _obstore(address, credentials, self._connections)
        except Exception as error:  # Not installed, a bundle of certificates that cannot be read, or an odd address.
            log.warning("obstore cannot be used (%s), so boto3 reads all objects: slower, and else the same.", error)
            return None


def _in_first_process() -> bool:
    global _first_process
    if _first_process is None:
        _first_process = os.getpid()
    return _first_process == os.getpid()


def _answers() -> tuple[type[Exception], ...]:
    """What obstore raises where the store answered about the object: that is no failure of obstore's."""
    from obstore.exceptions import PreconditionError

    return FileNotFoundError, PreconditionError


def _get(store: Obstore, key: str, etag: str | None) -> Blob:
    import obstore

    answer = obstore.get(store, key, options={} if etag is None else {"if_match": f'"{etag}"'})
    data, found = answer.bytes().to_bytes(), answer.meta
    if len(data) != found["size"] or not found["e_tag"]:
        raise ValueError(f"{len(data)} of {found['size']} bytes came, with the ETag {found['e_tag']!r}")
    return Blob(data, found["e_tag"].strip('"'), found["last_modified"].astimezone(UTC))


def _obstore(address: Address, credentials: Credentials, connections: int) -> Obstore:
    """A store of one attempt. All that obstore would take from the environment is set here: boto3 has read that."""
    from obstore.store import S3Store as Obstore

    options: Any = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=READ_SECONDS),
        "timeout": _NO_TIME_OUT,
        "pool_max_idle_per_host": str(connections),
    }
    if address.url.startswith("https://"):
        options |= {"root_certificate": _trusted(), "disable_system_certificates": True}
    else:
        options["allow_http"] = True
    return Obstore(
        "bucket",  # Its name is in the address.
        aws_endpoint_url_s3=address.url,
        virtual_hosted_style_request=True,
        region=address.region,
        skip_signature=False,
        s3_express=False,
        request_payer=False,
        credential_provider=_Provider(credentials),
        client_options=options,
        retry_config={"max_retries": 0},
    )


class _Provider:
    """boto3's credentials for obstore, which asks again when `expires_at` has passed."""

    refresh_threshold = timedelta(0)

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self) -> S3Credential:
        frozen = self._credentials.get_frozen_credentials()
        assert frozen.access_key is not None
        assert frozen.secret_key is not None
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LIFE,
        }


def _differs_from_boto3(url: str) -> bool:
    """Whether the environment asks for what only boto3 does, or only obstore."""
    from botocore.utils import get_environ_proxies

    encrypts = any(name.startswith(("AWS_SERVER_SIDE_", "AWS_SSE_")) for name in os.environ)
    return encrypts or bool(get_environ_proxies(url))


def _trusted() -> bytes:
    """The certificates that boto3 trusts, in PEM: its own, or those that its settings name."""
    from botocore.httpsession import get_cert_path
    from botocore.session import get_session

    named = get_session().get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    return Path(named or get_cert_path(True) or "").read_bytes()
