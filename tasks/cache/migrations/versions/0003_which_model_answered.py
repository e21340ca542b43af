"""Which model of a cascade answered.

Revision: 0003.
"""

from __future__ import annotations

from alembic import op

from tasks.cache.schema import SCHEMA

revision = "0003"
down_revision = "0002"

# What stands in both views; columns are added at the end.
COLUMNS = """s.uri AS source, i.key, i.etag, i.size, i.last_modified, {digest} AS digest,
           p.label, p.label_index, p.score, p.margin, p.entropy, {top_k} AS top_k,
           m.model_id, m.name AS model_name, m.version AS model_version,
           r.dag_id, r.run_id, p.predicted_at, i.deleted_at"""

VIEWS = {
    "v_prediction": """
    SELECT {columns}
    FROM {schema}image i
    JOIN {schema}source s ON s.source_no = i.source_no
    JOIN {schema}prediction p ON p.digest = i.digest
    JOIN {schema}model m ON m.model_no = p.model_no
    LEFT JOIN {schema}run r ON r.run_no = p.run_no
""",
    "v_current_prediction": """
    SELECT c.name AS pipeline, {columns}
    FROM {schema}pipeline c
    JOIN {schema}source s ON s.source_no = c.source_no
    JOIN {schema}model m ON m.model_no = c.model_no
    JOIN {schema}image i ON i.source_no = c.source_no AND substr(i.key, 1, length(c.prefix)) = c.prefix
    JOIN {schema}prediction p ON p.model_no = c.model_no AND p.digest = i.digest
    LEFT JOIN {schema}run r ON r.run_no = p.run_no
""",
}

# The spec of a cascade's model row lists its stages with their names. A model that is no cascade is not looked into.
MORE = ", p.cascade_stage, CASE WHEN p.cascade_stage IS NULL THEN m.name ELSE {name_of_stage} END AS answered_by"

SQLITE = {
    "schema": "",
    "digest": "lower(hex(i.digest))",
    "top_k": "p.top_k",
    "name_of_stage": "json_extract(m.spec, '$.stages[' || (p.cascade_stage - 1) || '].name')",
}
POSTGRESQL = {
    "schema": f"{SCHEMA}.",
    "digest": "encode(i.digest, 'hex')",
    "top_k": "p.top_k::jsonb",
    "name_of_stage": "m.spec::jsonb #>> ARRAY['stages', (p.cascade_stage - 1)::text, 'name']",
}


def upgrade() -> None:
    op.execute(f"ALTER TABLE {words()['schema']}prediction ADD COLUMN cascade_stage SMALLINT")
    # PostgreSQL replaces a view that gains columns at its end, and keeps what others were granted on it.
    view_predictions(COLUMNS + MORE, anew=op.get_bind().dialect.name == "sqlite")


def downgrade() -> None:
    view_predictions(COLUMNS, anew=True)
    op.execute(f"ALTER TABLE {words()['schema']}prediction DROP COLUMN cascade_stage")


def view_predictions(columns: str, *, anew: bool) -> None:
    """Both views with these columns; `anew`, where they are dropped first."""
    schema = words()["schema"]
    for name, query in VIEWS.items():
        if anew:
            op.execute(f"DROP VIEW {schema}{name}")
        filled = query.format(columns=columns.format(**words()), schema=schema)
        op.execute(f"CREATE {'' if anew else 'OR REPLACE '}VIEW {schema}{name} AS {filled}")


def words() -> dict[str, str]:
    """Where the two databases differ."""
    return SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL
