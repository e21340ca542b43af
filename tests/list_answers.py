"""Answers of ListObjectsV2 in every shape that stores give them, and a store that is told them over boto3's own road."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

from botocore.awsrequest import AWSResponse
from botocore.handlers import decode_list_object_v2
from botocore.parsers import create_parser
from botocore.session import get_session

from tasks.storage import ImageObject
from tasks.storage.listing_answers import ListedPage
from tasks.storage.s3 import S3Store

S3 = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True)
class Shape:
    """How a store writes. `entry` is what stands in <Contents>, `between` and `within` come between its elements and in them."""

    entry: Sequence[str] = ("Key", "LastModified", "ETag", "Size", "StorageClass")
    encoded: bool = True
    quote: str = "&quot;"
    between: str = ""
    namespace: str = f' xmlns="{S3}"'
    prefix: str = ""
    declaration: str = '<?xml version="1.0" encoding="UTF-8"?>\n'
    moment: str = "2026-03-01T06:00:00.000Z"
    tail: str = ""
    extras: dict[str, str] = field(default_factory=dict)


AWS = Shape()
SHAPES = {
    "AWS": AWS,
    "AWS, with checksums and owners": replace(
        AWS,
        entry=("Key", "LastModified", "ETag", "ChecksumAlgorithm", "ChecksumType", "Size", "Owner", "StorageClass"),
    ),
    "MinIO": replace(AWS, quote="&#34;", entry=("Key", "LastModified", "ETag", "Size", "Owner", "StorageClass")),
    "Ceph": replace(
        AWS, entry=("Key", "LastModified", "ETag", "Size", "StorageClass", "Owner", "Type"), declaration=""
    ),
    "quotes as they are": replace(AWS, quote='"', moment="2026-03-01T06:00:00Z"),
    "no quotes": replace(AWS, quote="", moment="2026-03-01T06:00:00.25Z"),
}
ODD_SHAPES = {
    "not encoded": replace(AWS, encoded=False),
    "pretty": replace(AWS, between="\n    "),
    "other order": replace(AWS, entry=("StorageClass", "Size", "ETag", "Key", "LastModified")),
    "unknown elements": replace(
        AWS, entry=("Key", "New", "LastModified", "ETag", "Size", "RestoreStatus"), extras={"New": "<Key>none</Key>"}
    ),
    "several checksums": replace(
        AWS, entry=("Key", "LastModified", "ETag", "ChecksumAlgorithm", "ChecksumAlgorithm", "Size", "StorageClass")
    ),
    "another namespace": replace(AWS, namespace=' xmlns="urn:other"'),
    "no namespace": replace(AWS, namespace=""),
    "prefixed": replace(AWS, namespace=f' xmlns:s3="{S3}"', prefix="s3:"),
    "offset": replace(AWS, moment="2026-03-01T08:00:00.125+02:00"),
    "as HTTP writes it": replace(AWS, moment="Sun, 01 Mar 2026 06:00:00 GMT"),
    "seconds": replace(AWS, moment="1772344800"),
    "more behind": replace(AWS, tail="<RequestCharged>requester</RequestCharged><!-- <Contents> -->"),
    "comment and CDATA": replace(
        AWS, between="<!-- </Contents> -->", extras={"StorageClass": "<![CDATA[<Contents>]]>"}
    ),
}
EXTRAS = {
    "StorageClass": "STANDARD",
    "ChecksumAlgorithm": "CRC64NVME",
    "ChecksumType": "FULL_OBJECT",
    "Owner": "<ID>0123</ID><DisplayName>somebody</DisplayName>",
    "RestoreStatus": "<IsRestoreInProgress>false</IsRestoreInProgress>",
    "Type": "Normal",
}


def answer(
    keys: Iterable[str], token: str | None = None, shape: Shape = AWS, etag: str = "abc", size: int = 7
) -> bytes:
    """One page; truncated where there is a token."""
    keys = list(keys)
    encoding = element("EncodingType", "url", shape) if shape.encoded else ""
    more = element("NextContinuationToken", escape(token), shape) if token is not None else ""
    head = element("Name", "bucket", shape) + element("Prefix", "", shape) + more
    head += element("KeyCount", str(len(keys)), shape) + element("MaxKeys", "1000", shape) + encoding
    head += element("IsTruncated", str(token is not None).lower(), shape)
    inner = head + "".join(_entry(key, shape, etag, size) for key in keys) + shape.tail
    root = f"{shape.prefix}ListBucketResult"
    return f"{shape.declaration}<{root}{shape.namespace}>{inner}</{root}>".encode()


def element(name: str, inner: str, shape: Shape = AWS) -> str:
    """An element as a shape writes it."""
    return f"<{shape.prefix}{name}>{inner}</{shape.prefix}{name}>{shape.between}"


def _entry(key: str, shape: Shape, etag: str, size: int) -> str:
    written = quote_plus(key, safe="/") if shape.encoded else _escaped(key)
    texts = EXTRAS | shape.extras
    texts |= {"Key": written, "LastModified": shape.moment, "ETag": shape.quote + etag + shape.quote, "Size": str(size)}
    inner = "".join(element(name, texts[name], shape) for name in shape.entry)
    return element("Contents", shape.between + inner, shape)


def _escaped(key: str) -> str:
    """XML reads a carriage return as the end of a line, unless it is written as a number."""
    return escape(key).replace("\r", "&#13;")


_SHAPE = get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
_PARSER = create_parser("rest-xml")


def as_boto3_reads_it(body: bytes) -> ListedPage:
    """The page that boto3 gives, by its own parser and its own decoding."""
    found: Any = _PARSER.parse({"status_code": 200, "headers": {}, "body": body}, _SHAPE)
    decode_list_object_v2(found, {"encoding_type_auto_set": True})
    images = [
        ImageObject(each["Key"], each["ETag"].strip('"'), each["Size"], each["LastModified"].astimezone(UTC))
        for each in found.get("Contents", [])
    ]
    return ListedPage(images, found["IsTruncated"], found.get("NextContinuationToken"))


MOMENT = datetime(2026, 3, 1, 6, tzinfo=UTC)


class _Raw(io.BytesIO):
    def stream(self) -> Iterable[bytes]:
        return [self.read()]


def told(store: S3Store, *answers: bytes | tuple[int, bytes]) -> list[Any]:
    """Give a store these answers to its listings, in turn and the last one for ever; the requests that it sends."""
    asked: list[Any] = []

    def send(request: Any, **_others: object) -> AWSResponse:
        given = answers[min(len(asked), len(answers) - 1)]
        status, body = given if isinstance(given, tuple) else (200, given)
        asked.append(request)
        return AWSResponse(request.url, status, {}, _Raw(body))

    store._client.meta.events.register("before-send.s3.ListObjectsV2", send)
    store._client.meta.events.register(
        "before-send.s3.CreateSession", lambda request, **_others: AWSResponse(request.url, 200, {}, _Raw(SESSION))
    )
    return asked


# Directory buckets are asked with the credentials of a session.
SESSION = b"""<CreateSessionResult><Credentials><SessionToken>t</SessionToken><SecretAccessKey>s</SecretAccessKey>
<AccessKeyId>a</AccessKeyId><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></CreateSessionResult>"""
