"""Predictions for a billion rows: a partition for each model in PostgreSQL, and 112 bytes a row.

Labels are numbers, scores are of single precision, and the entries after the best one are packed (tasks/cache/packing.py). The
views show what they showed. In PostgreSQL predictions are copied in short transactions while runs and readers go on; only what
was written meanwhile is copied under a lock. An interrupted migration goes on where it was when it is run again.

Revision: 0006.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import OperationalError

from tasks.cache.packing import MOST_LABELS, pack
from tasks.cache.schema import SCHEMA, Moment, Single, to_single

revision = "0006"
down_revision = "0005"

BATCH = 20_000
LOCK_ATTEMPTS = 30

COLUMNS = (
    "predicted_at, model_no, run_no, label_index, score, margin, entropy, generation, digest, top_k"  # in this order
)

# What stands in the views; the columns are those of before.
LABEL = "coalesce(l.label, '#' || p.label_index)"
OF_AN_IMAGE = f"""s.uri AS source, i.key, i.etag, i.size, i.last_modified, {{digest}} AS digest,
           {LABEL} AS label, p.label_index, p.score, p.margin, p.entropy, {{top_k}} AS top_k,
           m.model_id, m.name AS model_name, m.version AS model_version,
           r.dag_id, r.run_id, p.predicted_at, i.deleted_at,
           {{stage}} AS cascade_stage, CASE WHEN {{stage}} IS NULL THEN m.name ELSE {{name_of_stage}} END AS answered_by"""

VIEWS = {
    "v_prediction": f"""
    SELECT {OF_AN_IMAGE}
    FROM {{schema}}image i
    JOIN {{schema}}source s ON s.source_no = i.source_no
    JOIN {{schema}}prediction p ON p.digest = i.digest
    JOIN {{schema}}model m ON m.model_no = p.model_no
    LEFT JOIN {{schema}}model_label l ON l.model_no = p.model_no AND l.label_index = p.label_index
    LEFT JOIN {{schema}}run r ON r.run_no = p.run_no
""",
    "v_current_prediction": f"""
    SELECT c.name AS pipeline, {OF_AN_IMAGE}
    FROM {{schema}}pipeline c
    JOIN {{schema}}source s ON s.source_no = c.source_no
    JOIN {{schema}}model m ON m.model_no = c.model_no
    JOIN {{schema}}image i ON i.source_no = c.source_no AND substr(i.key, 1, length(c.prefix)) = c.prefix
    JOIN {{schema}}prediction p ON p.model_no = c.model_no AND p.digest = i.digest
    LEFT JOIN {{schema}}model_label l ON l.model_no = p.model_no AND l.label_index = p.label_index
    LEFT JOIN {{schema}}run r ON r.run_no = p.run_no
""",
    "v_review": f"""
    SELECT w.pipeline, s.uri AS source, i.key, i.etag, {{digest}} AS digest, w.label, w.reviewer, w.reviewed_at,
           m.model_id, m.name AS model_name, m.version AS model_version,
           CASE WHEN p.digest IS NOT NULL THEN {LABEL} END AS predicted_label, p.score AS predicted_score, i.deleted_at
    FROM {{schema}}review w
    JOIN {{schema}}pipeline c ON c.name = w.pipeline
    JOIN {{schema}}source s ON s.source_no = c.source_no
    JOIN {{schema}}image i ON i.digest = w.digest AND i.source_no = c.source_no
         AND substr(i.key, 1, length(c.prefix)) = c.prefix
    JOIN {{schema}}model m ON m.model_no = w.model_no
    LEFT JOIN {{schema}}prediction p ON p.model_no = w.model_no AND p.digest = w.digest
    LEFT JOIN {{schema}}model_label l ON l.model_no = p.model_no AND l.label_index = p.label_index
