"""image.mark: which model is known to have predicted the bytes, so that whoever lists reads images alone, and in their order.

Without it each known image costs a look at the predictions, at a place that only chance decides: a disk's worth of them on each
day. A mark is the model's number and epoch in one; dropping all predictions of a model is a new epoch, and what bore the mark of
the old one is looked up again. Whatever deletes single predictions, a person's SQL too, takes the marks with them: by a trigger.

Revision: 0008.
"""

from __future__ import annotations

from alembic import op

from tasks.cache.schema import EPOCHS, SCHEMA

revision = "0008"
down_revision = "0007"

FORGET = f"""
    CREATE FUNCTION {SCHEMA}.forget_marks() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    AS $function$
    BEGIN
        UPDATE {SCHEMA}.image SET mark = NULL FROM gone
        WHERE image.digest = gone.digest AND image.mark / {EPOCHS} = gone.model_no;
        RETURN NULL;
    END
    $function$
"""
POSTGRESQL_TRIGGER = f"""
    CREATE TRIGGER prediction_gone AFTER DELETE ON {SCHEMA}.prediction REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.forget_marks()
"""
SQLITE_TRIGGER = f"""
    CREATE TRIGGER prediction_gone AFTER DELETE ON prediction BEGIN
        UPDATE image SET mark = NULL WHERE digest = OLD.digest AND mark / {EPOCHS} = OLD.model_no;
    END
"""


def upgrade() -> None:
    schema = "" if _is_sqlite() else f"{SCHEMA}."
    op.execute(f"ALTER TABLE {schema}image ADD COLUMN mark BIGINT")
    op.execute(f"ALTER TABLE {schema}model ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0")
    if _is_sqlite():
        op.execute(SQLITE_TRIGGER)
    else:
        op.execute(FORGET)
        op.execute(POSTGRESQL_TRIGGER)


def downgrade() -> None:
    schema = "" if _is_sqlite() else f"{SCHEMA}."
    op.execute(f"DROP TRIGGER prediction_gone{'' if _is_sqlite() else f' ON {SCHEMA}.prediction'}")
    if not _is_sqlite():
        op.execute(f"DROP FUNCTION {SCHEMA}.forget_marks()")
    op.execute(f"ALTER TABLE {schema}model DROP COLUMN epoch")
    op.execute(f"ALTER TABLE {schema}image DROP COLUMN mark")


def _is_sqlite() -> bool:
    return bool(op.get_bind().dialect.name == "sqlite")
