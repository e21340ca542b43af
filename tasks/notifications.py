"""What a closed run has to tell, to whom, and in which words. It is sent by Airflow's notifiers (dags/afterimage_notify.py).

failure         the run ended as failed
drift           its drift is beyond the pipeline's drift_limit
failure_rate    far more of its images failed than of those of the runs before
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FAILURE, DRIFT, FAILURE_RATE = "failure", "drift", "failure_rate"
EVENTS = (FAILURE, DRIFT, FAILURE_RATE)

# So many runs before this one say which rate is usual; those that had nothing to do say nothing about it.
EARLIER_RUNS = 7

# A rate has risen where it is so many times the usual one, and neither a few images nor a small share.
TIMES, MIN_RATE, MIN_FAILURES = 2.0, 0.01, 3

_TITLES = {
    FAILURE: "the run failed",
    DRIFT: "its predictions have drifted",
    FAILURE_RATE: "more images fail than before",
}


class Notify(BaseModel):
    """A table `[[NAME.notify]]` of pipelines.toml: a class of Airflow's notifiers, and the events that it is told of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    notifier: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    on: Annotated[tuple[Literal["failure", "drift", "failure_rate"], ...], Field(min_length=1)] = (
        "failure",
        "drift",
        "failure_rate",
    )
    arguments: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class ClosedRun:
    """A run that has ended. `counts` are its outcomes, `open` among them."""

    dag_id: str
    run_id: str
    pipeline: str | None
    failed: bool
    message: str | None
    drift: float | None
    drift_message: str | None
    listed: int
    counts: Mapping[str, int]

    @property
    def worked(self) -> int:
        """Images whose bytes were looked at: what a rate is a rate of."""
        return self.counts["reused"] + self.counts["predicted"] + self.counts["failed"]

    @property
    def name(self) -> str:
        """The pipeline, or the DAG where it has none."""
        return self.pipeline or self.dag_id


@dataclass(frozen=True, slots=True)
class EarlierRuns:
    """The runs before, together."""

    runs: int
    worked: int
    failed: int


@dataclass(frozen=True, slots=True)
class Notice:
    """What a run has to tell: a sentence for each of its events."""

    run: ClosedRun
    events: Mapping[str, str]

    def about(self, wanted: Collection[str], url: str) -> dict[str, Any]:
        """`afterimage` in the templates of a notifier that is told of these events."""
        told = [event for event in self.events if event in wanted]
        run = self.run
        return {
            "title": f"{run.name}: {'; '.join(_TITLES[event] for event in told)}",
            # A run that failed because of its drift says that once.
            "text": "\n".join([*dict.fromkeys(self.events[event] for event in told), f"Run {run.run_id}: {_sum(run)}"]),
            "url": url,
            "events": told,
            "pipeline": run.pipeline,
            "dag_id": run.dag_id,
            "run_id": run.run_id,
            "state": "failed" if run.failed else "success",
            "message": run.message,
            "drift": run.drift,
            "counts": {"listed": run.listed, **run.counts},
        }


def notice_of(run: ClosedRun, earlier: EarlierRuns, wanted: Collection[str]) -> Notice | None:
    """What there is to tell of the events that anybody wants to hear of; None where there is nothing."""
    events = {name: told for name, told in _events(run, earlier).items() if told and name in wanted}
    return Notice(run, events) if events else None


def _events(run: ClosedRun, earlier: EarlierRuns) -> dict[str, str | None]:
    return {FAILURE: _failure(run), DRIFT: run.drift_message, FAILURE_RATE: _failure_rate(run, earlier)}


def _failure(run: ClosedRun) -> str | None:
    return (run.message or "The run failed.") if run.failed else None


def _failure_rate(run: ClosedRun, earlier: EarlierRuns) -> str | None:
    failed, worked = run.counts["failed"], run.worked
    if not earlier.worked or failed < MIN_FAILURES or failed / worked < MIN_RATE:
        return None
    if failed / worked < TIMES * earlier.failed / earlier.worked:
        return None
    before = "the run before" if earlier.runs == 1 else f"the {earlier.runs} runs before"
    return (
        f"{failed:,} of {worked:,} images failed ({failed / worked:.1%}); of {before}, "
        f"{earlier.failed:,} of {earlier.worked:,} ({earlier.failed / earlier.worked:.1%})."
    )


def _sum(run: ClosedRun) -> str:
    parts = [f"{name} {images:,}" for name, images in run.counts.items() if images]
    return f"listed {run.listed:,} = {' · '.join(parts) or '0'}"
