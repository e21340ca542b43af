"""Right answers, as S3 words them, and how each fault spoils one."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import format_datetime
from itertools import count
from urllib.parse import quote_plus
from xml.sax.saxutils import escape

from tests.faults.fake_s3.objects import Bucket, Stored, page, page_by_folders
from tests.faults.fake_s3.rules import Request, Rule

# Asked for by a rule alone: no client of S3 has a word for it.
BY_FOLDERS = "by-folders"

_serial = count()
_NEXT = re.compile(rb"<NextContinuationToken>[^<]*</NextContinuationToken>")


@dataclass(frozen=True)
class Answer:
    """What is sent. `length` is what the header says and `sent` how many bytes follow, where that is not the truth.

    `then` is what comes after those: "close", "reset" or "stall" until the client hangs up; empty: the next request.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    sent: int | None = None
    then: str = ""


def error(status: int, code: str, headers: Mapping[str, str] | None = None, more: str = "") -> Answer:
    """An error as S3 words it."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>No.</Message>{more}</Error>'
    return Answer(status, {"Content-Type": "application/xml", **(headers or {})}, body.encode())


def xml(tag: str, inner: str) -> Answer:
    """A document of one element."""
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    body = f'<?xml version="1.0" encoding="UTF-8"?><{tag} xmlns="{namespace}">{inner}</{tag}>'
    return Answer(200, {"Content-Type": "application/xml"}, body.encode())


def listing(bucket: Bucket, request: Request) -> Answer:
    """A page of ListObjectsV2."""
    query = request.query
    prefix, limit = query.get("prefix", "").encode(), min(1_000, int(query.get("max-keys", "1000")))
    token = query.get("continuation-token")
    after = query.get("start-after", "").encode() if token is None else place_of(token)
    keys, more = (page_by_folders if BY_FOLDERS in query else page)(bucket.keys, prefix, after, limit)
    write = _quoted if query.get("encoding-type") == "url" else _escaped
    inner = [f"<Name>{request.bucket}</Name><Prefix>{write(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys>"]
    inner += [f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"]
    inner += ["<EncodingType>url</EncodingType>"] if query.get("encoding-type") == "url" else []
    inner += [f"<NextContinuationToken>{token_at(keys[-1])}</NextContinuationToken>"] if more else []
    inner += [_entry(write(key), bucket.get(key)) for key in keys]
    return xml("ListBucketResult", "".join(inner))


def whole(found: Stored, request: Request) -> Answer:
    """The bytes of an object, or those that a Range asks for; 412 where If-Match names another state."""
    wanted = request.headers.get("if-match")
    if wanted is not None and wanted.strip('"') != found.etag:
        return error(412, "PreconditionFailed")
    headers = {"ETag": f'"{found.etag}"', "Last-Modified": format_datetime(found.modified, usegmt=True)}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if asked is None:
        return Answer(200, {**headers, "Accept-Ranges": "bytes"}, found.data)
    first, size = int(asked[1]), len(found.data)
    last = min(int(asked[2] or size), size - 1)
    if first > last:
        return error(416, "InvalidRange")
    return Answer(206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}, found.data[first : last + 1])


def token_at(key: bytes) -> str:
    """A continuation token for what follows a key; no two are alike, as on AWS."""
    return base64.urlsafe_b64encode(b"%d %s" % (next(_serial), key)).decode()


def place_of(token: str) -> bytes:
    """The key that a token goes on behind."""
    return base64.urlsafe_b64decode(token).partition(b" ")[2]


def _entry(key: str, found: Stored | None) -> str:
    assert found is not None
    moment = found.modified.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return (
        f"<Contents><Key>{key}</Key><LastModified>{moment}</LastModified><ETag>&quot;{found.etag}&quot;</ETag>"
        f"<Size>{len(found.data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def _quoted(key: bytes) -> str:
    return quote_plus(key, safe="/")


def _escaped(key: bytes) -> str:
    """What XML 1.0 cannot carry is written as AWS writes it: `&#x1;`, at which parsers stumble."""
    return re.sub(r"[\x00-\x1f]", lambda found: f"&#x{ord(found[0]):x};", escape(key.decode()))


# Faults


def _half(answer: Answer) -> int:
    return len(answer.body) // 2


def _with_token(answer: Answer, token: str) -> Answer:
    element = f"<NextContinuationToken>{token}</NextContinuationToken>".encode() if token else b""
    return replace(answer, body=_NEXT.sub(element, answer.body))


def _empty_page(answer: Answer, request: Request, _rule: Rule) -> Answer:
    after = place_of(request.query["continuation-token"]) if "continuation-token" in request.query else b""
    more = "<KeyCount>0</KeyCount><IsTruncated>true</IsTruncated>"
    return xml("ListBucketResult", f"{more}<NextContinuationToken>{token_at(after)}</NextContinuationToken>")


def _backwards(answer: Answer, _request: Request, _rule: Rule) -> Answer:
    entries = re.findall(rb"<Contents>.*?</Contents>", answer.body, re.DOTALL)
    head, tail = answer.body.split(entries[0])[0], b"</ListBucketResult>"
    return replace(answer, body=head + b"".join(reversed(entries)) + tail)


def _flip(answer: Answer, _request: Request, _rule: Rule) -> Answer:
    """One bit behind the middle, another one each time. A PNG's sum of bytes notices it, a JPEG has none."""
    at = _half(answer) + next(_serial) % (len(answer.body) // 4)
    return replace(answer, body=answer.body[:at] + bytes([answer.body[at] ^ 1]) + answer.body[at + 1 :])


def _region(_answer: Answer, _request: Request, rule: Rule) -> Answer:
    more = "<Endpoint>bucket.s3.amazonaws.com</Endpoint>"
    return error(301, "PermanentRedirect", {"x-amz-bucket-region": rule.region}, more)


Fault = Callable[[Answer, Request, Rule], Answer]

FAULTS: dict[str, Fault] = {
    "slow_down": lambda *_: error(503, "SlowDown"),
    "internal": lambda *_: error(500, "InternalError"),
    "too_many": lambda *_: error(429, "TooManyRequests"),
    "denied": lambda *_: error(403, "AccessDenied"),
    "archived": lambda *_: error(403, "InvalidObjectState", more="<StorageClass>GLACIER</StorageClass>"),
    "expired": lambda *_: error(400, "ExpiredToken"),
    "region": _region,
    "stall": lambda answer, *_: replace(answer, sent=_half(answer), then="stall"),
    "silence": lambda answer, *_: replace(answer, status=0, sent=0, then="stall"),
    "reset": lambda answer, *_: replace(answer, sent=_half(answer), then="reset"),
    "short": lambda answer, *_: replace(answer, sent=_half(answer), then="close"),
    "cut": lambda answer, *_: replace(answer, body=answer.body[: _half(answer)]),
    "flip": _flip,
    "repeated_token": lambda answer, request, _: _with_token(
        answer, request.query.get("continuation-token", token_at(b""))
    ),
    "first_page_again": lambda answer, *_: _with_token(answer, token_at(b"")),
    "lost_token": lambda answer, *_: _with_token(answer, ""),
    "empty_page": _empty_page,
    "backwards": _backwards,
    "changes": lambda answer, *_: answer,
    "ignores_start": lambda answer, *_: answer,
    "by_folders": lambda answer, *_: answer,
}
"""`cut` is short and says so; `short` breaks off. `changes` gives the right answer, and what its rule changes comes after it."""

BENT: dict[str, Callable[[Request], Request]] = {
    "ignores_start": lambda request: _with_query(request, "start-after", None),
    "by_folders": lambda request: _with_query(request, BY_FOLDERS, "yes"),
}
"""Faults of a store that understands another question than it was asked, and answers that one rightly."""


def _with_query(request: Request, name: str, value: str | None) -> Request:
    others = {each: text for each, text in request.query.items() if each != name}
    return replace(request, query=others if value is None else {**others, name: value})
