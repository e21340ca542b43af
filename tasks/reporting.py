"""Step 5: check that every listed object has exactly one outcome, close the run, and say what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from tasks.cache.runs import FAILED, OUTCOMES, SUCCESS, Staging, close_run, prune_staging, tally
from tasks.errors import InvariantViolation, TooManyFailures

# One bad image never fails a run, on a quiet day neither: a rate is judged from so many failures on.
MIN_FAILURES = 3


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What the pipeline says about closing a run."""

    pipeline: str | None
    max_failure_rate: float
    keep_runs: timedelta


def publish(engine: Engine, staging: Staging, options: ReportOptions) -> dict[str, Any]:
    """Close the run and return its summary.

    The run row is written in every case. Raises InvariantViolation where the outcomes do not add up and
    TooManyFailures where too many images failed; in both cases everything that was predicted stays.
    """
    is_closed = False
    while not is_closed:
        counts = summary(engine, staging)
        error = _verdict(counts, options.max_failure_rate)
        is_closed = close_run(engine, staging, counts, FAILED if error else SUCCESS, str(error) if error else None)
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
