"""From a listed object to its bytes and their digest."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.cache.outcome import Failed, Finished, Scored, blocked
from tasks.errors import AccessDenied, ObjectChanged, ObjectVanished, TransientStorageError
from tasks.storage.base import Blob, ImageObject, ObjectStore

ATTEMPTS = 3
FIRST_PAUSE_SECONDS = 0.2

ACCESS_DENIED, STORAGE_ERROR, TOO_MANY_BYTES = "access_denied", "storage_error", "too_many_bytes"


@dataclass(slots=True)
class Work:
    """One listed object on its way through the stages; each stage fills in its part, `finished` ends the way.

    `data` and `pixels` are let go as soon as the last stage that wants them has used them. `began` and `ended` are the
    moments of its read, in seconds of the monotonic clock.
    """

    listed: ImageObject
    image: ImageObject | None = None
    digest: bytes | None = None
    data: bytes | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    finished: Finished | None = None
    was_read: bool = False
    began: float = 0.0
    ended: float = 0.0

    def succeed(self, scored: Scored) -> None:
        """It was predicted."""
        self.data = self.pixels = None
        self.finished = Finished(self.listed.key, self.image, self.digest, scored=scored)

    def reuse(self) -> None:
        """Its digest has a prediction."""
        self.data = None
        self.finished = Finished(self.listed.key, self.image, self.digest)

    def vanish(self) -> None:
        """It is gone."""
        self.finished = Finished(self.listed.key)

    def block(self) -> None:
        """Its bytes were erased for good: nothing of them is kept."""
        self.data = None
        self.finished = blocked(self.listed.key, self.image)

    def fail(self, reason: str, message: str, *, permanent: bool) -> None:
        """It goes to the quarantine."""
        self.data = self.pixels = None
        self.finished = Finished(
            self.listed.key, self.image or self.listed, self.digest, failed=Failed(reason, message, permanent)
        )


def read_object(
    store: ObjectStore,
    listed: ImageObject,
    room: Callable[[], AbstractContextManager[object]] = nullcontext,
    most_bytes: int = 2**62,
) -> Work:
    """Read one object and take its digest. What goes wrong is in the Work: nothing is raised for a single object.

    An object that was overwritten since the listing is read again without condition, and is stored under the etag
    that was read. Each attempt waits for `room`; pauses between attempts take none. What was listed with more than
    `most_bytes` is not read.
    """
    work = Work(listed, began=time.monotonic())
    if listed.size > most_bytes:
        work.fail(TOO_MANY_BYTES, _too_large(listed.size, most_bytes), permanent=True)
        return work
    try:
        blob = _read(store, listed, room)
    except ObjectVanished:
        work.vanish()
    except AccessDenied as error:
        work.fail(ACCESS_DENIED, str(error), permanent=False)
    except (TransientStorageError, ObjectChanged) as error:
        work.fail(STORAGE_ERROR, str(error), permanent=False)
    else:
        work.was_read = True
        work.image = ImageObject(listed.key, blob.etag, len(blob.data), blob.last_modified)
        work.digest = hashlib.sha256(blob.data).digest()
        work.data = blob.data
        if len(blob.data) > most_bytes:
            work.fail(TOO_MANY_BYTES, _too_large(len(blob.data), most_bytes), permanent=True)
    work.ended = time.monotonic()
    return work


def _too_large(size: int, most_bytes: int) -> str:
    return (
        f"The object has {size:,} bytes, and AFTERIMAGE_MAX_IMAGE_MIB allows {most_bytes:,}. Make it smaller; or raise the "
        "setting, and run ./afterimage retry --reason too_many_bytes."
    )


def _read(store: ObjectStore, listed: ImageObject, room: Callable[[], AbstractContextManager[object]]) -> Blob:
    etag: str | None = listed.etag
    for attempt in range(ATTEMPTS):
        try:
            with room():
                return _whole(store.read(listed.key, etag), listed)
        except (ObjectChanged, TransientStorageError) as error:
            if attempt == ATTEMPTS - 1:
                raise
            if isinstance(error, ObjectChanged):
                etag = None
            else:
                time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    raise AssertionError("the loop returns or raises")


def _whole(blob: Blob, listed: ImageObject) -> Blob:
    """A proxy may cut a body and its Content-Length alike: no client notices, and the image would be called truncated."""
    if blob.etag == listed.etag and len(blob.data) != listed.size:
        raise TransientStorageError(
            f"{listed.key!r} came with {len(blob.data)} bytes and was listed with {listed.size}, in the same state. It is read "
            "again; if it stays, look at the proxies before the store."
        )
    return blob
