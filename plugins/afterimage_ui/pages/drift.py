"""Whether a model still answers as it did: labels and scores by day, beside those of a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse

from afterimage_ui import caches, shell
from afterimage_ui.access import READ_PIPELINE
from tasks.cache.counting import BINS
from tasks.cache.pages.drift import counts_by_day, first_days, newest_days, together
from tasks.cache.pages.scope import ModelName, PipelineScope, pipeline_scope
from tasks.cache.sums import Counts, counts_of_days, labels_of
from tasks.drift import LIMITS, MIN_IMAGES, Drift, drift_of, most_moved
from tasks.errors import ConfigurationError
from tasks.pipelines import find_pipeline

router = APIRouter(dependencies=[READ_PIPELINE])

SHOWN_DAYS, BASELINE_DAYS, MOST_DAYS = 30, 7, 366
TOP_LABELS = 8

Span = tuple[date, date]


@dataclass(frozen=True, slots=True)
class Day:
    """A day as a row of the page; `verdict` is `too few` where it is not judged."""

    day: date
    images: int
    drift: Drift | None

    @property
    def verdict(self) -> str:
        """In a word."""
        return "too few" if self.drift is None else self.drift.verdict


@router.get("/pipelines/{pipeline}/drift", response_class=HTMLResponse)
def page(
    request: Request,
    pipeline: str,
    model: str | None = None,
    first: Annotated[str | None, Query(alias="from")] = None,
    last: Annotated[str | None, Query(alias="to")] = None,
    baseline_from: str | None = None,
    baseline_to: str | None = None,
    day: str | None = None,
) -> Response:
    """The days from `from` to `to` beside the baseline; `day` is the one whose scores are shown."""
    engine = caches.page_cache()
    scope = pipeline_scope(engine, pipeline)
    if scope is None:
        return _nothing(
            request, pipeline, "It has not run with success yet. Start a run, and its predictions are here."
        )
    chosen = _model(scope, model)
    known = newest_days(engine, pipeline, chosen.model_no, SHOWN_DAYS)
    if known is None:
        told = (
            f"No sums of this model yet. ./afterimage sums {pipeline} adds up what was predicted before there were any."
        )
        return _nothing(request, pipeline, told, scope, chosen)
    span = _span(first, last, known)
    days = counts_by_day(engine, pipeline, chosen.model_no, *span)
    oldest = first_days(engine, pipeline, chosen.model_no, BASELINE_DAYS) or known
    pinned = _pinned(pipeline)
    baseline = _span(baseline_from, baseline_to, pinned or oldest)
    then = counts_of_days(engine, pipeline, chosen.model_no, *baseline)
    picked = _day(day)
    shown = {
        "span": span,
        "baseline": baseline,
        "is_pinned": baseline == pinned,
        "day": picked if picked in days else None,
        **_judged(days, then),
        **_labels(chosen.model_no, days, then),
        "scores": _shares((days[picked] if picked in days else together(list(days.values()))).scores),
        "then_scores": _shares(then.scores),
        "then_images": then.images,
    }
    return _render(request, pipeline, scope, chosen, **shown)


def _render(
    request: Request, pipeline: str, scope: PipelineScope | None, chosen: ModelName | None, **shown: Any
) -> Response:
    fixed: dict[str, Any] = {"limits": LIMITS, "fewest": MIN_IMAGES}
    return shell.render(
        request, "drift.html", pipeline=pipeline, current="drift", scope=scope, chosen=chosen, **fixed, **shown
    )


def _nothing(
    request: Request,
    pipeline: str,
    told: str,
    scope: PipelineScope | None = None,
    chosen: ModelName | None = None,
) -> Response:
    return _render(request, pipeline, scope, chosen, nothing=told)


def _model(scope: PipelineScope, model_id: str | None) -> ModelName:
    chosen = scope.model(model_id or None)
    if chosen is None:
        raise shell.PageProblem(f"The pipeline has no model {model_id!r}. Choose one on the page Drift.")
    return chosen


def _span(first: str | None, last: str | None, usual: Span) -> Span:
    """What was asked for, with the usual days where one end is open. Raises PageProblem."""
    start, end = _day(first), _day(last)
    start = start or (min(usual[0], end) if end else usual[0])
    end = end or max(usual[1], start)
    if start > end:
        raise shell.PageProblem(f"{start} comes after {end}. Turn the two days round.", 400)
    if end - start > timedelta(days=MOST_DAYS):
        raise shell.PageProblem(f"{start} to {end} is more than {MOST_DAYS} days. Choose fewer.", 400)
    return start, end


def _day(text: str | None) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise shell.PageProblem(f"{text!r} is no day. Write it as 2026-10-01.", 400) from None


def _pinned(pipeline: str) -> Span | None:
    """The baseline of pipelines.toml, which may have been mended or broken since the last run."""
    try:
        return find_pipeline(caches.settings().pipelines, pipeline).baseline
    except ConfigurationError:
        return None


def _judged(days: dict[date, Counts], then: Counts) -> dict[str, Any]:
    """Each day and all of them together; the lines have a point for each day that could be judged."""
    judged = [
        Day(day, now.images, drift_of(now.labels, now.scores, then.labels, then.scores)) for day, now in days.items()
    ]
    now = together(list(days.values()))
    return {
        "days": judged,
        "images": now.images,
        "drift": drift_of(now.labels, now.scores, then.labels, then.scores),
        "label_line": [(one.day, one.drift and one.drift.labels.psi) for one in judged],
        "score_line": [(one.day, one.drift and one.drift.scores.psi) for one in judged],
    }


def _labels(model_no: int, days: dict[date, Counts], then: Counts) -> dict[str, Any]:
    """What moved most, and the shares by day of the labels that are most of the images, or were."""
    now = together(list(days.values())).labels
    moved = most_moved(now, then.labels)
    often = sorted(now, key=lambda index: -now[index])[:TOP_LABELS]
    top = list(dict.fromkeys([*often, *(one.label_index for one in moved)]))
    names = labels_of(caches.page_cache(), model_no, top)
    return {
        "moved": moved,
        "names": names,
        "top": [
            {
                "label": names[index],
                "then": then.labels.get(index, 0) / then.images if then.images else None,
                "by_day": [(day, counts.labels.get(index, 0) / counts.images) for day, counts in days.items()],
            }
            for index in top
        ],
    }


def _shares(scores: Any) -> list[tuple[str, float]]:
    total = sum(scores) or 1
    return [(f"{number / BINS:.2f}–{(number + 1) / BINS:.2f}", images / total) for number, images in enumerate(scores)]
