"""What each stage did and what held a run back; the rate of each model on each device.

Revision: 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tasks.cache.schema import SCHEMA, Moment

revision = "0002"
down_revision = "0001"

# Columns are added at the end: PostgreSQL replaces a view only so, and nobody's SELECT by position breaks.
RUNS = """
    SELECT r.pipeline, r.dag_id, r.run_id, r.run_type, r.state, r.message, s.uri AS source, r.prefix,
           m.model_id, m.name AS model_name, m.version AS model_version,
           r.window_start, r.window_end, r.force,
           r.listed, r.cached, r.known_bad, r.deferred, r.reused, r.predicted, r.failed, r.vanished,
           r.ignored, r.open, r.reads, r.forward_passes, r.seconds,
           CASE WHEN r.seconds > 0 THEN (r.reused + r.predicted + r.failed) / r.seconds ELSE 0 END
               AS images_per_second,
           r.stage_seconds{json} AS stage_seconds, r.started_at, r.finished_at{more}
    FROM {schema}run r
    JOIN {schema}source s ON s.source_no = r.source_no
    LEFT JOIN {schema}model m ON m.model_no = r.model_no
"""


def upgrade() -> None:
    for table, column in (("shard", "stages"), ("run", "stages")):
        op.execute(f"ALTER TABLE {words()['schema']}{table} ADD COLUMN {column} TEXT NOT NULL DEFAULT '{{}}'")
    op.execute(f"ALTER TABLE {words()['schema']}run ADD COLUMN held_back_by TEXT")
    op.execute(f"ALTER TABLE {words()['schema']}shard DROP COLUMN stage_seconds")
    op.create_table(
        "rate",
        sa.Column("model_no", sa.Integer, sa.ForeignKey(f"{SCHEMA}.model.model_no"), primary_key=True),
        sa.Column("device", sa.Text, primary_key=True),
        sa.Column("images_per_second", sa.Double, nullable=False),
        sa.Column("measured_at", Moment, nullable=False),
        schema=SCHEMA,
    )
    view_runs(", r.stages{json} AS stages, r.held_back_by")


def downgrade() -> None:
    view_runs("")
    op.drop_table("rate", schema=SCHEMA)
    op.execute(f"ALTER TABLE {words()['schema']}shard ADD COLUMN stage_seconds TEXT NOT NULL DEFAULT '{{}}'")
    for table, column in (("run", "held_back_by"), ("run", "stages"), ("shard", "stages")):
        op.execute(f"ALTER TABLE {words()['schema']}{table} DROP COLUMN {column}")


def view_runs(more: str) -> None:
    """The view anew, with so many more columns."""
    op.execute(f"DROP VIEW {words()['schema']}v_run")
    query = RUNS.format(more=more.format(**words()), **words())
    op.execute(f"CREATE VIEW {words()['schema']}v_run AS {query}")


def words() -> dict[str, str]:
    """Where the two databases differ."""
    if op.get_bind().dialect.name == "sqlite":
        return {"schema": "", "json": ""}
    return {"schema": f"{SCHEMA}.", "json": "::jsonb"}
