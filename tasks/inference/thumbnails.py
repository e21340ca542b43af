"""Small pictures for the pages, made of the pixels that a network is given, while they are there.

A decoding thread scales and encodes; threads of their own write, so that a store's latency costs it nothing. No thumbnail is
worth an image: what cannot be written is counted, and told of once. nvJPEG's pixels come back to the host like all others, so
they need nothing of their own.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Collection
from concurrent.futures import Future, wait
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tasks.inference.pixels import Pixels
from tasks.inference.stages import started

if TYPE_CHECKING:
    from tasks.storage.thumbnails import ThumbnailStore

log = logging.getLogger(__name__)

SIDE = 160  # pixels, of the longer side at most
QUALITY = 75

# Thumbnails of 7 kB that wait for a writer or are being written. Beyond that the store is slower than the decoders, not only
# far away, and they wait for it.
IN_FLIGHT = 128
FAILURES_IN_A_ROW = 20
# A commit waits no longer than this for the last thumbnails of its images: a task that is being ended has a minute in all.
SETTLE_SECONDS = 20.0

_POLL_SECONDS = 0.1
_HAS_SIMPLEJPEG = find_spec("simplejpeg") is not None


def encode(pixels: Pixels) -> bytes:
    """JPEG of a picture, uint8 RGB [rows, columns, 3], scaled down to fit SIDE x SIDE; a smaller one stays as it is."""
    rows, columns = pixels.shape[:2]
    scale = SIDE / max(rows, columns)
    if scale < 1:
        size = max(1, round(columns * scale)), max(1, round(rows * scale))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    if _HAS_SIMPLEJPEG:
        import simplejpeg

        encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB", colorsubsampling="420")
        return encoded
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


class Thumbnails:
    """The thumbnails of one attempt at a shard; threads may share it."""

    def __init__(self, store: ThumbnailStore, label: str) -> None:
        self.store = store
        self.written = self.failed = 0
        self._label = label
        self._pool = started(store.writers, "thumbnail")
        self._room = threading.Semaphore(IN_FLIGHT)
        self._under_way: dict[bytes, Future[bool]] = {}
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._reason = ""
        self._is_over = threading.Event()

    @property
    def gave_up(self) -> bool:
        """Whether so many failed in a row that no more are tried."""
        return self._in_a_row >= FAILURES_IN_A_ROW

    def encode(self, pixels: Pixels) -> bytes | None:
        """A JPEG to be written; None where there is no use in it."""
        if self._is_idle():
            self._pass_over()
            return None
        try:
            return encode(pixels)
        except Exception as error:
            self._note(error)
            return None

    def write(self, digest: bytes, jpeg: bytes) -> None:
        """Let a thumbnail be written. It waits while too many are under way, and not after `close`."""
        while not self._room.acquire(timeout=_POLL_SECONDS):
            if self._is_idle():
                self._pass_over()
                return
        try:
            call = self._pool.submit(self._put, digest, jpeg)
        except RuntimeError:  # It was closed.
            self._room.release()
            return
        call.add_done_callback(lambda _call: self._room.release())
        with self._lock:
            self._under_way[digest] = call

    def settle(self, digests: Collection[bytes]) -> set[bytes]:
        """Wait until the thumbnails of these images are written or given up; the digests of those that may be there."""
        with self._lock:
            calls = {digest: self._under_way.pop(digest) for digest in digests if digest in self._under_way}
        late = wait(calls.values(), SETTLE_SECONDS).not_done
        for call in late:
            if call.cancel():
                self._note(TimeoutError(f"they were not written within {SETTLE_SECONDS:g} s"))
        return {digest for digest, call in calls.items() if not call.cancelled() and (call in late or call.result())}

    def forget(self, digests: Collection[bytes]) -> None:
        """Remove thumbnails of images that were erased while they were in hand."""
        for digest in digests:
            try:
                self.store.delete(digest.hex())
            except Exception as error:
                log.warning(
                    "%s: the thumbnail of an image that was erased meanwhile could not be removed: %s Give ./afterimage "
                    "erase --digest %s again.",
                    self._label,
                    error,
                    digest.hex(),
                )

    def close(self) -> None:
        """Start no more writes, leave those behind that are under way, and say once what failed."""
        self._is_over.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.failed:
            log.warning(
                "%s: %d thumbnails could not be written, %d were; the images are not affected. The last reason: %s",
                self._label,
                self.failed,
                self.written,
                self._reason,
            )

    def _is_idle(self) -> bool:
        return self._is_over.is_set() or self.gave_up

    def _put(self, digest: bytes, jpeg: bytes) -> bool:
        if self._is_idle():
            self._pass_over()
            return False
        try:
            self.store.put(digest.hex(), jpeg)
        except Exception as error:
            self._note(error)
            return False
        with self._lock:
            self.written += 1
            self._in_a_row = 0 if not self.gave_up else self._in_a_row
        return True

    def _pass_over(self) -> None:
        """One that is not tried any more. After `close` its image is open, and will come again."""
        with self._lock:
            self.failed += 0 if self._is_over.is_set() else 1

    def _note(self, error: Exception) -> None:
        """One that failed."""
        with self._lock:
            self.failed += 1
            self._reason = str(error) or type(error).__name__
            self._in_a_row += 1
            gives_up_now = self._in_a_row == FAILURES_IN_A_ROW
        if gives_up_now:
            log.warning(
                "%s: %d thumbnails in a row could not be written, so no more are tried here: %s",
                self._label,
                FAILURES_IN_A_ROW,
                self._reason,
            )
