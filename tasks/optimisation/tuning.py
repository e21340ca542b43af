"""The margin of a cascade: the smallest at which it agrees with its large model often enough.

Both models see every image of a sample once. Some of the images, picked by their keys' hashes, choose the margin; the others
say what it is worth, because a margin looks better than it is on the images that it was chosen on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.errors import ConfigurationError
from tasks.inference.scoring import score
from tasks.models.bundle import Bundle
from tasks.models.cascade import pixels_key
from tasks.models.runtimes import Pixels, Runtime, open_runtime
from tasks.optimisation.comparing import forward
from tasks.optimisation.sample import Crops, lot, read_crops
from tasks.settings import Settings
from tasks.storage.base import ImageObject

STEPS = 10_000  # margins of four digits: finer ones would say more than any sample knows
ROUNDS, SECONDS = 3, 0.5  # of each model's forward passes, measured in turn
SURE = 1.96  # standard deviations: bounds hold with 95 %


@dataclass(frozen=True)
class Seen:
    """What both models say of the same images: the best labels, int64 [n] each, and the first one's margins, float64 [n]."""

    keys: tuple[str, ...]
    small: npt.NDArray[np.int64]
    large: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float64]

    def part(self, wanted: Iterable[bool]) -> Seen:
        """Those of the images that are wanted."""
        mask = np.fromiter(wanted, bool, len(self.keys))
        keys = tuple(key for key, take in zip(self.keys, mask, strict=True) if take)
        return Seen(keys, self.small[mask], self.large[mask], self.margins[mask])


@dataclass(frozen=True)
class Figures:
    """What a cascade with this margin does on some images; `right` counts among the `labelled` ones."""

    margin: float
    images: int
    agreeing: int
    went_on: int
    labelled: int
    right: int

    @property
    def agreement(self) -> float:
        """The share of images to which it gives the large model's answer."""
        return self.agreeing / self.images

    @property
    def share(self) -> float:
        """The share of images that go on."""
        return self.went_on / self.images


def figures(seen: Seen, margin: float, truth: Mapping[str, int]) -> Figures:
    """Count what a cascade with this margin answers."""
    goes_on = seen.margins < margin
    answers = np.where(goes_on, seen.large, seen.small)
    known = [(answer, truth[key]) for key, answer in zip(seen.keys, answers.tolist(), strict=True) if key in truth]
    return Figures(
        margin=margin,
        images=len(seen.keys),
        agreeing=int((answers == seen.large).sum()),
        went_on=int(goes_on.sum()),
        labelled=len(known),
        right=sum(answer == label for answer, label in known),
    )


def choose_margin(seen: Seen, min_agreement: float) -> float:
    """The smallest margin, of four digits, at which at least this share agrees with the large model.

    0 where the small model does so alone. Raises ConfigurationError where not even a margin of 1 is enough.
    """
    allowed = math.floor(len(seen.keys) * (1 - min_agreement) + 1e-9)
    wrong = np.sort(seen.margins[seen.small != seen.large])[::-1]
    if len(wrong) <= allowed:
        return 0.0
    # All images below this margin, and this one itself, must go on.
    least = float(wrong[allowed])
    if least >= 1.0:
        raise ConfigurationError(
            f"The small model is certain (a margin of 1) of {int((wrong >= 1.0).sum())} of {len(seen.keys):,} images that the "
            f"large one sees differently, so no margin reaches {min_agreement:.2%}. Ask for less, or take a better small model."
        )
    step = math.floor(least * STEPS)
    return min(1.0, next(margin / STEPS for margin in (step, step + 1, step + 2) if margin / STEPS > least))


def wilson(count: int, images: int) -> tuple[float, float]:
    """Wilson's bounds of a share of which `count` of `images` were seen: the true one lies between them with 95 %."""
    share, square = count / images, SURE**2 / images
    middle = share + square / 2
    reach = SURE * math.sqrt(share * (1 - share) / images + square / (4 * images))
    return (middle - reach) / (1 + square), (middle + reach) / (1 + square)


def is_held_out(key: str, share: float) -> bool:
    """Whether an image reports and does not choose: about this share of all, and the same ones every time."""
    return int.from_bytes(lot(key)[:8]) < share * 2**64


def expected_rate(rates: tuple[float, float], share: float) -> float:
    """Images/s of forward passes where every image goes through the first model and a share through the second."""
    return 1 / (1 / rates[0] + share / rates[1])


@dataclass(frozen=True)
class Tuning:
    """A margin and what it is worth."""

    models: tuple[Bundle, Bundle]
    chosen: Figures
    """On the images that chose it."""
    reported: Figures
    """On the others, or on the same ones where none was held out."""
    table: tuple[Figures, ...]
    """Margins around it, and 0 and 1."""
    rates: tuple[float, float]
    is_held_out: bool
    min_agreement: float
    accuracies: tuple[float | None, float | None]
    """Of both models alone, where labels are known."""

    @property
    def is_reached(self) -> bool:
        """Whether the agreement is there on the images that report, too."""
        return self.reported.agreement >= self.min_agreement - 1e-9

    def plain(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            "margin": self.chosen.margin,
            "min_agreement": self.min_agreement,
            "reached": self.is_reached,
            "held_out": self.is_held_out,
            "resolution": 1 / self.chosen.images,
            "tuned_on": self.row(self.chosen),
            "reported_on": self.row(self.reported),
            "models": [
                {"name": bundle.spec.name, "model_id": bundle.model_id, "images_per_second": rate, "accuracy": accuracy}
                for bundle, rate, accuracy in zip(self.models, self.rates, self.accuracies, strict=True)
            ],
            "table": [self.row(one) for one in self.table],
        }

    def row(self, one: Figures) -> dict[str, Any]:
        """One margin's values for JSON and for the table."""
        low, high = wilson(one.agreeing, one.images)
        return {
            "margin": one.margin,
            "images": one.images,
            "agreement": one.agreement,
            "agreement_from": low,
            "agreement_to": high,
            "share_that_goes_on": one.share,
            "images_per_second": expected_rate(self.rates, one.share),
            "accuracy": one.right / one.labelled if one.labelled else None,
        }


