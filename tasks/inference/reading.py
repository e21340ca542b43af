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

ACCESS_DENIED, STORAGE_ERROR = "access_denied", "storage_error"


@dataclass(slots=True)
class Work:
    """One listed object on its way through the stages; each stage fills in its part, `finished` ends the way.

    `data` and `pixels` are let go as soon as the last stage that wants them has used them.
    """

    listed: ImageObject
    image: ImageObject | None = None
    digest: bytes | None = None
    data: bytes | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    finished: Finished | None = None
    was_read: bool = False

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
    store: ObjectStore, listed: ImageObject, room: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Work:
    """Read one object and take its digest. What goes wrong is in the Work: nothing is raised for a single object.

    An object that was overwritten since the listing is read again without condition, and is stored under the etag
    that was read. Each attempt waits for `room`; pauses between attempts take none.
    """
    work = Work(listed)
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
    return work


def _read(store: ObjectStore, listed: ImageObject, room: Callable[[], AbstractContextManager[object]]) -> Blob:
    etag: str | None = listed.etag
    for attempt in range(ATTEMPTS):
        try:
            with room():
                return store.read(listed.key, etag)
        except (ObjectChanged, TransientStorageError) as error:
            if attempt == ATTEMPTS - 1:
                raise
            if isinstance(error, ObjectChanged):
                etag = None
            else:
                time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    raise AssertionError("the loop returns or raises")