""",
}

POSTGRESQL = {
    "schema": f"{SCHEMA}.",
    "digest": "encode(i.digest, 'hex')",
    "stage": "CASE WHEN octet_length(p.top_k) % 5 = 1 THEN get_byte(p.top_k, octet_length(p.top_k) - 1)::smallint END",
    "name_of_stage": "m.spec::jsonb #>> ARRAY['stages', "
    "(get_byte(p.top_k, octet_length(p.top_k) - 1) - 1)::text, 'name']",
    "top_k": f"""jsonb_build_array(jsonb_build_object('label', {LABEL}, 'score', p.score)) || coalesce((
            SELECT jsonb_agg(
                jsonb_build_object('label', coalesce(k.label, '#' || e.label_index), 'score', e.score) ORDER BY e.place)
            FROM (SELECT n AS place,
                         ('x' || lpad(substr(encode(p.top_k, 'hex'), 10 * n + 1, 5), 8, '0'))::bit(32)::int AS label_index,
                         round(('x' || lpad(substr(encode(p.top_k, 'hex'), 10 * n + 6, 5), 8, '0'))::bit(32)::int
                               / 1048575.0, 7) AS score
                  FROM generate_series(0, octet_length(p.top_k) / 5 - 1) n) e
            LEFT JOIN {SCHEMA}.model_label k ON k.model_no = p.model_no AND k.label_index = e.label_index
        ), '[]'::jsonb)""",
}


def _number(start: str, digits: int) -> str:
    """A number of so many hexadecimal digits of p.top_k in SQLite, which cannot read one."""
    digit = "instr('123456789ABCDEF', substr(hex(p.top_k), {start} + {place}, 1))"
    places = (f"{digit.format(start=start, place=place)} * {16 ** (digits - 1 - place)}" for place in range(digits))
    return f"({' + '.join(places)})"


SQLITE = {
    "schema": "",
    "digest": "lower(hex(i.digest))",
    "stage": f"CASE WHEN length(p.top_k) % 5 = 1 THEN {_number('-2', 1)} * 16 + {_number('-1', 1)} END",
    "name_of_stage": f"json_extract(m.spec, '$.stages[' || ({_number('-2', 1)} * 16 + {_number('-1', 1)} - 1) || '].name')",
    "top_k": f"""(
            WITH RECURSIVE n(place) AS (SELECT 0 UNION ALL SELECT place + 1 FROM n WHERE place < length(p.top_k) / 5)
            SELECT json_group_array(json_object('label', e.label, 'score', e.score)) FROM (
                SELECT {LABEL} AS label, p.score AS score, 0 AS place
                UNION ALL
                SELECT coalesce(
                           (SELECT k.label FROM model_label k
                            WHERE k.model_no = p.model_no AND k.label_index = {_number("10 * place - 9", 5)}),
                           '#' || {_number("10 * place - 9", 5)}),
                       round({_number("10 * place - 4", 5)} / 1048575.0, 7), place
                FROM n WHERE place > 0
                ORDER BY place) e
        )""",
}

# Only the owner of a table may add a partition, and the program writes as somebody else.
ADD_PARTITION = f"""
    CREATE FUNCTION {SCHEMA}.add_partition(number integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '30s'
    AS $function$
    DECLARE
        name text := 'prediction_' || number;
    BEGIN
        IF NOT EXISTS (SELECT FROM {SCHEMA}.model WHERE model_no = number) THEN
            RAISE EXCEPTION 'there is no model %', number;
        END IF;
        IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('{SCHEMA}.' || name) AND relispartition) THEN
            RETURN;
        END IF;
        PERFORM pg_advisory_xact_lock(7265110392);
        IF to_regclass('{SCHEMA}.' || name) IS NULL THEN
            EXECUTE format('CREATE TABLE {SCHEMA}.%I (LIKE {SCHEMA}.prediction INCLUDING ALL)', name);
        END IF;
        -- Made and attached, it holds up no reader; one that is made as a partition waits for all of them.
        IF NOT (SELECT relispartition FROM pg_class WHERE oid = to_regclass('{SCHEMA}.' || name)) THEN
            EXECUTE format('ALTER TABLE {SCHEMA}.prediction ATTACH PARTITION {SCHEMA}.%I FOR VALUES IN (%s)', name, number);
        END IF;
    END
    $function$
