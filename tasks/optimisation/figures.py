"""How right a new model is beside the one that it was made from, in numbers, and whether that is enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from tasks.errors import ConfigurationError
from tasks.optimisation.comparing import Answers, Comparison
from tasks.optimisation.truth import Truth

# A share that is exactly at the bound must not fall to the rounding of 0.63 - 0.61.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Count:
    """`count` of `images`."""

    count: int
    images: int

    @property
    def share(self) -> float:
        """0 to 1; 0 of nothing."""
        return self.count / self.images if self.images else 0.0

    def plain(self) -> dict[str, float | int]:
        """For JSON."""
        return {**asdict(self), "share": self.share}


@dataclass(frozen=True)
class Class:
    """One class: how often the original and the new model are right on its images.

    Without labels, the images are those that the original sees as this class, so that it is right on all.
    """

    label: str
    images: int
    original: int
    new: int

    @property
    def lost(self) -> int:
        """Images on which the original is right and, on balance, the new model is not."""
        return self.original - self.new


@dataclass(frozen=True)
class Disagreement:
    """An image that the two models see differently; None for a label where the output was not finite, or is not known."""

    key: str
    original: str | None
    original_score: float
    new: str | None
    new_score: float
    truth: str | None


@dataclass(frozen=True)
class Figures:
    """What a comparison of an original with a new model says. `accuracy` is there where labels are."""

    agreement: Count
    accuracy: tuple[Count, Count] | None
    classes: tuple[Class, ...]
    disagreements: tuple[Disagreement, ...]

    @property
    def drop(self) -> float | None:
        """The accuracy that was lost, as a share; negative where the new model is better."""
        return None if self.accuracy is None else self.accuracy[0].share - self.accuracy[1].share

    @property
    def losses(self) -> tuple[Class, ...]:
        """The classes where the new model is right less often, the worst first."""
        return tuple(sorted((each for each in self.classes if each.lost > 0), key=lambda each: -each.lost))


@dataclass(frozen=True)
class Gate:
    """What a new model has to reach. A bound that is None is not asked for."""

    max_accuracy_drop: float | None = None
    min_agreement: float | None = None

    def misses(self, figures: Figures) -> list[str]:
        """What is below the bounds, in words with the figures; empty where the model is good enough.

        Raises ConfigurationError where the accuracy is asked for and there are no labels.
        """
        return list(self._misses(figures))

    def _misses(self, figures: Figures) -> Iterator[str]:
        if self.max_accuracy_drop is not None:
            if figures.accuracy is None or figures.drop is None:
                raise ConfigurationError(
                    "The drop of accuracy needs labels of images that can be read. Give --labels for some, or ask for "
                    "--min-agreement."
                )
            before, after = figures.accuracy
            if figures.drop > self.max_accuracy_drop + ROUNDING:
                yield (
                    f"the accuracy falls from {before.share:.2%} to {after.share:.2%} of {before.images:,} images, by "
                    f"{100 * figures.drop:.2f} points, and {100 * self.max_accuracy_drop:.2f} are allowed"
                )
        agreement = figures.agreement
        if self.min_agreement is not None and agreement.share < self.min_agreement - ROUNDING:
            yield (
                f"it agrees with the original on {agreement.count:,} of {agreement.images:,} images, {agreement.share:.2%}, and "
                f"{self.min_agreement:.2%} are asked for"
            )


def figures_of(comparison: Comparison, labels: Sequence[str], truth: Truth) -> Figures:
    """The first bundle of a comparison is the original and the second one the new model; images may lack a label."""
    original, new = comparison.answers
    truth = {key: truth[key] for key in comparison.keys if key in truth}
    return Figures(
        agreement=agreement_of(original, new),
        accuracy=(accuracy_of(comparison, 0, truth), accuracy_of(comparison, 1, truth)) if truth else None,
        classes=tuple(_classes(comparison, labels, truth)),
        disagreements=tuple(_disagreements(comparison, labels, truth)),
    )


def agreement_of(one: Answers, other: Answers) -> Count:
    """On how many images two bundles have the same top-1 label. Outputs that are not finite agree with nothing."""
    same = (one.best == other.best) & (one.best >= 0)
    return Count(int(same.sum()), len(same))


def accuracy_of(comparison: Comparison, number: int, truth: Truth) -> Count:
    """On how many of the images that have a label this bundle's top-1 label is the right one."""
    best = comparison.answers[number].best.tolist()
    judged = [answer == truth[key] for key, answer in zip(comparison.keys, best, strict=True) if key in truth]
    return Count(sum(judged), len(judged))


def _classes(comparison: Comparison, labels: Sequence[str], truth: Truth) -> Iterator[Class]:
    original, new = (answers.best.tolist() for answers in comparison.answers)
    counts: dict[int, list[int]] = {}
    for key, before, after in zip(comparison.keys, original, new, strict=True):
        right = truth.get(key) if truth else before
        if right is not None and right >= 0:
            count = counts.setdefault(right, [0, 0, 0])
            count[0] += 1
            count[1] += before == right
            count[2] += after == right
    for index, (images, before, after) in sorted(counts.items()):
        yield Class(labels[index], images, before, after)


def _disagreements(comparison: Comparison, labels: Sequence[str], truth: Mapping[str, int]) -> Iterator[Disagreement]:
    def name(index: int | None) -> str | None:
        return None if index is None or index < 0 else labels[index]

    original, new = comparison.answers
    for row, key in enumerate(comparison.keys):
        before, after = int(original.best[row]), int(new.best[row])
        if before != after or before < 0:
            scores = float(original.scores[row, 0]), float(new.scores[row, 0])
            yield Disagreement(key, name(before), scores[0], name(after), scores[1], name(truth.get(key)))
