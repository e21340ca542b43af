"""HTTP on loopback: the operations of S3 with path-style addresses, and the control of faults.

POST   /_faults          a rule in JSON (rules.Rule); its number
GET    /_faults          {"rules": [{fault, struck}], "requests": {operation: count}}
DELETE /_faults          no rules, nothing counted, and the clock goes on
PUT    /_faults/clock    the moment that new objects and uploads get, in ISO 8601
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote_to_bytes

from tests.faults.fake_s3.answers import BENT, FAULTS, Answer, error, listing, whole, xml
from tests.faults.fake_s3.objects import Bucket, Buckets, FilledBucket
from tests.faults.fake_s3.rules import Request, Rule, Rules

# Few, so that a test can fill it: then the kernel answers no further connection.
BACKLOG = 8
STALL_SECONDS = 20.0

CONTROL = "_faults"


class Server:
    """All state of one server."""

    def __init__(self) -> None:
        self.buckets = Buckets()
        self.rules = Rules()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, until either side has enough."""
        try:
            while (request := await _read(reader, writer)) is not None:
                answer = self.control(request) if request.bucket == CONTROL else self.answer(request)
                if not await _send(reader, writer, answer, head=request.operation.startswith("head")):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    def answer(self, request: Request) -> Answer:
        """The answer to a request of S3, spoiled where a rule strikes."""
        rule = self.rules.find(request)
        if rule is None:
            return self._right(request)
        right = self._right(BENT.get(rule.fault, lambda same: same)(request))
        spoiled = FAULTS[rule.fault](right, request, rule)
        self._change(request.bucket, rule)
        return spoiled

    def _change(self, bucket: str, rule: Rule) -> None:
        for key, data in rule.put.items():
            self.buckets.put(bucket, key.encode(), base64.b64decode(data))
        for keys, marker in ((rule.delete, False), (rule.mark, True)):
            for key in keys:
                self.buckets.filled(bucket).delete(key.encode(), marker=marker)

    def _right(self, request: Request) -> Answer:
        if request.operation == "create_bucket":
            self.buckets.filled(request.bucket)
            return Answer()
        bucket = self.buckets.find(request.bucket)
        if bucket is None:
            return error(404, "NoSuchBucket")
        if request.operation in ("list", "head_bucket"):
            return listing(bucket, request) if request.operation == "list" else Answer()
        if request.operation in ("get", "head"):
            return _object(bucket, request)
        return self._written(request)

    def _written(self, request: Request) -> Answer:
        bucket, query = request.bucket, request.query
        if request.operation == "begin_upload":
            return xml("InitiateMultipartUploadResult", f"<UploadId>{self.buckets.begin(request.key)}</UploadId>")
        if request.operation == "put_part":
            etag = self.buckets.add_part(query["uploadId"], int(query["partNumber"]), request.body)
            return Answer(200, {"ETag": f'"{etag}"'})
        if request.operation == "complete_upload":
            return xml(
                "CompleteMultipartUploadResult", f"<ETag>{self.buckets.complete(bucket, query['uploadId']).etag}</ETag>"
            )
        if request.operation == "delete":
            self.buckets.filled(bucket).delete(request.key, marker="marker" in query)
            return Answer(204)
        if request.operation == "put":
            return Answer(200, {"ETag": f'"{self.buckets.put(bucket, request.key, request.body).etag}"'})
        return error(501, "NotImplemented")

    def control(self, request: Request) -> Answer:
        """What a test wants of the server."""
        if request.key == b"clock":
            self.buckets.clock = datetime.fromisoformat(request.body.decode())
        elif request.body:
            self.rules.rules.append(Rule(**json.loads(request.body)))
        elif request.operation == "delete":
            self.rules.clear()
            self.buckets.clock = None
        rules = [{"fault": rule.fault, "struck": rule.struck} for rule in self.rules.rules]
        return Answer(200, {}, json.dumps({"rules": rules, "requests": dict(self.rules.requests)}).encode())


def _object(bucket: Bucket, request: Request) -> Answer:
    found = bucket.get(request.key)
    if found is not None:
        return whole(found, request)
    marked = isinstance(bucket, FilledBucket) and request.key in bucket.marked
    return error(404, "NoSuchKey", {"x-amz-delete-marker": "true"} if marked else {})


def operation_of(method: str, key: bytes, query: Mapping[str, str]) -> str:
    """What a request of S3 asks for; the method in lower case where it is nothing that is known here."""
    if not key:
        return {"GET": "list", "PUT": "create_bucket", "HEAD": "head_bucket"}.get(method, method.lower())
    if "uploadId" in query:
        return {"PUT": "put_part", "POST": "complete_upload"}.get(method, method.lower())
    return "begin_upload" if method == "POST" else method.lower()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
    if not head:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect") == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    path, _, query = target.partition("?")
    bucket, _, key = path.removeprefix("/").partition("/")
    asked = dict(parse_qsl(query, keep_blank_values=True))
    decoded = unquote_to_bytes(key)
    return Request(operation_of(method, decoded, asked), bucket, decoded, asked, headers, body)


async def _send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer, *, head: bool) -> bool:
    """Send an answer; False where the connection is at its end."""
    if answer.status:
        length = len(answer.body) if answer.length is None else answer.length
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
    if not head:
        writer.write(answer.body[: answer.sent])
    await writer.drain()
    if answer.then == "stall":
        await asyncio.wait({asyncio.ensure_future(reader.read(1))}, timeout=STALL_SECONDS)
    if answer.then == "reset":
        # Closed with a linger of 0 seconds, a socket sends RST. What was written must have left before.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    return not answer.then


async def serve(port: int) -> None:
    """Serve on loopback until the process is ended."""
    state = Server()
    listening = await asyncio.start_server(state.connection, "127.0.0.1", port, backlog=BACKLOG, limit=2**20)
    await listening.serve_forever()
