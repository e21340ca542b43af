"""GETs through obstore and through boto3, in turn, from a server in a process of its own.

    .venv/bin/python -m benchmarks.reading [MILLISECONDS]

The server holds one object of 110 kB in memory and costs little itself, so that the client is what is measured. Printed are
medians over rounds in turn: CPU milliseconds of the client for one GET (all its threads), GETs a second from one thread, from
16 and from 64, and what a copy of the body and its digest cost. With MILLISECONDS the server waits that long before each
answer, as a store at a distance does.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from tasks.settings import load_settings
from tasks.storage.s3 import S3Store

BYTES, GETS, ROUNDS, THREADS = 110_000, 600, 5, (1, 16, 64)
HEAD = (
    f"HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\nContent-Type: image/jpeg\r\n"
    'ETag: "0123456789abcdef"\r\nLast-Modified: Sun, 01 Mar 2026 06:00:00 GMT\r\n\r\n'
)
ANSWER = HEAD.encode() + bytes(range(250)) * (BYTES // 250)


class Connection(asyncio.Protocol):
    """Answers every request, whatever it asks for."""

    wait = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.seen = transport, b""

    def data_received(self, data: bytes) -> None:
        """One answer for each end of a head."""
        self.seen += data
        while b"\r\n\r\n" in self.seen:
            _, _, self.seen = self.seen.partition(b"\r\n\r\n")
            asyncio.get_running_loop().call_later(self.wait, self.transport.write, ANSWER)


async def serve(milliseconds: float) -> None:
    """Print the port, and answer until the end."""
    Connection.wait = milliseconds / 1_000
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main(milliseconds: float) -> None:
    """Measure."""
    command = [sys.executable, "-m", "benchmarks.reading", "--serve", str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            print(f"{GETS} GETs of {BYTES / 1_000:.0f} kB a round, {ROUNDS} rounds in turn, {milliseconds:g} ms away")
            for threads in THREADS:
                measure(port, threads)
            copies()
        finally:
            server.kill()


def measure(port: int, threads: int) -> None:
    """Both ways in turn, after a warm-up; every object is looked at."""
    settings = load_settings(
        s3_endpoint=f"http://127.0.0.1:{port}", s3_access_key="a", s3_secret_key="b", readers=max(THREADS)
    )
    fast, slow = S3Store("bucket", settings), S3Store("bucket", settings)
    slow._fast._rests_until = float("inf")
    assert fast._fast.read("warm", None) is not None
    found: dict[str, list[tuple[float, float]]] = {"obstore": [], "boto3": []}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            for name, store in (("obstore", fast), ("boto3", slow)):
                found[name].append(round_of(store, pool))
    for name, rounds in found.items():
        cpu, rate = (median(column) for column in zip(*rounds, strict=True))
        print(f"{threads:3} threads, {name:7}: {cpu * 1_000:5.2f} ms of CPU a GET, {rate:6,.0f} GETs/s")
    ratio = median(ours[0] / theirs[0] for ours, theirs in zip(found["obstore"], found["boto3"], strict=True))
    print(f"{threads:3} threads: obstore costs {ratio:.2f} of boto3's CPU time")


def round_of(store: S3Store, pool: ThreadPoolExecutor) -> tuple[float, float]:
    """CPU seconds of this process for one GET, and GETs a second."""

    def read(number: int) -> int:
        return len(store.read(f"folder/{number:08}.jpg", "0123456789abcdef").data)

    cpu, started = time.process_time(), time.perf_counter()
    assert set(pool.map(read, range(GETS))) == {BYTES}
    return (time.process_time() - cpu) / GETS, GETS / (time.perf_counter() - started)


def copies() -> None:
    """What it costs to make Python's bytes of the body, beside the digest that is taken of each."""
    from obstore import Bytes

    body = Bytes(ANSWER[-BYTES:])
    for name, work in (("copy", body.to_bytes), ("sha256", lambda: hashlib.sha256(body).digest())):
        print(f"{name} of {BYTES / 1_000:.0f} kB: {microseconds(work):.0f} microseconds")


def microseconds(work: Callable[[], object]) -> float:
    """The median of many."""
    times = []
    for _ in range(1_000):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times) * 1e6


if __name__ == "__main__":
    if "--serve" in sys.argv:
        asyncio.run(serve(float(sys.argv[-1])))
    elif len(sys.argv) > 2:
        raise SystemExit(__doc__)
    else:
        main(float(sys.argv[1]) if len(sys.argv) == 2 else 0.0)
