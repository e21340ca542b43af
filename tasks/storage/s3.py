"""S3 and its compatibles, through boto3, and where it can through obstore.

boto3 lists every legal key as it is: `a//b`, `../x`, leading and trailing slashes, newlines. Where an endpoint is
set, checksums are computed only when the server asks for them: several compatibles refuse boto3's default. boto3 lists,
signs and finds the credentials; only the answers to its listings are read without it (lists.py). Objects are read
through obstore (gets.py) first, and through boto3 where that gives nothing, so that every error and every retry is
boto3's. The endpoint comes from the settings alone: it is part of the source's name, so one that boto3 found elsewhere
would mix the rows of two stores.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from tasks.errors import (
    AccessDenied,
    ConfigurationError,
    ObjectChanged,
    ObjectVanished,
    StorageError,
    TransientStorageError,
)
from tasks.settings import Settings
from tasks.storage.base import PAGE_OBJECTS, Blob, ImageObject
from tasks.storage.etags import EtagCheck
from tasks.storage.gets import READ_SECONDS, Addresses, FastGets
from tasks.storage.listing_answers import NoListing
from tasks.storage.lists import FastLists
from tasks.storage.walk import Walk

if TYPE_CHECKING:
    from boto3.session import Session
    from botocore.credentials import Credentials
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5

_PIECE_BYTES = 1024 * 1024

_ENDPOINTS = {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}

# The end of a directory bucket's name (S3 Express): its listings have no order.
_UNORDERED = "--x-s3"

# In byte order nothing that anybody stores lies between `a` with this and `a/`.
_JUST_BELOW_SLASH = ".\U0010fffd"

_GONE = {"NoSuchKey", "404", "NotFound", "NoSuchVersion"}
_DENIED = {"AccessDenied", "403", "Forbidden"}
_WRONG_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed"}


def client(settings: Settings, **other: Any) -> S3Client:
    """A boto3 client with time-outs and retries, or with `other` ones (botocore's Config); threads may share it."""
    import boto3.session

    return _client(boto3.session.Session(), settings, **other)


def _client(session: Session, settings: Settings, **other: Any) -> S3Client:
    from botocore.config import Config

    options: dict[str, Any] = {
        "ignore_configured_endpoint_urls": True,
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"mode": "standard", "total_max_attempts": 5},
        "max_pool_connections": max(10, settings.readers),
        **other,
    }
    if settings.s3_endpoint is not None:
        _check_endpoint(settings.s3_endpoint)
        options |= {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    elif _ENDPOINTS & os.environ.keys():
        log.warning("AWS_ENDPOINT_URL is not looked at: AFTERIMAGE_S3_ENDPOINT names the store, and is not set.")
    secret = settings.s3_secret_key
    return session.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region or ("us-east-1" if settings.s3_endpoint else None),
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(**options),
    )


def _credentials(session: Session, settings: Settings) -> Credentials | None:
    """What the client signs with; the session remembers what it found, and renews it."""
    from botocore.credentials import Credentials

    secret = settings.s3_secret_key
    if settings.s3_access_key is not None and secret is not None:
        return Credentials(settings.s3_access_key, secret.get_secret_value())
    return session.get_credentials()


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:  # The endpoint is part of the source's name, which everybody may read.
        raise ConfigurationError(
            "AFTERIMAGE_S3_ENDPOINT holds a user or a password. Give them as AFTERIMAGE_S3_ACCESS_KEY and _SECRET_KEY."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"AFTERIMAGE_S3_ENDPOINT is {endpoint!r}, which is no web address. Write it as http://HOST:PORT."
        )


