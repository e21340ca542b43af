"""Step 5: check that every listed object has exactly one outcome, close the run, and say what happened."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Engine

from tasks.cache.runs import FAILED, OUTCOMES, SUCCESS, Staging, close_run, prune_staging, tally
from tasks.cache.sums import count_run, counts_of_days, counts_of_run, labels_of, model_of
from tasks.drift import MIN_IMAGES, Drift, drift_of, most_moved
from tasks.errors import DriftExceeded, InvariantViolation, TooManyFailures

log = logging.getLogger(__name__)

# One bad image never fails a run, on a quiet day neither: a rate is judged from so many failures on.
MIN_FAILURES = 3


@dataclass(frozen=True, slots=True)
class DriftOptions:
    """The days that a run is compared with, both included, the most PSI, and whether more than that fails the run."""

    first: date
    last: date
    limit: float
    fails: bool


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What the pipeline says about closing a run."""

    pipeline: str | None
    max_failure_rate: float
    keep_runs: timedelta
    drift: DriftOptions | None = None


def publish(engine: Engine, staging: Staging, options: ReportOptions) -> dict[str, Any]:
    """Close the run and return its summary.

    The run row is written in every case. Raises InvariantViolation where the outcomes do not add up, TooManyFailures where too
    many images failed, and DriftExceeded where the predictions have moved too far; everything that was predicted stays.
    """
    is_closed = False
    while not is_closed:
        counts = summary(engine, staging)
        count_run(engine, staging)
        drift, moved = _drift(engine, staging, options)
        error = _verdict(counts, options.max_failure_rate) or _too_far(moved, options)
        state, message = (FAILED, str(error)) if error else (SUCCESS, None)
        is_closed = close_run(engine, staging, counts, state, message, drift.psi if drift else None, moved)
    prune_staging(engine, options.pipeline, options.keep_runs)
    if error:
        raise error
    return {**counts, "state": SUCCESS}


def close_unfinished(engine: Engine, staging: Staging) -> dict[str, Any] | None:
    """The teardown: a run with open rows ends as failed, with their number; a run that was published stays."""
    while True:
        counts = summary(engine, staging)
        if counts["state"] == SUCCESS or (counts["state"] == FAILED and counts["open"] == 0):
            return None
        message = (
            f"{counts['open']} images are open: a task failed. Clear the failed tasks; they go on where they stopped."
        )
        count_run(engine, staging)
        if close_run(engine, staging, counts, FAILED, message):
            return counts


def summary(engine: Engine, staging: Staging) -> dict[str, Any]:
    """The counts of a run as its rows show them, with its rate in images a second."""
    counts = tally(engine, staging)
    # Rounded first, as the run row keeps it: whoever publishes again computes from that.
    seconds = round(counts["seconds"], 3)
    rate = _worked(counts) / seconds if seconds > 0 else 0.0
    return {**counts, "images_per_second": round(rate, 1), "seconds": seconds}


def _worked(counts: Mapping[str, Any]) -> int:
    """Images whose bytes were looked at: what a rate is a rate of."""
    return int(counts["reused"] + counts["predicted"] + counts["failed"])


def _verdict(counts: Mapping[str, Any], max_failure_rate: float) -> InvariantViolation | TooManyFailures | None:
    outcomes = sum(counts[name] for name in OUTCOMES)
    if counts["listed"] != outcomes or counts["open"]:
        parts = " + ".join(f"{name} {counts[name]}" for name in OUTCOMES)
        return InvariantViolation(
            f"listed {counts['listed']} != {outcomes} = {parts}; {counts['open']} open. "
            "Clear the shards that are open; if none is, clear list_images."
        )
    worked = _worked(counts)
    if counts["failed"] >= MIN_FAILURES and counts["failed"] / worked > max_failure_rate:
        return TooManyFailures(
            f"{counts['failed']} of {worked} images failed, more than max_failure_rate {max_failure_rate:g}. All else is "
            "committed. ./afterimage failures lists them; raise max_failure_rate if this is to be expected."
        )
    return None


