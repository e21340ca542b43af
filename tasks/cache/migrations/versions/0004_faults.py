"""How far a shard that died had come, digests of failures, what is blocked, and statistics for who owns no table.

Revision: 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tasks.cache.schema import SCHEMA, Key, Moment

revision = "0004"
down_revision = "0003"

FAILURES = """
    SELECT s.uri AS source, f.key, f.etag, f.reason, f.message, f.attempts,
           f.next_retry_at IS NULL AS permanent, f.next_retry_at, f.first_failed_at, f.last_failed_at, f.decoder,
           m.model_id, m.name AS model_name, m.version AS model_version, r.dag_id, r.run_id{more}
    FROM {schema}failure f
    JOIN {schema}source s ON s.source_no = f.source_no
    JOIN {schema}model m ON m.model_no = f.model_no
    LEFT JOIN {schema}run r ON r.run_no = f.run_no
"""

# Only the owner of a table may analyse it, and the program writes as somebody else.
STATISTICS = f"""
    CREATE FUNCTION {SCHEMA}.refresh_statistics() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'BEGIN ANALYZE {SCHEMA}.work_item; END'
"""


def upgrade() -> None:
    schema = words()["schema"]
    op.execute(f"ALTER TABLE {schema}shard ADD COLUMN working BOOLEAN NOT NULL DEFAULT FALSE")
    op.execute(f"ALTER TABLE {schema}shard ADD COLUMN frontier TEXT{words()['collation']}")
    op.execute(f"ALTER TABLE {schema}failure ADD COLUMN digest {words()['bytes']}")
    op.create_table(
        "block",
        sa.Column("block_no", sa.Integer, primary_key=True),
        sa.Column("source_no", sa.Integer, sa.ForeignKey(f"{SCHEMA}.source.source_no")),
        sa.Column("key", Key),
        sa.Column("digest", sa.LargeBinary, unique=True),
        sa.Column("blocked_at", Moment, nullable=False),
        sa.UniqueConstraint("source_no", "key"),
        schema=SCHEMA,
    )
    if schema:
        op.execute(STATISTICS)
    view_failures(", {digest} AS digest", anew=not schema)


def downgrade() -> None:
    schema = words()["schema"]
    view_failures("", anew=True)
    if schema:
        op.execute(f"DROP FUNCTION {SCHEMA}.refresh_statistics()")
    op.drop_table("block", schema=SCHEMA)
    for table, column in (("failure", "digest"), ("shard", "frontier"), ("shard", "working")):
        op.execute(f"ALTER TABLE {schema}{table} DROP COLUMN {column}")


def view_failures(more: str, *, anew: bool) -> None:
    """The view with so many more columns at its end; `anew`, where it is dropped first."""
    schema = words()["schema"]
    if anew:
        op.execute(f"DROP VIEW {schema}v_failure")
    query = FAILURES.format(more=more.format(**words()), schema=schema)
    op.execute(f"CREATE {'' if anew else 'OR REPLACE '}VIEW {schema}v_failure AS {query}")


def words() -> dict[str, str]:
    """Where the two databases differ."""
    if op.get_bind().dialect.name == "sqlite":
        return {"schema": "", "collation": "", "bytes": "BLOB", "digest": "nullif(lower(hex(f.digest)), '')"}
    return {
        "schema": f"{SCHEMA}.",
        "collation": ' COLLATE "C"',
        "bytes": "BYTEA",
        "digest": "encode(f.digest, 'hex')",
    }
