"""An S3 that lists synthetic objects (objects.py), in a process of its own: `python -m benchmarks.scale.store PORT [SECONDS]`.

    GET /objects-10000000?list-type=2&prefix=&start-after=&continuation-token=&max-keys=

The bucket's name says how many objects it has, and nothing of it is kept: the entries of a thousand objects are one picture in
memory, whose fields are written anew for each answer. That costs about half a microsecond of the processor a key, with the
sending, so that on two cores the client is what is measured. PORT 0 takes a free one; the port is printed. SECONDS is what each
answer waits, as S3's do (0.1 to 0.3 s). It reads no objects and checks no signature.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote_plus

import numpy as np

from benchmarks.scale.objects import BLOCK, etag_of, first_behind, key_of, modified_of, numbers_under, size_of

BUCKET = "objects-"
PAGE = 1_000


def _entry(number: int) -> bytes:
    moment = modified_of(number).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    text = (
        f"<Contents><Key>{key_of(number)}</Key><LastModified>{moment}</LastModified><ETag>&quot;{etag_of(number)}&quot;</ETag>"
        f"<Size>{size_of(number)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )
    return text.encode()


# Written over for each block that is asked for.
_BLOCK = np.frombuffer(bytearray().join(map(_entry, range(BLOCK))), np.uint8).reshape(BLOCK, -1)


def _field(begins_with: bytes, length: int) -> slice:
    start = _entry(0).index(begins_with) + len(begins_with)
    return slice(start, start + length)


# What differs from block to block, each at the same place in all entries.
_KEY, _MOMENT, _ETAG = _field(b"<Key>", 17), _field(b"<LastModified>", 19), _field(b"&quot;", 29)


def entries(numbers: range) -> Iterator[bytes]:
    """The <Contents> of these objects."""
    for start in range(numbers.start // BLOCK * BLOCK, numbers.stop, BLOCK):
        first = _entry(start)
        for field in (_KEY, _MOMENT, _ETAG):
            _BLOCK[:, field] = np.frombuffer(first[field], np.uint8)
        yield _BLOCK[max(numbers.start - start, 0) : numbers.stop - start].tobytes()


def page(bucket: str, asked: Mapping[str, str]) -> bytes | None:
    """The answer to ListObjectsV2, worded as AWS does; None where there is no such bucket."""
    if not bucket.startswith(BUCKET) or not bucket.removeprefix(BUCKET).isdigit():
        return None
    count, prefix, token = int(bucket.removeprefix(BUCKET)), asked.get("prefix", ""), asked.get("continuation-token")
    under = numbers_under(count, prefix)
    after = first_behind(count, asked["start-after"]) if "start-after" in asked else 0
    start = max(under.start, after if token is None else int(token))
    limit = min(PAGE, int(asked.get("max-keys", PAGE)))
    end = max(start, min(start + limit, under.stop))
    more = end < under.stop
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{quote_plus(prefix)}</Prefix>"
        f"{f'<NextContinuationToken>{end}</NextContinuationToken>' if more else ''}<KeyCount>{end - start}</KeyCount>"
        f"<MaxKeys>{limit}</MaxKeys><EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>"
    )
    return b"".join([head.encode(), *entries(range(start, end)), b"</ListBucketResult>"])


class Connection(asyncio.Protocol):
    """One client, which waits for each answer before it asks again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Someone is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer what is asked in full."""
        self._heard += data
        while b"\r\n\r\n" in self._heard:
            head, _, self._heard = self._heard.partition(b"\r\n\r\n")
            if self._seconds:
                asyncio.get_running_loop().call_later(self._seconds, self._answer, head)
            else:
                self._answer(head)

    def _answer(self, head: bytes) -> None:
        method, target, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        path, _, query = target.partition("?")
        asked = dict(parse_qsl(query, keep_blank_values=True))
        body = page(path.strip("/"), asked) if method == "GET" else None
        status = "200 OK" if body is not None else "404 Not Found"
        body = b"<Error><Code>NoSuchBucket</Code></Error>" if body is None else body
        self._transport.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


async def serve(port: int, seconds: float) -> None:
    """Serve on loopback until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(seconds), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@dataclass(frozen=True)
class SyntheticStore:
    """A running one."""

    process: subprocess.Popen[str]
    port: int

    @property
    def settings(self) -> dict[str, str]:
        """Settings that reach it."""
        keys = {"s3_access_key": "access", "s3_secret_key": "secret", "s3_region": "us-east-1"}
        return {"s3_endpoint": f"http://127.0.0.1:{self.port}", **keys}

    def processor_seconds(self) -> float:
        """What its process has taken of the processor."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes that its process holds."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving_objects(seconds: float = 0.0) -> Iterator[SyntheticStore]:
    """A store in a process of its own; bucket objects-N has N objects."""
    command = [sys.executable, "-m", "benchmarks.scale.store", "0", str(seconds)]
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield SyntheticStore(process, int(process.stdout.readline()))
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
