"""Several bundles side by side: how right, how fast, how large, and what a million images cost with each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ConfigurationError
from tasks.models.bundle import Bundle
from tasks.models.cascade import pixels_key
from tasks.models.resolving import resolve_model
from tasks.optimisation.choosing import choose_judging
from tasks.optimisation.comparing import Comparison, compare
from tasks.optimisation.figures import Count, accuracy_of, agreement_of
from tasks.optimisation.measuring import ROUNDS, Speed, decoding_rate, machine, measure_in_turn
from tasks.optimisation.report import size_of
from tasks.optimisation.truth import Truth, read_truth
from tasks.settings import Settings


def bench(
    models: Sequence[str],
    judge: str,
    settings: Settings,
    labels: Path | None = None,
    judge_images: int | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Compare model URIs on the images under `judge`: by accuracy where there are labels, else by agreement with the first.

    Plain values: {"measure", "judged", "machine", "cost_per_hour", "models": [...]}. Raises ConfigurationError where the
    models do not have the same labels, and ModelError where one cannot be loaded.
    """
    bundles = [resolve_model(uri, settings) for uri in models]
    _check_labels(models, bundles)
    sample = choose_judging(judge, settings, judge_images)
    truth = {} if labels is None else read_truth(labels, bundles[0].labels, (image.key for image in sample.images))
    comparison = compare(bundles, sample, settings)
    counts = _counts(comparison, truth, labels)
    speeds = measure_in_turn(bundles, settings, rounds)
    wanted = {pixels_key(bundle.spec.preprocessing): bundle.spec.preprocessing for bundle in bundles}
    decoding = {key: decoding_rate(sample, preprocessing, settings) for key, preprocessing in wanted.items()}
    names = _names(bundles)
    rows = [
        _row(names[number], bundle, counts[number], speeds[number], decoding[pixels_key(bundle.spec.preprocessing)])
        for number, bundle in enumerate(bundles)
    ]
    for row in rows:
        row["on_frontier"] = _is_best(row, rows)
        row["dollars_per_million"] = _dollars(row, settings.cost_per_hour)
    return {
        "measure": "agreement" if labels is None else "accuracy",
        "judged": {"uri": judge, "images": len(sample.images), "left_out": comparison.left_out},
        "machine": machine(),
        "cost_per_hour": settings.cost_per_hour,
        "models": rows,
    }


def _check_labels(models: Sequence[str], bundles: Sequence[Bundle]) -> None:
    for uri, bundle in zip(models, bundles, strict=True):
        if bundle.labels != bundles[0].labels:
            raise ConfigurationError(
                f"{uri} does not have the labels of {models[0]} ({len(bundle.labels):,} and {len(bundles[0].labels):,}, or in "
                "another order), so their answers cannot be compared. Bench models of the same labels together."
            )


def _counts(comparison: Comparison, truth: Truth, labels: Path | None) -> list[Count]:
    """How often each bundle is right, or as the first one."""
    if labels is None:
        return [agreement_of(comparison.answers[0], answers) for answers in comparison.answers]
    counts = [accuracy_of(comparison, number, truth) for number in range(len(comparison.answers))]
    if not counts[0].images:
        raise ConfigurationError(f"None of the images that have a label in {labels} could be read.")
    return counts


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """What each is called in the table: with its fingerprint where another one has the same name."""
    names = [bundle.spec.name for bundle in bundles]
    return [
        f"{name} {bundle.model_id[:8]}" if names.count(name) > 1 else name
        for name, bundle in zip(names, bundles, strict=True)
    ]


def _row(name: str, bundle: Bundle, count: Count, speed: Speed, decoding: float) -> dict[str, Any]:
    return {
        "name": name,
        "model_id": bundle.model_id,
        "precision": bundle.spec.precision,
        "runtime": speed.runtime,
        "device": speed.device,
        **count.plain(),
        "images_per_second": speed.images_per_second,
        "rounds": list(speed.rates),
        "decoded_per_second": decoding,
        "peak_bytes": speed.peak_bytes,
        "size_bytes": size_of(bundle),
    }


def _is_best(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    """Whether no other is at least as fast and as right, and better in one of both."""
    mine = (row["images_per_second"], row["share"])
    others = [(other["images_per_second"], other["share"]) for other in rows]
    return not any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in others)


def _dollars(row: dict[str, Any], cost_per_hour: float | None) -> float | None:
    """A million images decoded and predicted. One after the other on a CPU, whose cores do both; beside each other with
    a GPU, where the slower one decides."""
    if cost_per_hour is None:
        return None
    forward, decode = 1.0 / float(row["images_per_second"]), 1.0 / float(row["decoded_per_second"])
    seconds = forward + decode if row["device"] == "cpu" else max(forward, decode)
    return 1e6 * seconds * cost_per_hour / 3600.0
