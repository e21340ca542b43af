"""How every pipeline stands that the reader may see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from afterimage_ui import caches, shell
from afterimage_ui.access import ReaderDep, dag_of
from tasks.cache.pages.estimates import Money, hits_of, money_of
from tasks.cache.pages.overview import Run, Work, last_runs, work_by_day
from tasks.cache.pages.scope import known_pipelines
from tasks.cache.runs import RUNNING
from tasks.errors import ConfigurationError
from tasks.pipelines import read_pipelines

router = APIRouter()

SHOWN_DAYS = 30

PAGES = (
    ("browse", "Browse"),
    ("review", "Review"),
    ("compare", "Compare"),
    ("drift", "Drift"),
    ("failures", "Failures"),
    ("export", "Export"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """A pipeline on the page; `images` and `failures` are [(day, number)] for the same days."""

    name: str
    dag_id: str
    last: Run | None
    next: str | datetime | None
    images: list[tuple[date, int]]
    failures: list[tuple[date, int]]
    hits_last: float | None
    hits_month: float | None
    money: Money
    problem: str | None


@router.get("/", response_class=HTMLResponse)
def page(request: Request, reader: ReaderDep) -> Response:
    """A block for each pipeline, in alphabetical order."""
    engine = caches.page_cache()
    tables, problem = _tables()
    names = reader.readable(sorted({*known_pipelines(engine), *tables}))
    last, work, upcoming = last_runs(engine, names), work_by_day(engine, names), _next_runs(names)
    today = datetime.now(UTC).date()
    blocks = [
        _block(name, last.get(name), work.get(name, []), upcoming.get(name), today, tables.get(name)) for name in names
    ]
    has_price = caches.settings().cost_per_hour is not None
    return shell.render(
        request,
        "overview.html",
        blocks=blocks,
        pages=PAGES,
        days=SHOWN_DAYS,
        has_price=has_price,
        problem=problem,
        shown_counts=_shown_counts,
        total_of=_total_of,
    )


def _tables() -> tuple[Mapping[str, str | None], str | None]:
    """({pipeline of pipelines.toml: what is wrong with its table}, what is wrong with the whole file)."""
    try:
        right, wrong = read_pipelines(caches.settings().pipelines)
    except ConfigurationError as error:
        return {}, str(error)
    return {**dict.fromkeys(right), **wrong}, None


def _next_runs(names: Sequence[str]) -> dict[str, str | datetime]:
    """{pipeline: the moment of its next run, or `paused` or `by hand`}; Airflow knows no DAG of those that are not there."""
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    dags = {dag_of(name): name for name in names}
    query = select(DagModel.dag_id, DagModel.is_paused, DagModel.next_dagrun_create_after).where(
        DagModel.dag_id.in_(dags), DagModel.is_stale.is_(False)
    )
    with create_session() as session:
        return {
            dags[dag_id]: "paused" if is_paused else moment or "by hand"
            for dag_id, is_paused, moment in session.execute(query)
        }


def _block(
    name: str,
    last: Run | None,
    work: Sequence[Work],
    upcoming: str | datetime | None,
    today: date,
    problem: str | None,
) -> Block:
    first = today - timedelta(days=SHOWN_DAYS - 1)
    month = [one for one in work if one.day >= first]
    by_day = {one.day: one for one in month}
    days = [first + timedelta(days=number) for number in range(SHOWN_DAYS)]
    # The counts of a run are written when it ends.
    ended = last if last and last.state != RUNNING else None
    return Block(
        name=name,
        dag_id=dag_of(name),
        last=last,
        next=upcoming,
        images=[(day, by_day[day].predicted + by_day[day].reused if day in by_day else 0) for day in days],
        failures=[(day, by_day[day].failed if day in by_day else 0) for day in days],
        hits_last=hits_of([ended.counts]) if ended else None,
        hits_month=hits_of([{"listed": one.listed, "cached": one.cached, "reused": one.reused} for one in month]),
        money=money_of(ended, month, work, caches.settings().cost_per_hour),
        problem=problem,
    )


def _shown_counts(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """What became of the images of a run, in the order of the invariant: parts that add up to what was listed."""
    return [(name, number) for name, number in counts.items() if name != "listed" and number]


def _total_of(counts: Mapping[str, int]) -> int:
    """What the parts add up to; a run that is under way has listed more than it has judged."""
    return max(int(counts["listed"]), sum(number for _, number in _shown_counts(counts)))
