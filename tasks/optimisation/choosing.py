"""Which images teach and which images judge: never the same ones.

A model that was calibrated, or distilled, with the images that judge it looks better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.errors import ConfigurationError
from tasks.location import parse_location
from tasks.optimisation.sample import list_sample, lot
from tasks.settings import Settings
from tasks.storage.base import ImageObject

TEACHING = 300  # images: NNCF's own default, from which on its statistics hardly change


@dataclass(frozen=True)
class Sample:
    """Some of the images under a URI, in the order of their keys."""

    uri: str
    images: tuple[ImageObject, ...]


def choose_judging(uri: str, settings: Settings, limit: int | None = None) -> Sample:
    """`limit` of the images under a URI, drawn by lot, or all."""
    return Sample(uri, tuple(list_sample(uri, settings, limit)))


def choose_samples(
    teaching: str, judging: str, settings: Settings, count: int | None = None, limit: int | None = None
) -> tuple[Sample, Sample]:
    """The images that teach (`count`, or 300) and those that judge (`limit`, or all).

    Where both URIs are the same place, `count` images that are drawn by lot teach and others judge; without a count that is
    half of them where there are fewer than 600. Raises ConfigurationError where none is left to judge, or where
    two different URIs share images.
    """
    if parse_location(teaching) == parse_location(judging):
        return _split(teaching, settings, count, limit)
    taught = Sample(teaching, tuple(list_sample(teaching, settings, count or TEACHING)))
    judged = choose_judging(judging, settings, limit)
    shared = sorted(_objects(taught, settings) & _objects(judged, settings))
    if shared:
        raise ConfigurationError(
            f"{len(shared):,} of the images under {judging} are among those under {teaching} that the model is made with, such "
            f"as {shared[0]}: it would be judged by what it has seen. Name other images, or the same URI twice, where "
            "some teach and the others judge."
        )
    return taught, judged


def _split(uri: str, settings: Settings, count: int | None, limit: int | None) -> tuple[Sample, Sample]:
    most = None if limit is None else (count or TEACHING) + limit
    images = sorted(list_sample(uri, settings, most), key=lambda image: lot(image.key))
    first = min(TEACHING, len(images) // 2) if count is None else count
    if not 0 < first < len(images):
        raise ConfigurationError(
            f"There are {len(images):,} images under {uri}, and {first:,} of them make the model, so that none is left to judge "
            "it. Ask for fewer, or judge by images elsewhere (--judge)."
        )
    return _sample(uri, images[:first]), _sample(uri, images[first:])


def _sample(uri: str, images: Sequence[ImageObject]) -> Sample:
    return Sample(uri, tuple(sorted(images, key=lambda image: image.key)))


def _objects(sample: Sample, settings: Settings) -> set[str]:
    """The images with their store in front: a folder and one below it name the same files by different keys."""
    source = parse_location(sample.uri).source(settings.s3_endpoint)
    return {f"{source}/{image.key}" for image in sample.images}
