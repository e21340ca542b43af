"""The test's side of the fake S3: its process, its objects, its faults."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.conftest import ROOT, free_port, outer_environment, wait_for_port


class FakeS3:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"

    @property
    def settings(self) -> dict[str, str]:
        """Settings that reach it."""
        keys = {"s3_access_key": "access", "s3_secret_key": "secret", "s3_region": "us-east-1"}
        return {"s3_endpoint": self.endpoint, **keys}

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object."""
        self._call("PUT", f"/{bucket}")
        self._call("PUT", f"/{bucket}/{quote(key)}", data)

    def strike(self, fault: str, **rule: Any) -> int:
        """Add a rule (rules.Rule); its number. `put` takes bytes."""
        if "put" in rule:
            rule["put"] = {key: base64.b64encode(data).decode() for key, data in rule["put"].items()}
        return len(self._call("POST", "/_faults", json.dumps({"fault": fault, **rule}).encode())["rules"]) - 1

    def struck(self, rule: int) -> int:
        """How many requests a rule struck."""
        return int(self._call("GET", "/_faults")["rules"][rule]["struck"])

    def requests(self, operation: str) -> int:
        """How many requests of a kind came since the last reset."""
        return int(self._call("GET", "/_faults")["requests"].get(operation, 0))

    def reset(self) -> None:
        """No faults from here on, and nothing counted; the objects stay."""
        self._call("DELETE", "/_faults")

    def set_clock(self, moment: datetime) -> None:
        """The moment that new objects and uploads get, until the reset."""
        self._call("PUT", "/_faults/clock", moment.isoformat().encode())

    def memory(self) -> int:
        """Bytes that its process holds in memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """The port takes no further connection: the process is stopped, and its backlog is full."""
        os.kill(self.process.pid, signal.SIGSTOP)
        waiting = []
        try:
            while (one := _connected(self.port)) is not None:
                waiting.append(one)
            yield
        finally:
            for one in waiting:
                one.close()
            os.kill(self.process.pid, signal.SIGCONT)

    def _call(self, method: str, path: str, body: bytes = b"") -> Any:
        request = urllib.request.Request(self.endpoint + path, data=body or None, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = answer.read()
        return json.loads(found) if found else None


def _connected(port: int) -> socket.socket | None:
    one = socket.socket()
    one.settimeout(0.2)
    try:
        one.connect(("127.0.0.1", port))
    except TimeoutError:
        one.close()
        return None
    return one


@contextmanager
def serving_fake_s3() -> Iterator[FakeS3]:
    """A server in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "tests.faults.fake_s3", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=outer_environment())
    try:
        wait_for_port(port, process)
        yield FakeS3(process, port)
    finally:
        process.kill()
        process.wait()