def _too_far(moved: str | None, options: ReportOptions) -> DriftExceeded | None:
    """What a run that has drifted fails with; None where the pipeline wants to be told only."""
    if moved is None or options.drift is None:
        return None
    if options.drift.fails:
        return DriftExceeded(moved)
    log.warning("%s", moved)
    return None


def _drift(engine: Engine, staging: Staging, options: ReportOptions) -> tuple[Drift | None, str | None]:
    """How far the run's predictions are from the baseline, None where that cannot be judged; and what to say where that is too
    far."""
    asked, model_no = options.drift, model_of(engine, staging)
    if asked is None or options.pipeline is None or model_no is None:
        return None, None
    now = counts_of_run(engine, staging)
    if now.images < MIN_IMAGES:
        return None, None
    then = counts_of_days(engine, options.pipeline, model_no, asked.first, asked.last)
    drift = drift_of(now.labels, now.scores, then.labels, then.scores)
    if drift is None or not drift.exceeds(asked.limit):
        return drift, None
    return drift, _told(engine, model_no, drift, asked, now.labels, then.labels)


def _told(
    engine: Engine, model_no: int, drift: Drift, asked: DriftOptions, now: Mapping[int, int], then: Mapping[int, int]
) -> str:
    moved = most_moved(now, then)
    names = labels_of(engine, model_no, [one.label_index for one in moved])
    shown = ", ".join(f"{names[one.label_index]!r} from {one.then:.1%} to {one.now:.1%}" for one in moved)
    return (
        f"The predictions of this run have moved from the baseline {asked.first} to {asked.last}: PSI {drift.labels.psi:.3g} of "
        f"labels and {drift.scores.psi:.3g} of scores, drift_limit {asked.limit:g}. Most moved: {shown or 'no label'}. All is "
        "committed. Look at the page Drift; if the images are as they should be, raise drift_limit or choose another baseline."
    )


def format_summary(counts: Mapping[str, Any]) -> str:
    """The summary as a person reads it; rows without an outcome are shown as open, so that the line adds up."""
    always = ("cached",) if counts["open"] else ("cached", "predicted")
    shown = [f"{name} {counts[name]:,}" for name in OUTCOMES if counts[name] or name in always]
    shown += [f"open {counts['open']:,}"] if counts["open"] else []
    ignored = f"   (ignored {counts['ignored']:,})" if counts["ignored"] else ""
    lines = [f"listed {counts['listed']:,} = {' · '.join(shown)}{ignored}"]
    if "shards" in counts:
        lines.append(f"{counts['open']:,} images to predict in {counts['shards']} shards; {_expected(counts)}")
        return "\n".join(lines)
    lines.append(
        f"reads {counts['reads']:,} · forward passes {counts['forward_passes']:,} · "
        f"{counts['seconds']:.2f} s · {counts['images_per_second']:,.0f} images/s"
    )
    if counts["held_back_by"]:
        lines += [f"held back: {counts['held_back_by']}", *_stage_lines(counts["stages"])]
    return "\n".join(lines)


def _stage_lines(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each stage; percentiles are those of one call, which is a batch for the forward pass and a commit."""
    width = max(8, *map(len, stages))
    return [
        f"  {stage:{width}} {one['items']:>9,} images, {one['failures']:,} failed · busy {one['busy']:4.0%} · "
        f"p50 {one['p50_ms']:,.1f} p90 {one['p90_ms']:,.1f} p99 {one['p99_ms']:,.1f} ms · "
        f"waited {one['input_wait_seconds']:,.1f} s for work, {one['output_wait_seconds']:,.1f} s to hand it on"
        for stage, one in stages.items()
    ]


def _expected(counts: Mapping[str, Any]) -> str:
    if counts["expected_seconds"] is None:
        return "how long that takes is not known before the first run of this model"
    return f"expected time on one device: {timedelta(seconds=round(counts['expected_seconds']))}"
