"""First tables and the views over them.

Revision: 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tasks.cache.schema import SCHEMA, Key, Moment

revision = "0001"
down_revision = None

COUNTS = (
    *("listed", "ignored", "cached", "known_bad", "deferred", "reused", "predicted", "failed", "vanished"),
    *("open", "reads", "forward_passes"),
)

TABLES = ("source", "model", "pipeline", "image", "prediction", "failure", "run", "work_item", "shard")

VIEWS = {
    "v_prediction": """
        SELECT s.uri AS source, i.key, i.etag, i.size, i.last_modified, {digest} AS digest,
               p.label, p.label_index, p.score, p.margin, p.entropy, {top_k} AS top_k,
               m.model_id, m.name AS model_name, m.version AS model_version,
               r.dag_id, r.run_id, p.predicted_at, i.deleted_at
        FROM {schema}image i
        JOIN {schema}source s ON s.source_no = i.source_no
        JOIN {schema}prediction p ON p.digest = i.digest
        JOIN {schema}model m ON m.model_no = p.model_no
        LEFT JOIN {schema}run r ON r.run_no = p.run_no
    """,
    "v_current_prediction": """
        SELECT c.name AS pipeline, s.uri AS source, i.key, i.etag, i.size, i.last_modified, {digest} AS digest,
               p.label, p.label_index, p.score, p.margin, p.entropy, {top_k} AS top_k,
               m.model_id, m.name AS model_name, m.version AS model_version,
               r.dag_id, r.run_id, p.predicted_at, i.deleted_at
        FROM {schema}pipeline c
        JOIN {schema}source s ON s.source_no = c.source_no
        JOIN {schema}model m ON m.model_no = c.model_no
        JOIN {schema}image i ON i.source_no = c.source_no AND substr(i.key, 1, length(c.prefix)) = c.prefix
        JOIN {schema}prediction p ON p.model_no = c.model_no AND p.digest = i.digest
        LEFT JOIN {schema}run r ON r.run_no = p.run_no
    """,
    "v_failure": """
        SELECT s.uri AS source, f.key, f.etag, f.reason, f.message, f.attempts,
               f.next_retry_at IS NULL AS permanent, f.next_retry_at, f.first_failed_at, f.last_failed_at, f.decoder,
               m.model_id, m.name AS model_name, m.version AS model_version, r.dag_id, r.run_id
        FROM {schema}failure f
        JOIN {schema}source s ON s.source_no = f.source_no
        JOIN {schema}model m ON m.model_no = f.model_no
        LEFT JOIN {schema}run r ON r.run_no = f.run_no
    """,
    "v_run": """
        SELECT r.pipeline, r.dag_id, r.run_id, r.run_type, r.state, r.message, s.uri AS source, r.prefix,
               m.model_id, m.name AS model_name, m.version AS model_version,
               r.window_start, r.window_end, r.force,
               r.listed, r.cached, r.known_bad, r.deferred, r.reused, r.predicted, r.failed, r.vanished,
               r.ignored, r.open, r.reads, r.forward_passes, r.seconds,
               CASE WHEN r.seconds > 0 THEN (r.reused + r.predicted + r.failed) / r.seconds ELSE 0 END
                   AS images_per_second,
               {stage_seconds} AS stage_seconds, r.started_at, r.finished_at
        FROM {schema}run r
        JOIN {schema}source s ON s.source_no = r.source_no
        LEFT JOIN {schema}model m ON m.model_no = r.model_no
    """,
}

SQLITE = {"schema": "", "digest": "lower(hex(i.digest))", "top_k": "p.top_k", "stage_seconds": "r.stage_seconds"}
POSTGRESQL = {
    "schema": f"{SCHEMA}.",
    "digest": "encode(i.digest, 'hex')",
    "top_k": "p.top_k::jsonb",
    "stage_seconds": "r.stage_seconds::jsonb",
}


def count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")


def reference(column: str, table: str, *, primary_key: bool = False, nullable: bool = False) -> sa.Column[int]:
    key = sa.ForeignKey(f"{SCHEMA}.{table}.{column}")
    return sa.Column(column, sa.Integer, key, primary_key=primary_key, nullable=nullable)


def upgrade() -> None:
    create_subjects()
    create_results()
    create_runs()
    words = SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {words['schema']}{name} AS {query.format(**words)}")


def create_subjects() -> None:
    op.create_table(
        "source",
        sa.Column("source_no", sa.Integer, primary_key=True),
        sa.Column("uri", sa.Text, nullable=False, unique=True),
        schema=SCHEMA,
    )
    op.create_table(
        "model",
        sa.Column("model_no", sa.Integer, primary_key=True),
        sa.Column("model_id", sa.Text, nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        schema=SCHEMA,
    )
    op.create_table(
        "pipeline",
        sa.Column("name", sa.Text, primary_key=True),
        reference("source_no", "source"),
        sa.Column("prefix", sa.Text, nullable=False),
        reference("model_no", "model"),
        sa.Column("updated_at", Moment, nullable=False),
        schema=SCHEMA,
    )


def create_results() -> None:
    op.create_table(
        "image",
        reference("source_no", "source", primary_key=True),
        sa.Column("key", Key, primary_key=True),
        sa.Column("etag", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("last_modified", Moment, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("recorded_at", Moment, nullable=False),
        sa.Column("deleted_at", Moment),
        schema=SCHEMA,
    )
    op.create_index("image_digest", "image", ["digest"], schema=SCHEMA)
    op.create_table(
        "prediction",
        reference("model_no", "model", primary_key=True),
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("label_index", sa.Integer, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("margin", sa.Double, nullable=False),
        sa.Column("entropy", sa.Double, nullable=False),
        sa.Column("top_k", sa.Text, nullable=False),
        sa.Column("run_no", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("predicted_at", Moment, nullable=False),
        schema=SCHEMA,
    )
    op.create_table(
        "failure",
        reference("source_no", "source", primary_key=True),
        sa.Column("key", Key, primary_key=True),
        sa.Column("etag", sa.Text, primary_key=True),
        reference("model_no", "model", primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("last_modified", Moment, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("decoder", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_retry_at", Moment),
        sa.Column("first_failed_at", Moment, nullable=False),
        sa.Column("last_failed_at", Moment, nullable=False),
        sa.Column("run_no", sa.Integer, nullable=False),
        schema=SCHEMA,
    )


def create_runs() -> None:
    op.create_table(
        "run",
        sa.Column("run_no", sa.Integer, primary_key=True),
        sa.Column("dag_id", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("pipeline", sa.Text),
        sa.Column("run_type", sa.Text, nullable=False),
        reference("source_no", "source"),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("listing", sa.Text, nullable=False),
        reference("model_no", "model", nullable=True),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("message", sa.Text),
        sa.Column("window_start", Moment),
        sa.Column("window_end", Moment),
        sa.Column("force", sa.Boolean, nullable=False),
        *(count(name) for name in COUNTS),
        sa.Column("seconds", sa.Double, nullable=False, server_default="0"),
        sa.Column("stage_seconds", sa.Text, nullable=False, server_default="{}"),
        sa.Column("started_at", Moment, nullable=False),
        sa.Column("finished_at", Moment),
        sa.UniqueConstraint("dag_id", "run_id"),
        schema=SCHEMA,
    )
    op.create_table(
        "work_item",
        sa.Column("run_no", sa.Integer, primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("key", Key, primary_key=True),
        sa.Column("etag", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("last_modified", Moment, nullable=False),
        sa.Column("shard", sa.Integer),
        sa.Column("outcome", sa.Text),
        schema=SCHEMA,
    )
    op.create_index("work_item_shard", "work_item", ["run_no", "generation", "shard", "key"], schema=SCHEMA)
    op.create_table(
        "shard",
        sa.Column("run_no", sa.Integer, primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("shard", sa.Integer, primary_key=True),
        sa.Column("expected", sa.BigInteger, nullable=False),
        sa.Column("device", sa.Text),
        count("reads"),
        count("forward_passes"),
        sa.Column("seconds", sa.Double, nullable=False, server_default="0"),
        sa.Column("stage_seconds", sa.Text, nullable=False, server_default="{}"),
        sa.Column("updated_at", Moment),
        schema=SCHEMA,
    )


def downgrade() -> None:
    schema = "" if op.get_bind().dialect.name == "sqlite" else f"{SCHEMA}."
    for name in VIEWS:
        op.execute(f"DROP VIEW {schema}{name}")
    for name in reversed(TABLES):
        op.drop_table(name, schema=SCHEMA)
