"""What the pages in the Airflow UI read: labels by name, reviews, sums of runs, and how far a shard has come.

Revision: 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tasks.cache.schema import SCHEMA, Moment

revision = "0005"
down_revision = "0004"

RUN_COLUMNS = ("worker_seconds", "waiting_since", "drift", "drift_message", "notified_at")

SUMS = {
    "label_count": ("day", "label_index"),
    "score_count": ("day", "bin"),
    "pair_count": ("other_model_no", "label_index", "other_label_index"),
}

RUNS = """
    SELECT r.pipeline, r.dag_id, r.run_id, r.run_type, r.state, r.message, s.uri AS source, r.prefix,
           m.model_id, m.name AS model_name, m.version AS model_version,
           r.window_start, r.window_end, r.force,
           r.listed, r.cached, r.known_bad, r.deferred, r.reused, r.predicted, r.failed, r.vanished,
           r.ignored, r.open, r.reads, r.forward_passes, r.seconds,
           CASE WHEN r.seconds > 0 THEN (r.reused + r.predicted + r.failed) / r.seconds ELSE 0 END
               AS images_per_second,
           r.stage_seconds{json} AS stage_seconds, r.started_at, r.finished_at,
           r.stages{json} AS stages, r.held_back_by{more}
    FROM {schema}run r
    JOIN {schema}source s ON s.source_no = r.source_no
    LEFT JOIN {schema}model m ON m.model_no = r.model_no
"""

REVIEWS = """
    SELECT w.pipeline, s.uri AS source, i.key, i.etag, {digest} AS digest, w.label, w.reviewer, w.reviewed_at,
           m.model_id, m.name AS model_name, m.version AS model_version,
           p.label AS predicted_label, p.score AS predicted_score, i.deleted_at
    FROM {schema}review w
    JOIN {schema}pipeline c ON c.name = w.pipeline
    JOIN {schema}source s ON s.source_no = c.source_no
    JOIN {schema}image i ON i.digest = w.digest AND i.source_no = c.source_no
         AND substr(i.key, 1, length(c.prefix)) = c.prefix
    JOIN {schema}model m ON m.model_no = w.model_no
    LEFT JOIN {schema}prediction p ON p.model_no = w.model_no AND p.digest = w.digest
"""


def upgrade() -> None:
    schema = words()["schema"]
    for column, kind in zip(
        RUN_COLUMNS, ("{double} NOT NULL DEFAULT 0", "{moment}", "{double}", "TEXT", "{moment}"), strict=True
    ):
        op.execute(f"ALTER TABLE {schema}run ADD COLUMN {column} {kind.format(**words())}")
    op.execute(f"ALTER TABLE {schema}shard ADD COLUMN done BIGINT NOT NULL DEFAULT 0")
    op.create_index("run_pipeline", "run", ["pipeline", "run_no"], schema=SCHEMA)
    op.create_index("prediction_label", "prediction", ["model_no", "label_index", "margin", "digest"], schema=SCHEMA)
    create_labels_and_reviews()
    for table in SUMS:
        create_sums(table)
    view_runs(", r.worker_seconds, r.waiting_since, r.drift, r.drift_message, r.notified_at")
    op.execute(f"CREATE VIEW {schema}v_review AS {REVIEWS.format(**words())}")


def downgrade() -> None:
    schema = words()["schema"]
    op.execute(f"DROP VIEW {schema}v_review")
    view_runs("")
    for table in (*SUMS, "review", "model_label"):
        op.drop_table(table, schema=SCHEMA)
    op.drop_index("prediction_label", "prediction", schema=SCHEMA)
    op.drop_index("run_pipeline", "run", schema=SCHEMA)
    op.execute(f"ALTER TABLE {schema}shard DROP COLUMN done")
    for column in reversed(RUN_COLUMNS):
        op.execute(f"ALTER TABLE {schema}run DROP COLUMN {column}")


def create_labels_and_reviews() -> None:
    op.create_table(
        "model_label",
        a_model("model_no", primary_key=True),
        sa.Column("label_index", sa.Integer, primary_key=True),
        sa.Column("label", sa.Text, nullable=False),
        schema=SCHEMA,
    )
    # Those that were predicted before; the others of a model are written when it is next used.
    op.execute(
        "INSERT INTO {schema}model_label (model_no, label_index, label) "
        "SELECT model_no, label_index, min(label) FROM {schema}prediction GROUP BY model_no, label_index".format(
            **words()
        )
    )
    op.create_table(
        "review",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("label", sa.Text, nullable=False),
        a_model("model_no"),
        sa.Column("reviewer", sa.Text, nullable=False),
        sa.Column("reviewed_at", Moment, nullable=False),
        schema=SCHEMA,
    )


def create_sums(table: str) -> None:
    op.create_table(
        table,
        sa.Column("pipeline", sa.Text, primary_key=True),
        a_model("model_no", primary_key=True),
        *(a_sum_of(name) for name in SUMS[table]),
        sa.Column("run_no", sa.Integer, primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True, server_default="1"),
        sa.Column("images", sa.BigInteger, nullable=False),
        schema=SCHEMA,
    )
    op.create_index(f"{table}_run", table, ["run_no"], schema=SCHEMA)


def a_sum_of(name: str) -> sa.Column[object]:
    if name == "other_model_no":
        return a_model(name, primary_key=True)
    kinds = {"day": sa.Date, "bin": sa.SmallInteger}
    return sa.Column(name, kinds.get(name, sa.Integer), primary_key=True)


def a_model(name: str, *, primary_key: bool = False) -> sa.Column[object]:
    return sa.Column(
        name, sa.Integer, sa.ForeignKey(f"{SCHEMA}.model.model_no"), primary_key=primary_key, nullable=False
    )


def view_runs(more: str) -> None:
    """The view anew, with so many more columns at its end."""
    op.execute(f"DROP VIEW {words()['schema']}v_run")
    op.execute(f"CREATE VIEW {words()['schema']}v_run AS {RUNS.format(more=more, **words())}")


def words() -> dict[str, str]:
    """Where the two databases differ."""
    if op.get_bind().dialect.name == "sqlite":
        return {"schema": "", "json": "", "digest": "lower(hex(i.digest))", "double": "DOUBLE", "moment": "DATETIME"}
    return {
        "schema": f"{SCHEMA}.",
        "json": "::jsonb",
        "digest": "encode(i.digest, 'hex')",
        "double": "DOUBLE PRECISION",
        "moment": "TIMESTAMP WITH TIME ZONE",
    }
