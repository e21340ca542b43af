"""Attempts at a shard: how far each has come, and what was in its hands when it died.

An attempt notes each page of rows before it works on it, and says in the end that it is over. One that never says so was
killed: by the kernel, by Airflow, with its machine, or by an image. Its open rows up to the last page are suspects.
"""

from __future__ import annotations

from sqlalchemy import Engine, and_, exists, select, true, update

from tasks.cache.commits import Scope, of_shard
from tasks.cache.database import reading, repeated, writing
from tasks.cache.schema import run, shard, work_item
from tasks.cache.staging import of


@repeated
def advance(engine: Engine, scope: Scope, frontier: str) -> None:
    """Note that an attempt works on the rows up to this key, in key order."""
    with writing(engine) as connection:
        connection.execute(update(shard).where(*of_shard(scope)).values(working=True, frontier=frontier))


@repeated
def end(engine: Engine, scope: Scope) -> None:
    """Note that the attempt is over."""
    with writing(engine) as connection:
        connection.execute(update(shard).where(*of_shard(scope), shard.c.working).values(working=False))


def suspects(engine: Engine, scope: Scope) -> set[str]:
    """Open rows of a shard that another attempt took in hand, in the same state of the object, and never let go.

    Of this shard or of another run's: the command line starts a new run each time. A run that goes on beside this one counts
    as well; that costs time and nothing else.
    """
    theirs = work_item.alias("theirs")
    mine = and_(*of(scope.staging), work_item.c.shard == scope.shard, work_item.c.outcome.is_(None))
    source = select(run.c.source_no).where(run.c.run_no == scope.staging.run_no).scalar_subquery()
    in_hand = and_(
        theirs.c.run_no == shard.c.run_no,
        theirs.c.generation == shard.c.generation,
        theirs.c.shard == shard.c.shard,
        theirs.c.outcome.is_(None),
        theirs.c.key <= shard.c.frontier,
    )
    query = (
        select(theirs.c.key)
        .select_from(shard.join(run, run.c.run_no == shard.c.run_no).join(theirs, in_hand))
        .where(shard.c.working == true(), run.c.source_no == source)
        .where(exists().where(mine, work_item.c.key == theirs.c.key, work_item.c.etag == theirs.c.etag))
    )
    with reading(engine) as connection:
        return set(connection.execute(query).scalars())
