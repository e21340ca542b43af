"""Ranges of a listing, so that several workers list one source side by side.

Revision: 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tasks.cache.schema import SCHEMA, Key, Moment

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "listing_range",
        *(sa.Column(name, sa.Integer, primary_key=True) for name in ("run_no", "generation", "number")),
        sa.Column("prefix", Key, nullable=False),
        *(sa.Column(name, Key) for name in ("after_key", "until_key", "last_key")),
        sa.Column("done", sa.Boolean, nullable=False, server_default=sa.false()),
        *(
            sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
            for name in ("objects", "listed", "ignored", "dropped")
        ),
        sa.Column("holder", sa.Text),
        sa.Column("held_at", Moment),
        schema=SCHEMA,
    )
    op.execute(f"ALTER TABLE {schema()}run ADD COLUMN dropped BIGINT NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute(f"ALTER TABLE {schema()}run DROP COLUMN dropped")
    op.drop_table("listing_range", schema=SCHEMA)


def schema() -> str:
    """SQLite has none."""
    return "" if op.get_bind().dialect.name == "sqlite" else f"{SCHEMA}."
