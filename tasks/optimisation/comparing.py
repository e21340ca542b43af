"""What several bundles answer to the same images.

The images go by once for each way to decode them, some at a time; all that stays is the best labels of each image. So a
sample of any size can be compared in the memory of a few groups of crops.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.errors import ConfigurationError
from tasks.inference.scoring import softmax
from tasks.models.bundle import Bundle
from tasks.models.cascade import pixels_key
from tasks.models.runtimes import Pixels, Runtime, open_runtime
from tasks.optimisation.choosing import Sample
from tasks.optimisation.sample import read_crops
from tasks.settings import Settings

NO_ANSWER = -1
"""The label of an image for which the network's output was not finite: it is right about nothing."""


Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Answers:
    """What one bundle says: int32 label indices [n, k] and float32 scores [n, k], the best one first."""

    labels: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    @property
    def best(self) -> npt.NDArray[np.int32]:
        """The top-1 label of each image, int32 [n]."""
        return self.labels[:, 0]


@dataclass(frozen=True)
class Comparison:
    """The images that every bundle could read, and what each bundle says of them, in the order of the keys."""

    keys: tuple[str, ...]
    answers: tuple[Answers, ...]
    left_out: int
    """Images of the sample that could not be read or decoded."""


def compare(bundles: Sequence[Bundle], sample: Sample, settings: Settings) -> Comparison:
    """Let every bundle predict the sample. Raises ModelError or ConfigurationError where one cannot, or no image is left.

    An image that cannot be read is left out for all of them.
    """
    found: dict[int, dict[str, Row]] = {}
    for same in _by_decoding(bundles):
        for number, keys, answers in _pass([(number, bundles[number]) for number in same], sample, settings):
            rows = found.setdefault(number, {})
            rows.update(zip(keys, zip(answers.labels, answers.scores, strict=True), strict=True))
    keys = tuple(image.key for image in sample.images if all(image.key in rows for rows in found.values()))
    if not found or not keys:
        raise ConfigurationError(
            f"None of the {len(sample.images):,} images under {sample.uri} could be read. The warnings above say why."
        )
    return Comparison(
        keys=keys,
        answers=tuple(_stacked(found[number], keys) for number in range(len(bundles))),
        left_out=len(sample.images) - len(keys),
    )


def _stacked(rows: dict[str, Row], keys: tuple[str, ...]) -> Answers:
    return Answers(np.stack([rows[key][0] for key in keys]), np.stack([rows[key][1] for key in keys]))


def _by_decoding(bundles: Sequence[Bundle]) -> Iterable[list[int]]:
    """The numbers of the bundles that see the same pixels."""
    same: dict[object, list[int]] = {}
    for number, bundle in enumerate(bundles):
        same.setdefault(pixels_key(bundle.spec.preprocessing), []).append(number)
    return same.values()


def _pass(
    bundles: Sequence[tuple[int, Bundle]], sample: Sample, settings: Settings
) -> Iterator[tuple[int, tuple[str, ...], Answers]]:
    """Decode the sample once, and show it to each of the bundles: (number, keys, answers) of a group at a time."""
    with ExitStack() as stack:
        runtimes = [
            (number, stack.enter_context(closing(open_runtime(bundle, settings)))) for number, bundle in bundles
        ]
        top_k = {number: bundle.spec.top_k for number, bundle in bundles}
        preprocessing = bundles[0][1].spec.preprocessing
        for crops in read_crops(sample.uri, sample.images, preprocessing, settings):
            for number, runtime in runtimes:
                if crops.keys:
                    yield number, crops.keys, _answers(forward(runtime, crops.pixels), top_k[number])


def forward(runtime: Runtime, pixels: Pixels) -> npt.NDArray[np.float32]:
    """uint8 RGB [n, crop, crop, 3], as many as there are, to float32 logits [n, classes]."""
    parts = [pixels[start : start + runtime.batch_size] for start in range(0, len(pixels), runtime.batch_size)]
    with ThreadPoolExecutor(runtime.streams, "forward") as pool:
        return np.concatenate(list(pool.map(runtime.predict, parts)))


def _answers(logits: npt.NDArray[np.float32], top_k: int) -> Answers:
    """The best labels of each row. Ties go to the lower index, as in a run."""
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(logits).all(axis=1))
    scores = softmax(np.where(finite[:, None], logits, np.float32(0.0)))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    found = np.take_along_axis(scores, best, axis=1)
    labels = np.where(finite[:, None], best, NO_ANSWER)
    return Answers(labels.astype(np.int32), np.where(finite[:, None], found, 0.0).astype(np.float32))
