"""Images under a URI as the network sees them: what calibrates, judges and distils a model.

Reading goes on while the caller works, a few groups ahead, so that a sample of any size takes the memory of one.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.errors import ConfigurationError, ImageError
from tasks.inference.decoding.nvjpeg import NvjpegDecoder
from tasks.inference.decoding.policies import Decoder, open_decoder
from tasks.inference.reading import read_object
from tasks.listing import KeyFilter, list_pages
from tasks.location import parse_location
from tasks.models.runtimes import choose_device
from tasks.models.spec import Preprocessing
from tasks.pipelines import RASTER_SUFFIXES
from tasks.processors import cores
from tasks.settings import Settings
from tasks.storage import open_store
from tasks.storage.base import ImageObject, ObjectStore
from tasks.window import EVERYTHING

log = logging.getLogger(__name__)

GROUP = 32
LISTED = 100_000  # keys of a bucket that a limited sample is drawn from


@dataclass(frozen=True)
class Crops:
    """Some images, decoded: their keys, and uint8 RGB [n, crop, crop, 3] in the same order."""

    keys: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]


def list_sample(uri: str, settings: Settings, limit: int | None = None) -> list[ImageObject]:
    """`limit` of the images under a URI, or all, in the order of their keys. Raises ConfigurationError where there are none.

    Which ones follows from a hash of their keys: the first keys are often those of one class, or of one day. Of S3 the first
    LISTED keys are looked at, because listing a large bucket takes hours.
    """
    location = parse_location(uri)
    pages = list_pages(open_store(location, settings), location, EVERYTHING, KeyFilter(RASTER_SUFFIXES, ()))
    images = (image for page in pages for image in page.images)
    looked_at = itertools.islice(images, LISTED) if limit is not None and location.scheme == "s3" else images
    found = list(looked_at) if limit is None else heapq.nsmallest(limit, looked_at, key=lambda image: lot(image.key))
    if not found:
        raise ConfigurationError(f"There is no image under {uri}. Name a folder or a prefix that holds some.")
    return sorted(found, key=lambda image: image.key)


def lot(key: str) -> bytes:
    """What decides by chance, and the same every time, which images a sample has: sha256 of the key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_crops(
    uri: str, images: Sequence[ImageObject], preprocessing: Preprocessing, settings: Settings, group: int = GROUP
) -> Iterator[Crops]:
    """Decode the images by a bundle's preprocessing, at most `group` at a time, in their order.

    An image that cannot be read or decoded is left out, with a warning that names it.
    """
    store = open_store(parse_location(uri), settings)
    decoder = open_decoder(preprocessing, settings.compiled, len(images), choose_device(settings))
    workers = cores()
    with ThreadPoolExecutor(workers, "sample") as pool:
        ahead: deque[Future[Crops]] = deque()
        for start in range(0, len(images), group):
            part = images[start : start + group]
            ahead.append(pool.submit(_crops, store, decoder, preprocessing.crop, part))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _crops(store: ObjectStore, decoder: Decoder | NvjpegDecoder, crop: int, images: Sequence[ImageObject]) -> Crops:
    pixels = np.empty((len(images), crop, crop, 3), np.uint8)
    works = [read_object(store, image) for image in images]
    readable = [work for work in works if work.data is not None]
    for work in works:
        if work.data is None:
            failed = None if work.finished is None else work.finished.failed
            _leave_out(work.listed.key, failed.message if failed else "it vanished.")
    errors = decoder.decode_group([work.data or b"" for work in readable], list(pixels[: len(readable)]))
    good = []
    for index, (work, error) in enumerate(zip(readable, errors, strict=True)):
        if isinstance(error, ImageError):
            _leave_out(work.listed.key, str(error))
        else:
            good.append(index)
    return Crops(tuple(readable[index].listed.key for index in good), pixels[good])


def _leave_out(key: str, why: str) -> None:
    log.warning("%r is left out: %s", key, why)