def tune(
    models: tuple[Bundle, Bundle],
    seen: Seen,
    rates: tuple[float, float],
    truth: Mapping[str, int],
    min_agreement: float,
    holdout: float,
) -> Tuning:
    """Choose the margin by some of the images and report on the others. Raises ConfigurationError."""
    held = [is_held_out(key, holdout) for key in seen.keys]
    choosing = seen.part(not out for out in held)
    reporting = seen.part(held) if holdout else choosing
    if not choosing.keys or not reporting.keys:
        raise ConfigurationError(
            f"Of {len(seen.keys):,} images {len(reporting.keys):,} are held out, so that none is left for one of the two. Give "
            "more images, or --holdout 0, which reports on the images that chose the margin."
        )
    margin = choose_margin(choosing, min_agreement)
    around = {0.0, *(min(1.0, round(margin * factor * STEPS) / STEPS) for factor in (0.5, 0.75, 1, 1.25, 1.5)), 1.0}
    return Tuning(
        models=models,
        chosen=figures(choosing, margin, truth),
        reported=figures(reporting, margin, truth),
        table=tuple(figures(reporting, one, truth) for one in sorted(around)),
        rates=rates,
        is_held_out=holdout > 0,
        min_agreement=min_agreement,
        accuracies=(
            _accuracy(reporting.keys, reporting.small, truth),
            _accuracy(reporting.keys, reporting.large, truth),
        ),
    )


def _accuracy(keys: Sequence[str], answers: npt.NDArray[np.int64], truth: Mapping[str, int]) -> float | None:
    right = [answer == truth[key] for key, answer in zip(keys, answers.tolist(), strict=True) if key in truth]
    return statistics.fmean(right) if right else None


def see(
    models: tuple[Bundle, Bundle], uri: str, images: list[ImageObject], settings: Settings
) -> tuple[Seen, tuple[float, float]]:
    """Let both models predict the images, and measure how many a second each of them does.

    They are decoded once where both want the same pixels. Images that cannot be decoded, or have no finite output, are left
    out. Raises ModelError or ConfigurationError.
    """
    found: tuple[dict[str, tuple[int, float]], ...] = ({}, {})
    shared = pixels_key(models[0].spec.preprocessing) == pixels_key(models[1].spec.preprocessing)
    last: list[Pixels] = []
    with ExitStack() as opened:
        runtimes = []
        for bundle in models:
            runtimes.append(open_runtime(bundle, settings))
            opened.callback(runtimes[-1].close)
        for numbers in ([0, 1],) if shared else ([0], [1]):
            for crops in read_crops(uri, images, models[numbers[0]].spec.preprocessing, settings):
                for number in numbers:
                    found[number].update(_answers(models[number], runtimes[number], crops))
                pixels = crops.pixels
            last += [pixels] * len(numbers)
        keys = tuple(key for key in found[0] if key in found[1])
        if not keys:
            raise ConfigurationError(
                f"None of the {len(images):,} images under {uri} could be predicted by both models."
            )
        rates = _rates(runtimes, last)
    best = [np.array([one[key][0] for key in keys], np.int64) for one in found]
    return Seen(keys, best[0], best[1], np.array([found[0][key][1] for key in keys], np.float64)), rates


def _answers(bundle: Bundle, runtime: Runtime, crops: Crops) -> dict[str, tuple[int, float]]:
    """{key: (the best label's index, its margin)}, as a run computes them."""
    if not crops.keys:
        return {}
    scored = zip(crops.keys, score(forward(runtime, crops.pixels), bundle.labels, 1), strict=True)
    return {key: (one.label_index, one.margin) for key, one in scored if one is not None}


def _rates(runtimes: Sequence[Runtime], pixels: Sequence[Pixels]) -> tuple[float, float]:
    """Medians of images/s in full batches. In turn, so that a machine that slows down does so for both."""
    batches = [
        np.resize(one, (runtime.batch_size, *one.shape[1:])) for one, runtime in zip(pixels, runtimes, strict=True)
    ]
    rounds = [[_rate(*pair) for pair in zip(runtimes, batches, strict=True)] for _ in range(ROUNDS)]
    small, large = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    return small, large


def _rate(runtime: Runtime, batch: Pixels) -> float:
    started = time.perf_counter()

    def stream(_number: int) -> int:
        done = 0
        while done == 0 or time.perf_counter() - started < SECONDS:
            runtime.predict(batch)
            done += len(batch)
        return done

    with ThreadPoolExecutor(runtime.streams, "forward") as pool:
        images = sum(pool.map(stream, range(runtime.streams)))
    return images / (time.perf_counter() - started)