"""

# p is a prediction as it was; label_number says which number a name has.
PACKED = """coalesce((
        SELECT string_agg(decode(lpad(to_hex(k.label_index), 5, '0')
                   || lpad(to_hex(round((e.value ->> 'score')::numeric * 1048575)::int), 5, '0'), 'hex'),
                   ''::bytea ORDER BY e.place)
        FROM jsonb_array_elements(p.top_k::jsonb) WITH ORDINALITY e(value, place)
        JOIN label_number k ON k.model_no = p.model_no AND k.label = e.value ->> 'label'
        WHERE e.place > 1), ''::bytea)
    || CASE WHEN p.cascade_stage IS NULL THEN ''::bytea ELSE set_byte('\\x00'::bytea, 0, p.cascade_stage) END"""
AS_NOW = f"""p.predicted_at, p.model_no, p.run_no, p.label_index, p.score, p.margin, p.entropy, p.generation, p.digest,
    {PACKED}"""


def upgrade() -> None:
    if _is_sqlite():
        _name_all_labels()
        _rebuild_sqlite()
        create_views()
        op.create_index("image_deleted", "image", ["source_no", "key"], sqlite_where=sa.text("deleted_at IS NOT NULL"))
        return
    with op.get_context().autocommit_block():
        _name_all_labels()
        _prepare_postgresql()
        for model_no in op.get_bind().execute(sa.text(f"SELECT model_no FROM {SCHEMA}.model ORDER BY 1")).scalars():
            _copy_model(model_no)
        op.execute(
            f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.image_deleted"
        )  # An interrupted one is there and unusable.
        op.execute(
            f"CREATE INDEX CONCURRENTLY image_deleted ON {SCHEMA}.image (source_no, key) WHERE deleted_at IS NOT NULL"
        )
    _lock(*VIEWS, "prediction")
    _copy_the_rest()
    granted = _granted()
    drop_views()
    op.execute(f"DROP TABLE {SCHEMA}.prediction")
    op.execute(f"ALTER TABLE {SCHEMA}.prediction_next RENAME TO prediction")
    for name in ("pkey", "label", "time"):
        op.execute(f"ALTER INDEX {SCHEMA}.prediction_next_{name} RENAME TO prediction_{name}")
    op.execute(ADD_PARTITION)
    create_views()
    for grant in granted:
        op.execute(grant)


def downgrade() -> None:
    is_sqlite, schema = _is_sqlite(), words()["schema"]
    op.drop_index("image_deleted", "image", schema=SCHEMA)
    op.execute(f"ALTER TABLE {schema}prediction RENAME TO prediction_after")
    if is_sqlite:
        op.execute("DROP INDEX prediction_label")
    else:
        for name in ("pkey", "label"):
            op.execute(f"ALTER INDEX {schema}prediction_{name} RENAME TO prediction_after_{name}")
    create_as_before()
    filled = {**words(), "text": "" if is_sqlite else "::text"}
    op.execute(
        "INSERT INTO {schema}prediction (model_no, digest, label_index, label, score, margin, entropy, top_k, run_no, "
        f"generation, predicted_at, cascade_stage) SELECT p.model_no, p.digest, p.label_index, {LABEL}, p.score, p.margin, "
        "p.entropy, ({top_k}){text}, p.run_no, p.generation, p.predicted_at, {stage} FROM {schema}prediction_after p "
        "LEFT JOIN {schema}model_label l ON l.model_no = p.model_no AND l.label_index = p.label_index".format(**filled)
    )
    drop_views()
    op.execute(f"DROP TABLE {schema}prediction_after")
    if not is_sqlite:
        op.execute(f"DROP FUNCTION {SCHEMA}.add_partition(integer)")
    _views_as_before()


def create_views() -> None:
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {words()['schema']}{name} AS {query.format(**words())}")


def drop_views() -> None:
    for name in VIEWS:
        op.execute(f"DROP VIEW {words()['schema']}{name}")


def _granted() -> list[str]:
    """Statements that give back what others than the owner may do with the views: dropped, these forget it."""
    query = sa.text(
        "SELECT format('GRANT %s ON %s TO %s', a.privilege_type, c.oid::regclass, "
        "CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END) "
        "FROM pg_class c, aclexplode(c.relacl) a WHERE c.relnamespace = to_regnamespace(:schema) "
        "AND c.relname = ANY(:views) AND a.grantee <> c.relowner ORDER BY 1"
    )
    found = op.get_bind().execute(query, {"schema": SCHEMA, "views": list(VIEWS)})
    return list(found.scalars())


def _views_as_before() -> None:
    from importlib import import_module

    cascades = import_module("tasks.cache.migrations.versions.0003_which_model_answered")
    pages = import_module("tasks.cache.migrations.versions.0005_pages")
    for name, query in cascades.VIEWS.items():
        columns = (cascades.COLUMNS + cascades.MORE).format(**cascades.words())
        filled = query.format(columns=columns, schema=words()["schema"])
        op.execute(f"CREATE VIEW {words()['schema']}{name} AS {filled}")
    op.execute(f"CREATE VIEW {words()['schema']}v_review AS {pages.REVIEWS.format(**pages.words())}")


def create_as_now(name: str) -> None:
    """The table without rows, as schema.py has it."""
    partitions = {} if _is_sqlite() else {"postgresql_partition_by": "LIST (model_no)"}
    op.create_table(
        name,
        sa.Column("predicted_at", Moment, nullable=False),
        *(sa.Column(column, sa.Integer, nullable=False) for column in ("model_no", "run_no", "label_index")),
        *(sa.Column(column, Single, nullable=False) for column in ("score", "margin", "entropy")),
        sa.Column("generation", sa.SmallInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("top_k", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", "model_no", name=f"{name}_pkey"),
        schema=SCHEMA,
        **partitions,
    )


def create_as_before() -> None:
    """The table as 0005 left it."""
    op.create_table(
        "prediction",
        sa.Column("model_no", sa.Integer, sa.ForeignKey(f"{SCHEMA}.model.model_no"), primary_key=True),
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("label_index", sa.Integer, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        *(sa.Column(name, sa.Double, nullable=False) for name in ("score", "margin", "entropy")),
        sa.Column("top_k", sa.Text, nullable=False),
        sa.Column("run_no", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("predicted_at", Moment, nullable=False),
        sa.Column("cascade_stage", sa.SmallInteger),
        schema=SCHEMA,
    )
    op.create_index("prediction_label", "prediction", ["model_no", "label_index", "margin", "digest"], schema=SCHEMA)


def _name_all_labels() -> None:
    """Give every label that a prediction names a number: that of its place in the model's spec, where this has its labels.

    The spec of a cascade has none, and model_label only those that were a best one before. The others get numbers from the last
    one that can be packed downwards; the names of a model are written once more when it is next used.
    """
    connection, schema = op.get_bind(), words()["schema"]
    known = f"INSERT INTO {schema}model_label (model_no, label_index, label) VALUES (:model_no, :label_index, :label) "
    for model_no, spec in connection.execute(sa.text(f"SELECT model_no, spec FROM {schema}model")).all():
        labels = json.loads(spec).get("labels") or _unnamed(connection, model_no)
        numbers = range(len(labels)) if isinstance(labels, list) else range(MOST_LABELS - 1, 0, -1)
        rows = [
            {"model_no": model_no, "label_index": number, "label": label}
            for number, label in zip(numbers, labels, strict=False)
        ]
        if rows:
            connection.execute(sa.text(known + "ON CONFLICT DO NOTHING"), rows)


def _unnamed(connection: sa.Connection, model_no: int) -> tuple[str, ...]:
    """Names that predictions of a model have and model_label has not."""
    each = "json_each(p.top_k) e" if _is_sqlite() else "jsonb_array_elements(p.top_k::jsonb) e(value)"
    label = "json_extract(e.value, '$.label')" if _is_sqlite() else "e.value ->> 'label'"
    query = "SELECT {label} FROM {schema}prediction p, {each} WHERE p.model_no = :model_no EXCEPT SELECT label "
    query += "FROM {schema}model_label WHERE model_no = :model_no ORDER BY 1"
    filled = query.format(label=label, each=each, schema=words()["schema"])
    return tuple(connection.execute(sa.text(filled), {"model_no": model_no}).scalars())


def _rebuild_sqlite() -> None:
    connection = op.get_bind()
    drop_views()
    create_as_now("prediction_next")
    numbers: dict[int, dict[str, int]] = {}
    rows = connection.execute(sa.text("SELECT model_no, label, label_index FROM model_label ORDER BY label_index DESC"))
    for model_no, label, index in rows:
        numbers.setdefault(model_no, {})[label] = index
    fill = sa.text(
        f"INSERT INTO prediction_next ({COLUMNS}) VALUES (:predicted_at, :model_no, :run_no, :label_index, :score, :margin, "
        ":entropy, :generation, :digest, :top_k)"
    )
    for batch in _batches(connection):
        connection.execute(
            fill, [{**row, **_as_singles(row), "top_k": _packed(row, numbers[row["model_no"]])} for row in batch]
        )
    op.execute("DROP TABLE prediction")
    op.execute("ALTER TABLE prediction_next RENAME TO prediction")
    op.create_index("prediction_label", "prediction", ["model_no", "label_index", "margin", "digest"])


def _batches(connection: sa.Connection) -> Iterator[list[Mapping[str, Any]]]:
    """The predictions as they were, some thousands at a time."""
    query = sa.text("SELECT rowid AS place, * FROM prediction WHERE rowid > :after ORDER BY rowid LIMIT :most")
    after = 0
    while rows := connection.execute(query, {"after": after, "most": BATCH}).mappings().all():
        yield [dict(row) for row in rows]
        after = rows[-1]["place"]


def _packed(row: Mapping[str, Any], numbers: Mapping[str, int]) -> bytes:
    entries = [(numbers[entry["label"]], entry["score"]) for entry in json.loads(row["top_k"])[1:]]
    return pack(entries, row["cascade_stage"])


def _as_singles(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: to_single(row[name]) for name in ("score", "margin", "entropy")}


def _prepare_postgresql() -> None:
    if not sa.inspect(op.get_bind()).has_table("prediction_next", schema=SCHEMA):
        create_as_now("prediction_next")
    op.execute(f"CREATE INDEX IF NOT EXISTS prediction_next_label ON {SCHEMA}.prediction_next (label_index, margin)")
    op.execute(f"CREATE INDEX IF NOT EXISTS prediction_next_time ON {SCHEMA}.prediction_next USING brin (predicted_at)")
    op.execute(
        "CREATE TEMP TABLE label_number AS SELECT model_no, label, min(label_index) AS label_index "
        f"FROM {SCHEMA}.model_label GROUP BY model_no, label"
    )
    op.execute("CREATE UNIQUE INDEX ON label_number (model_no, label)")
    op.execute("ANALYZE label_number")


def _add_partition(model_no: int) -> None:
    op.execute(
        f"CREATE TABLE IF NOT EXISTS {SCHEMA}.prediction_{model_no} PARTITION OF {SCHEMA}.prediction_next "
        f"FOR VALUES IN ({model_no})"
    )


def _copy_model(model_no: int) -> None:
    """In short transactions, in the order of digests."""
    _add_partition(model_no)
    batch = sa.text(
        f"WITH p AS (SELECT * FROM {SCHEMA}.prediction WHERE model_no = :model_no AND digest > :after ORDER BY digest "
        f"LIMIT {BATCH}), copied AS (INSERT INTO {SCHEMA}.prediction_next ({COLUMNS}) SELECT {AS_NOW} FROM p "
        "ON CONFLICT (digest, model_no) DO NOTHING) SELECT digest FROM p ORDER BY digest DESC LIMIT 1"
    )
    after: bytes | None = b""
    while after is not None:
        after = op.get_bind().execute(batch, {"model_no": model_no, "after": after}).scalar_one_or_none()


def _lock(*names: str) -> None:
    """Wait for whoever uses the views and the tables below them, for a moment at a time: they wait for us meanwhile.

    A moment is shorter than PostgreSQL's deadlock_timeout, so that we step back before it ends one of them.
    """
    connection = op.get_bind()
    wanted = ", ".join(f"{SCHEMA}.{name}" for name in names)
    op.execute("SET LOCAL lock_timeout = '500ms'")
    for attempt in range(LOCK_ATTEMPTS):
        try:
            with connection.begin_nested():
                connection.execute(sa.text(f"LOCK TABLE {wanted} IN ACCESS EXCLUSIVE MODE"))
        except OperationalError:
            if attempt == LOCK_ATTEMPTS - 1:
                raise
            time.sleep(1)
        else:
            break


def _copy_the_rest() -> None:
    """What was written and erased while the copies were made; nobody writes now."""
    op.execute(
        f"INSERT INTO label_number SELECT model_no, label, min(label_index) FROM {SCHEMA}.model_label "
        "GROUP BY model_no, label ON CONFLICT DO NOTHING"
    )
    for model_no in op.get_bind().execute(sa.text(f"SELECT model_no FROM {SCHEMA}.model")).scalars().all():
        _add_partition(model_no)
    same = "n.digest = p.digest AND n.model_no = p.model_no"
    op.execute(
        f"DELETE FROM {SCHEMA}.prediction_next n WHERE NOT EXISTS (SELECT FROM {SCHEMA}.prediction p WHERE {same} "
        "AND n.run_no = p.run_no AND n.generation = p.generation)"
    )
    op.execute(
        f"INSERT INTO {SCHEMA}.prediction_next ({COLUMNS}) SELECT {AS_NOW} FROM {SCHEMA}.prediction p "
        f"WHERE NOT EXISTS (SELECT FROM {SCHEMA}.prediction_next n WHERE {same})"
    )


def _is_sqlite() -> bool:
    return bool(op.get_bind().dialect.name == "sqlite")


def words() -> dict[str, str]:
    """Where the two databases differ."""
    return SQLITE if _is_sqlite() else POSTGRESQL
