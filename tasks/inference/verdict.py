"""Is it the image, or is it the world?

Reasons that lie in the image (truncated, not an image) always commit. Reasons that may be global (access denied,
storage errors, non-finite output, a network that raises) are held back until something of the same kind succeeds: then the
image was to blame. Where nothing succeeds, the fault is global, the task fails and no image is quarantined for it.

What failed overtakes what waits for a batch. So an image that comes later may have been read before credentials expired:
a read proves that storage works only where it began after the suspect had failed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from tasks.errors import GlobalFault
from tasks.inference.reading import ACCESS_DENIED, STORAGE_ERROR, Work

NONFINITE_OUTPUT, COMPUTE_ERROR = "nonfinite_output", "compute_error"

CONSECUTIVE_LIMIT = 20

_STORAGE, _MODEL = "storage", "model"
_KIND = {ACCESS_DENIED: _STORAGE, STORAGE_ERROR: _STORAGE, NONFINITE_OUTPUT: _MODEL, COMPUTE_ERROR: _MODEL}


class Verdict:
    """Holds suspects back and lets them go when their kind of work is seen to succeed.

    `storage_works` tries to read another object than the suspects. The model was tried on a blank image before the
    shard began, so a few non-finite outputs are the images' own.
    """

    def __init__(self, storage_works: Callable[[list[Work]], bool]) -> None:
        self._storage_works = storage_works
        self._held: dict[str, list[Work]] = {_STORAGE: [], _MODEL: []}

    def judge(self, work: Work) -> list[Work]:
        """Take one finished work; return what may be committed now.

        After 20 suspects in a row without a success between them it decides: raises GlobalFault, or lets them go
        where another object can be read.
        """
        assert work.finished is not None
        released = self._prove(_STORAGE, work.began) if work.was_read else []
        failed = work.finished.failed
        kind = _KIND.get(failed.reason) if failed is not None else None
        if kind is None:
            if work.finished.scored is not None:
                released += self._prove(_MODEL)
            return [*released, work]
        self._held[kind].append(work)
        if len(self._held[kind]) < CONSECUTIVE_LIMIT:
            return released
        if kind == _STORAGE and self._storage_works(self._held[_STORAGE]):
            return self._prove(_STORAGE)
        raise self._fault(kind)

    def close(self) -> list[Work]:
        """At the end of a shard: release what is held, or raise GlobalFault where storage does not work now.

        That it worked earlier in the shard proves nothing: it may have gone away since.
        """
        held = self._held[_STORAGE]
        if held and not self._storage_works(held):
            raise self._fault(_STORAGE)
        return self._prove(_STORAGE) + self._prove(_MODEL)

    def _prove(self, kind: str, began: float = inf) -> list[Work]:
        """Let go of those that had failed when something began that worked."""
        released = [work for work in self._held[kind] if work.ended <= began]
        self._held[kind] = [work for work in self._held[kind] if work.ended > began]
        return released

    def _fault(self, kind: str) -> GlobalFault:
        held = self._held[kind]
        first = held[0].finished
        assert first is not None
        assert first.failed is not None
        what = "Objects cannot be read" if kind == _STORAGE else "The model gives nothing that can be used"
        return GlobalFault(
            f"{what}: {len(held)} in a row and none that worked. The first one: {first.failed.message} "
            "Nothing was quarantined for this. Mend it and clear the task: it goes on where it stopped."
        )
