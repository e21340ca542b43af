"""What a closed run looks like to those who are told of it, and who tells them: one caller, once."""

from __future__ import annotations

from sqlalchemy import Engine, func, select, update

from tasks.cache.database import reading, repeated, writing
from tasks.cache.runs import FAILED, OUTCOMES, RUNNING, Staging, now
from tasks.cache.schema import run
from tasks.notifications import EARLIER_RUNS, ClosedRun, EarlierRuns
from tasks.window import RETRY


def closed_run(engine: Engine, staging: Staging) -> tuple[ClosedRun, EarlierRuns] | None:
    """A run and those before it; None where it has not ended, or was told of already."""
    with reading(engine) as connection:
        row = connection.execute(select(run).where(run.c.run_no == staging.run_no)).one_or_none()
        if row is None or row.generation != staging.generation or row.state == RUNNING or row.notified_at is not None:
            return None
        worked = run.c.reused + run.c.predicted + run.c.failed
        before = (
            select(worked.label("worked"), run.c.failed)
            .where(run.c.pipeline == row.pipeline, run.c.run_no < row.run_no, run.c.finished_at.is_not(None))
            # What is tried again fails again more often than not, and says nothing about the day.
            .where(run.c.run_type != RETRY, worked > 0)
            .order_by(run.c.run_no.desc())
            .limit(EARLIER_RUNS)
            .subquery()
        )
        added = (func.coalesce(func.sum(before.c[name]), 0) for name in ("worked", "failed"))
        runs, images, failed = connection.execute(select(func.count(), *added).select_from(before)).one()
    counts = {name: row._mapping[name] for name in (*OUTCOMES, "open")}
    of_run = (row.dag_id, row.run_id, row.pipeline, row.state == FAILED, row.message, row.drift, row.drift_message)
    closed = ClosedRun(*of_run, row.listed, counts)
    return closed, EarlierRuns(runs, int(images), int(failed))


@repeated
def claim_notice(engine: Engine, staging: Staging) -> bool:
    """Whether the caller is the one to tell of a closed run: for one of all that ask, and once for each listing.

    Where the connection is lost while the database commits, nobody may be: a notice is sent once or not at all.
    """
    mine = (run.c.run_no == staging.run_no, run.c.generation == staging.generation)
    with writing(engine) as connection:
        done = connection.execute(
            update(run).where(*mine, run.c.state != RUNNING, run.c.notified_at.is_(None)).values(notified_at=now())
        )
    return done.rowcount == 1
