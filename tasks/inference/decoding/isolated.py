"""Decodes in child processes what may kill or stall the process that decodes it.

Decoding runs in this process, because that is fast. What was in flight when a shard died, and what its header says is
costly, is decoded by a child instead (child.py), under limits on memory, processor and wall time. What kills the child is
the image's fault: decoder_crash, or decode_timeout. The pixels are the same.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import GlobalFault, ImageError
from tasks.inference.decoding.child import PIXELS, READY
from tasks.models.spec import Preprocessing

PROJECT = Path(__file__).resolve().parents[3]

# The child sees hostile bytes, so it sees no secret.
_SECRETIVE = ("AFTERIMAGE_", "AIRFLOW", "AWS_")


MOST_CHILDREN = 4  # at a time: each may take its share of memory
DYING_SECONDS = 5.0  # from the end of its answers to that of the process: a core of two gigabytes is freed meanwhile


@dataclass(frozen=True)
class Limits:
    """What one image may take: bytes of memory beyond those of an idle child, seconds of processor, seconds in all.

    A picture of the most pixels takes about a gigabyte and five seconds.
    """

    memory_bytes: int = 2 * 2**30
    cpu_seconds: int = 30
    wall_seconds: float = 120.0


class IsolatedDecoder:
    """Children that are started when they are first needed, and anew after one has died; threads may share it."""

    def __init__(self, spec: Preprocessing, compiled: Path, limits: Limits | None = None) -> None:
        # Where a GPU gives the pixels, a child only tells whether the file is one that can be decoded at all.
        self.gives_pixels = spec.decode != "nvjpeg-1"
        self._spec = spec if self.gives_pixels else replace(spec, decode="exact-1")
        self._compiled, self._limits = compiled, limits or Limits()
        self._turns = threading.BoundedSemaphore(MOST_CHILDREN)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._closed = False

    def decode(self, data: bytes, out: npt.NDArray[np.uint8]) -> ImageError | None:
        """Fill `out`, uint8 RGB [crop, crop, 3], or give the image's error. Raises GlobalFault where no child starts."""
        with self._turns:
            child = self._take()
            try:
                answer = child.decode(data, out)
            except _Died as death:
                self._drop(child)
                return death.error
            with self._lock:
                self._idle.append(child)
            return answer

    def close(self) -> None:
        """End all children, those at work as well."""
        with self._lock:
            self._closed = True
            children = list(self._all)
        for child in children:
            self._drop(child)

    def _take(self) -> _Child:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.is_alive:
                    return child
                self._all.discard(child)
        child = _Child(self._spec, self._compiled, self._limits)
        with self._lock:
            self._all.add(child)
            closed = self._closed
        if closed:
            self._drop(child)
        child.wait_until_ready()
        return child

    def _drop(self, child: _Child) -> None:
        with self._lock:
            self._all.discard(child)
            if child in self._idle:
                self._idle.remove(child)
        child.kill()


class _Died(Exception):
    """The child is gone, and the image is to blame."""

    def __init__(self, error: ImageError) -> None:
        super().__init__(str(error))
        self.error = error


class _Silent(Exception):
    """No answer came in time; or none can come any more, where `ended`."""

    def __init__(self, *, ended: bool) -> None:
        super().__init__()
        self.ended = ended


class _Child:
    """One process; one image at a time."""

    def __init__(self, spec: Preprocessing, compiled: Path, limits: Limits) -> None:
        self._limits = limits
        told: dict[str, Any] = {"preprocessing": asdict(spec), "compiled": str(compiled)}
        told |= {"memory_bytes": limits.memory_bytes, "cpu_seconds": limits.cpu_seconds}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tasks.inference.decoding.child", json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,  # A signal to our group is for us: we end our children when we are through.
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._given, self._answers = self._process.stdin, self._process.stdout

    def wait_until_ready(self) -> None:
        """Raises GlobalFault where it does not start."""
        try:
            assert self._read(1, time.monotonic() + self._limits.wall_seconds) == READY
        except _Silent:
            self.kill()
            raise GlobalFault(
                f"The process that decodes suspects does not start: it ended with {self._process.returncode}. Run "
                "python -m tasks.inference.decoding.child in the program's folder to see why. No image was quarantined."
            ) from None

    def decode(self, data: bytes, out: npt.NDArray[np.uint8]) -> ImageError | None:
        """See IsolatedDecoder.decode. Raises _Died."""
        deadline = time.monotonic() + self._limits.wall_seconds
        try:
            self._given.write(len(data).to_bytes(8, "big") + data)
            self._given.flush()
            if self._read(1, deadline) == PIXELS:
                out[...] = np.frombuffer(self._read(out.nbytes, deadline), np.uint8).reshape(out.shape)
                return None
            told = json.loads(self._read(int.from_bytes(self._read(8, deadline), "big"), deadline))
            return ImageError(told["reason"], told["message"])
        except (_Silent, BrokenPipeError) as silence:
            timed_out = isinstance(silence, _Silent) and not silence.ended
            if not timed_out:  # It is dying by itself, and how it does tells why.
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(DYING_SECONDS)
            self.kill()
            raise _Died(self._error(timed_out)) from None

    def _error(self, timed_out: bool) -> ImageError:
        code = self._process.returncode
        if timed_out or code == -signal.SIGXCPU:
            spent = (
                f"{self._limits.wall_seconds:g} s" if timed_out else f"{self._limits.cpu_seconds} s of processor time"
            )
            return ImageError(
                "decode_timeout", f"Decoding took more than {spent}. Save the image anew in a plainer form."
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return ImageError(
            "decoder_crash",
            f"The decoder died of this image ({how}). Save it anew with another program, and upload that.",
        )

    def _read(self, count: int, deadline: float) -> bytes:
        """Exactly so many bytes. Raises _Silent."""
        found = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while len(found) < count:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise _Silent(ended=False)
                part = os.read(self._answers.fileno(), count - len(found))
                if not part:
                    raise _Silent(ended=True)
                found += part
        return bytes(found)

    @property
    def is_alive(self) -> bool:
        """Whether it can be given an image."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once, if it has not ended yet."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._given, self._answers):
            with suppress(OSError):  # What was not given any more goes nowhere.
                pipe.close()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SECRETIVE)}
    path = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}
