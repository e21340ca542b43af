"""A server that answers GETs as a test says, and remembers who asked for what. It checks no signature."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tasks.settings import load_settings
from tasks.storage.s3 import S3Store

LAST_MODIFIED = "Sun, 01 Mar 2026 06:00:00 GMT"


@dataclass(frozen=True)
class Request:
    """What was asked: the path as it came over the wire, and the headers in lower case."""

    path: str
    headers: Mapping[str, str]

    @property
    def by(self) -> str:
        """The client that asked."""
        return "obstore" if self.headers["user-agent"].startswith("object_store/") else "boto3"


@dataclass(frozen=True)
class Answer:
    """What it is told. `length` is what the header says, where that is not the truth; None for `body` hangs up at once."""

    status: int = 200
    body: bytes | None = b"pixels"
    headers: Mapping[str, str] = field(default_factory=lambda: {"ETag": '"abc"', "Last-Modified": LAST_MODIFIED})
    length: int | None = None
    stalls: threading.Event | None = None

    @classmethod
    def error(cls, status: int, code: str, more: str = "") -> Answer:
        """An error as S3 words it."""
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>No.</Message>{more}</Error>'
        return cls(status, body.encode(), {"Content-Type": "application/xml"})


@dataclass
class Server:
    """`answer` may be changed at any time."""

    endpoint: str
    answer: Callable[[Request], Answer] = lambda _request: Answer()
    asked: list[Request] = field(default_factory=list)
    connections: list[object] = field(default_factory=list)

    @property
    def clients(self) -> list[str]:
        """Who asked, one for each request."""
        return [request.by for request in self.asked]


def store_over(endpoint: str, **changes: Any) -> S3Store:
    """A store over such a server."""
    keys = {"s3_access_key": "access", "s3_secret_key": "secret"}
    return S3Store("bucket", load_settings(s3_endpoint=endpoint, **keys | changes))


def by_boto3_alone(store: S3Store) -> S3Store:
    """The same store, without obstore."""
    store._fast._rests_until = float("inf")
    return store


@contextmanager
def serve(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server on loopback."""
    here: list[Server] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def setup(self) -> None:
            here[0].connections.append(self.client_address)
            super().setup()

        def do_GET(self) -> None:
            request = Request(self.path, {name.lower(): value for name, value in self.headers.items()})
            here[0].asked.append(request)
            self._send(here[0].answer(request))

        def _send(self, answer: Answer) -> None:
            self.close_connection = answer.body is None or answer.length is not None or answer.stalls is not None
            if answer.stalls is not None:
                answer.stalls.wait(20)
            if answer.body is None:
                return
            self.send_response(answer.status)
            length = len(answer.body) if answer.length is None else answer.length
            for name, value in {"Content-Length": str(length), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)
            self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    here.append(Server(f"http://127.0.0.1:{server.server_port}"))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield here[0]
    server.shutdown()
    server.server_close()
    thread.join()