class S3Store:
    """One bucket."""

    def __init__(self, bucket: str, settings: Settings) -> None:
        import boto3.session

        session = boto3.session.Session()
        self.bucket = bucket
        self._client = _client(session, settings)
        self._lists = FastLists(self._client)
        self._begins: bool | None = None
        addresses = Addresses(self._client, bucket)
        self._fast = FastGets(addresses.find, lambda: _credentials(session, settings), settings.readers)
        self._etags = EtagCheck(is_wanted=self._client.meta.endpoint_url.startswith("http://"))

    @property
    def is_ordered(self) -> bool:
        """Directory buckets list in no order, and know no StartAfter."""
        return not self.bucket.endswith(_UNORDERED)

    def pages(self, prefix: str, after: str | None = None) -> Iterator[list[ImageObject]]:
        """List the bucket under a prefix, a thousand keys a page. A listing that is out of order is an error."""
        return self._pages(prefix, after, PAGE_OBJECTS, is_ordered=self.is_ordered)

    def begins_after(self, prefix: str) -> bool:
        """See ObjectStore.begins_after; of a bucket it is asked once, under the first prefix where something lies."""
        if self.is_ordered and self._begins is None:
            self._begins = self._probe(prefix)
        return bool(self._begins)

    def first_key(self, prefix: str, after: str | None = None) -> str | None:
        """See ObjectStore.first_key: one LIST of one key."""
        return self._first(prefix, after, is_ordered=self.is_ordered)

    def _probe(self, prefix: str) -> bool | None:
        """Whether the bucket begins behind its first key, and at it: behind one that comes just before it in byte order.

        A store that goes folder by folder has passed `a/x` where it begins behind `a.`. None where nothing lies.
        """
        first = self._first(prefix, None, is_ordered=False)
        if first is None:
            return None
        second = self._first(prefix, first, is_ordered=False)
        folder = first.rfind("/", len(prefix))
        before = first[:folder] + _JUST_BELOW_SLASH
        return (second is None or second > first) and (
            folder < 0 or self._first(prefix, before, is_ordered=False) == first
        )

    def _first(self, prefix: str, after: str | None, *, is_ordered: bool) -> str | None:
        pages = self._pages(prefix, after, 1, is_ordered=is_ordered)
        return next((page[0].key for page in pages if page), None)

    def _pages(self, prefix: str, after: str | None, limit: int, *, is_ordered: bool) -> Iterator[list[ImageObject]]:
        by_bytes = after is not None and bool(self._begins)  # Whoever divides has asked, and was told so.
        walk = Walk(f"s3://{self.bucket}/{prefix}", is_ordered=is_ordered, after=after, by_bytes=by_bytes)
        start: dict[str, Any] = {} if after is None else {"StartAfter": after}
        while True:
            try:
                page = self._lists.page(self.bucket, prefix, limit, start)
            except NoListing as error:
                raise walk.unreadable(str(error)) from error
            except Exception as error:
                self._translate(error, f"s3://{self.bucket}/{prefix}")
            token = walk.follow([image.key for image in page.images], page.more, page.token)
            yield page.images
            if token is None:
                return
            start = {"ContinuationToken": token}

    def head(self, key: str) -> ImageObject | None:
        """HEAD one object; see ObjectStore.head."""
        try:
            answer = self._client.head_object(Bucket=self.bucket, Key=key)
        except Exception as error:
            try:
                self._translate(error, f"s3://{self.bucket}/{key}")
            except ObjectVanished:
                return None
        modified = answer["LastModified"].astimezone(UTC)
        return ImageObject(key, answer["ETag"].strip('"'), answer["ContentLength"], modified)

    def read(self, key: str, etag: str | None) -> Blob:
        """GET one object, with If-Match where an etag is given; see ObjectStore.read."""
        blob = self._fast.read(key, etag) or self._read_with_boto3(key, etag)
        return self._second_reading(key, blob) if self._etags.doubts(blob) else blob

    def _second_reading(self, key: str, first: Blob) -> Blob:
        """What is not what its ETag tells of is believed only where it comes twice alike."""
        second = self._read_with_boto3(key, first.etag)
        if not self._etags.doubts(second):
            return second
        if second.data != first.data:
            raise TransientStorageError(
                f"s3://{self.bucket}/{key} came twice under the ETag {first.etag}, each time with other bytes. It is read "
                "again; if it stays, look at the network and the proxies before the store, or use https."
            )
        self._etags.believe()
        return second

    def _read_with_boto3(self, key: str, etag: str | None) -> Blob:
        condition: dict[str, Any] = {} if etag is None else {"IfMatch": f'"{etag}"'}
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=key, **condition)
            with answer["Body"] as body:
                data = body.read()
        except Exception as error:
            self._translate(error, f"s3://{self.bucket}/{key}")
        if len(data) != answer["ContentLength"]:
            raise TransientStorageError(
                f"s3://{self.bucket}/{key} ended after {len(data)} of {answer['ContentLength']} bytes. It is read again."
            )
        return Blob(data, answer["ETag"].strip('"'), answer["LastModified"].astimezone(UTC))

    def pieces(self, key: str) -> Iterator[bytes]:
        """GET one object that may be too large for memory, a MiB at a time. Raises as `read` does."""
        length = 0
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            with closing(answer["Body"]) as body:
                for piece in body.iter_chunks(_PIECE_BYTES):
                    length += len(piece)
                    yield piece
        except Exception as error:
            self._translate(error, f"s3://{self.bucket}/{key}")
        if length != answer["ContentLength"]:
            raise TransientStorageError(
                f"s3://{self.bucket}/{key} ended after {length} of {answer['ContentLength']} bytes. It is read again."
            )

    def sign(self, key: str, seconds: int) -> str:
        """A presigned GET."""
        return self._client.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=seconds
        )

    def _translate(self, error: Exception, what: str) -> NoReturn:
        """Turn botocore's exceptions into ours, so that no caller needs to know boto3."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            ParamValidationError,
            PartialCredentialsError,
        )

        if isinstance(error, ClientError):
            raise _client_error(error, what, self.bucket) from error
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            raise ConfigurationError(
                f"{what!r}: no S3 credentials were found. Set AFTERIMAGE_S3_ACCESS_KEY and AFTERIMAGE_S3_SECRET_KEY, "
                "the Airflow Connection afterimage_storage, or any source that boto3 reads."
            ) from error
        if isinstance(error, ParamValidationError):
            raise ConfigurationError(
                f"{what!r} is no address in S3. Correct `images`: a bucket's name has letters, digits, dots and hyphens."
            ) from error
        if isinstance(error, BotoCoreError | OSError) or type(error).__module__.startswith("urllib3"):
            raise TransientStorageError(
                f"{what!r}: {error}. It is tried again; check the endpoint if it stays."
            ) from error
        raise error


def _client_error(error: ClientError, what: str, bucket: str) -> StorageError | ConfigurationError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        return ConfigurationError(
            f"The bucket {bucket!r} does not exist at this endpoint. Create it, or correct `images`."
        )
    if code in _ELSEWHERE or status == 301:
        return _elsewhere(error, bucket)
    if code in _GONE or status == 404:
        return ObjectVanished(f"{what!r} is gone. Nothing to do: it is counted as vanished.")
    if code == "PreconditionFailed" or status == 412:
        return ObjectChanged(f"{what!r} was overwritten since it was listed. It is read again.")
    if code in _WRONG_CREDENTIALS:
        return AccessDenied(f"{what!r}: the store refuses the credentials ({code}). Renew them, then run again.")
    if code == "InvalidObjectState":
        return AccessDenied(f"{what!r} is archived ({code}). Restore it; until then it is tried again now and then.")
    if code in _DENIED or status == 403:
        return AccessDenied(f"{what!r}: {code or status}. Give these credentials s3:GetObject and s3:ListBucket.")
    return TransientStorageError(f"{what!r}: {code or status}. It is tried again; check the store if it stays.")


def _elsewhere(error: ClientError, bucket: str) -> ConfigurationError:
    """boto3 follows a redirect to another region once; this one came after that, or named none."""
    told: Any = error.response
    region = told.get("Error", {}).get("Region") or told.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(
        "x-amz-bucket-region"
    )
    return ConfigurationError(
        f"The bucket {bucket!r} is in {'another region' if region is None else f'the region {region!r}'}, and the store does "
        f"not answer for it here. Set AFTERIMAGE_S3_REGION to {region or 'the region of the bucket'}, and "
        "AFTERIMAGE_S3_ENDPOINT to an endpoint of that region, if one is set."
    )
