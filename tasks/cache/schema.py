"""The tables. Users read the views over them (docs/sql.md); these may change with any migration.

    source ──< image >── (digest) ── prediction >── model
                             in PostgreSQL a partition for each model: dropping a model is dropping a table
    run ──< work_item        what one run listed, each row with one outcome in the end
    run ──< shard            how far each slice of its work has come; `working` until an attempt says that it is over,
                             `frontier` the last key that was taken in hand
    run ──< listing_range    how far each part of its listing has come, where several list one source side by side
    failure                  the quarantine: (source, key, etag, model) -> reason
    block                    what was erased for good: a key of a source, or a digest
    pipeline                 the current model of each pipeline
    model_label              what the outputs of a model are called
    review                   the right label of some bytes in a pipeline, said by a person
    label_count, score_count, pair_count    what publish_run adds up for the pages: (pipeline, model, day or other model)

Names that end in `_no` are numbers inside this database. `model_id`, `run_id` and `digest` are what the world sees.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)

SCHEMA = "afterimage"

# A mark is model_no * EPOCHS + epoch.
EPOCHS = 1 << 16

metadata = MetaData(schema=SCHEMA)


class Moment(TypeDecorator[datetime]):
    """A moment in UTC: timestamptz in PostgreSQL, ISO text in SQLite, aware datetimes in Python."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """SQLite keeps no zone, so it is given UTC."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back to an aware moment in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_SINGLE = struct.Struct("f")


class Single(TypeDecorator[float]):
    """A number of single precision: 4 bytes in PostgreSQL, and the same value in SQLite and in Python.

    The text `0.3` stands for the single next to it, and comparing that with Python's 0.3 would find them different.
    """

    impl = REAL
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        """The nearest number of single precision."""
        return None if value is None else to_single(value)

    def process_result_value(self, value: float | None, dialect: Dialect) -> float | None:
        """The number that is really stored."""
        return None if value is None else to_single(value)


def to_single(value: float) -> float:
    """The nearest number of single precision."""
    found: float = _SINGLE.unpack(_SINGLE.pack(value))[0]
    return found


# S3 lists in the byte order of UTF-8, which is PostgreSQL's "C" and SQLite's BINARY.
Key = Text().with_variant(Text(collation="C"), "postgresql")


def _count(name: str) -> Column[Any]:
    return Column(name, BigInteger, nullable=False, server_default="0")


source = Table(
    "source",
    metadata,
    Column("source_no", Integer, primary_key=True),
    Column("uri", Text, nullable=False, unique=True),
)

model = Table(
    "model",
    metadata,
    Column("model_no", Integer, primary_key=True),
    Column("model_id", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    # How often all its predictions were dropped at once.
    Column("epoch", Integer, nullable=False, server_default="0"),
)

pipeline = Table(
    "pipeline",
    metadata,
    Column("name", Text, primary_key=True),
    Column("source_no", Integer, ForeignKey(source.c.source_no), nullable=False),
    Column("prefix", Text, nullable=False),
    Column("model_no", Integer, ForeignKey(model.c.model_no), nullable=False),
    Column("updated_at", Moment, nullable=False),
)

image = Table(
    "image",
    metadata,
    Column("source_no", Integer, ForeignKey(source.c.source_no), primary_key=True),
    Column("key", Key, primary_key=True),
    Column("etag", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("last_modified", Moment, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("recorded_at", Moment, nullable=False),
    Column("deleted_at", Moment),
    # The model that is known to have a prediction of these bytes: mark_of. Where it is another one, the predictions are asked.
    Column("mark", BigInteger),
)
Index("image_digest", image.c.digest)
# Few: what came back is looked for among them, and what may be forgotten.
Index(
    "image_deleted",
    image.c.source_no,
    image.c.key,
    postgresql_where=image.c.deleted_at.is_not(None),
    sqlite_where=image.c.deleted_at.is_not(None),
)

prediction = Table(
    "prediction",
    metadata,
    # In the order in which PostgreSQL leaves no gaps, and without nulls, whose bitmap would take 8 bytes of each row.
    Column("predicted_at", Moment, nullable=False),
    Column("model_no", Integer, nullable=False),
    Column("run_no", Integer, nullable=False),
    Column("label_index", Integer, nullable=False),
    Column("score", Single, nullable=False),
    Column("margin", Single, nullable=False),
    Column("entropy", Single, nullable=False),
    Column("generation", SmallInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("top_k", LargeBinary, nullable=False),
    # The digest first: erasing asks for it without a model.
    PrimaryKeyConstraint("digest", "model_no"),
    postgresql_partition_by="LIST (model_no)",
)
# The least certain of a label come first; the pages merge the labels where they want those of a model. SQLite, which has no
# partitions, keeps the model before them.
Index("prediction_label", prediction.c.label_index, prediction.c.margin)
Index("prediction_time", prediction.c.predicted_at, postgresql_using="brin")

failure = Table(
    "failure",
    metadata,
    Column("source_no", Integer, ForeignKey(source.c.source_no), primary_key=True),
    Column("key", Key, primary_key=True),
    Column("etag", Text, primary_key=True),
    Column("model_no", Integer, ForeignKey(model.c.model_no), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("last_modified", Moment, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("decoder", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_retry_at", Moment),
    Column("first_failed_at", Moment, nullable=False),
    Column("last_failed_at", Moment, nullable=False),
    Column("run_no", Integer, nullable=False),
    Column("digest", LargeBinary),
)

block = Table(
    "block",
    metadata,
    Column("block_no", Integer, primary_key=True),
    Column("source_no", Integer, ForeignKey(source.c.source_no)),
    Column("key", Key),
    Column("digest", LargeBinary, unique=True),
    Column("blocked_at", Moment, nullable=False),
    UniqueConstraint("source_no", "key"),
)

run = Table(
    "run",
    metadata,
    Column("run_no", Integer, primary_key=True),
    Column("dag_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("pipeline", Text),
    Column("run_type", Text, nullable=False),
    Column("source_no", Integer, ForeignKey(source.c.source_no), nullable=False),
    Column("prefix", Text, nullable=False),
    Column("listing", Text, nullable=False),
    Column("model_no", Integer, ForeignKey(model.c.model_no)),
    Column("generation", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("message", Text),
    Column("window_start", Moment),
    Column("window_end", Moment),
    Column("force", Boolean, nullable=False),
    _count("listed"),
    _count("ignored"),
    _count("cached"),
    _count("known_bad"),
    _count("deferred"),
    _count("reused"),
    _count("predicted"),
    _count("failed"),
    _count("vanished"),
    _count("open"),
    # Of `cached`: what was dropped while it was listed, and never staged.
    _count("dropped"),
    _count("reads"),
    _count("forward_passes"),
    Column("seconds", Double, nullable=False, server_default="0"),
    Column("stage_seconds", Text, nullable=False, server_default="{}"),
    Column("stages", Text, nullable=False, server_default="{}"),
    Column("held_back_by", Text),
    Column("started_at", Moment, nullable=False),
    Column("finished_at", Moment),
    Column("worker_seconds", Double, nullable=False, server_default="0"),
    Column("waiting_since", Moment),
    Column("drift", Double),
    Column("drift_message", Text),
    Column("notified_at", Moment),
    UniqueConstraint("dag_id", "run_id"),
)
Index("run_pipeline", run.c.pipeline, run.c.run_no)

work_item = Table(
    "work_item",
    metadata,
    Column("run_no", Integer, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("key", Key, primary_key=True),
    Column("etag", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("last_modified", Moment, nullable=False),
    Column("shard", Integer),
    Column("outcome", Text),
)
Index("work_item_shard", work_item.c.run_no, work_item.c.generation, work_item.c.shard, work_item.c.key)

shard = Table(
    "shard",
    metadata,
    Column("run_no", Integer, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("shard", Integer, primary_key=True),
    Column("expected", BigInteger, nullable=False),
    Column("device", Text),
    _count("reads"),
    _count("forward_passes"),
    Column("seconds", Double, nullable=False, server_default="0"),
    Column("stages", Text, nullable=False, server_default="{}"),
    Column("updated_at", Moment),
    Column("working", Boolean, nullable=False, server_default=false()),
    Column("frontier", Key),
    _count("done"),
)

# Keys behind `after_key` up to `until_key` (null: no bound) under a prefix; all up to `last_key` are staged. `objects` are all
# that were seen; `listed` and `ignored` are what is not yet added to the run's row. Whoever lists it is its `holder`.
listing_range = Table(
    "listing_range",
    metadata,
    Column("run_no", Integer, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("prefix", Key, nullable=False),
    Column("after_key", Key),
    Column("until_key", Key),
    Column("last_key", Key),
    Column("done", Boolean, nullable=False, server_default=false()),
    _count("objects"),
    _count("listed"),
    _count("ignored"),
    _count("dropped"),
    Column("holder", Text),
    Column("held_at", Moment),
)

rate = Table(
    "rate",
    metadata,
    Column("model_no", Integer, ForeignKey(model.c.model_no), primary_key=True),
    Column("device", Text, primary_key=True),
    Column("images_per_second", Double, nullable=False),
    Column("measured_at", Moment, nullable=False),
)

model_label = Table(
    "model_label",
    metadata,
    Column("model_no", Integer, ForeignKey(model.c.model_no), primary_key=True),
    Column("label_index", Integer, primary_key=True),
    Column("label", Text, nullable=False),
)

review = Table(
    "review",
    metadata,
    Column("pipeline", Text, primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("label", Text, nullable=False),
    Column("model_no", Integer, ForeignKey(model.c.model_no), nullable=False),
    Column("reviewer", Text, nullable=False),
    Column("reviewed_at", Moment, nullable=False),
)

# What runs have added up. Each row says which attempt at which run it is from: a run that is published again replaces its own,
# and one that begins anew keeps what came with the attempt before.
label_count = Table(
    "label_count",
    metadata,
    Column("pipeline", Text, primary_key=True),
    Column("model_no", Integer, ForeignKey(model.c.model_no), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("label_index", Integer, primary_key=True),
    Column("run_no", Integer, primary_key=True),
    Column("generation", Integer, primary_key=True, server_default="1"),
    Column("images", BigInteger, nullable=False),
)
Index("label_count_run", label_count.c.run_no)

score_count = Table(
    "score_count",
    metadata,
    Column("pipeline", Text, primary_key=True),
    Column("model_no", Integer, ForeignKey(model.c.model_no), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("bin", SmallInteger, primary_key=True),
    Column("run_no", Integer, primary_key=True),
    Column("generation", Integer, primary_key=True, server_default="1"),
    Column("images", BigInteger, nullable=False),
)
Index("score_count_run", score_count.c.run_no)

pair_count = Table(
    "pair_count",
    metadata,
    Column("pipeline", Text, primary_key=True),
    Column("model_no", Integer, ForeignKey(model.c.model_no), primary_key=True),
    Column("other_model_no", Integer, ForeignKey(model.c.model_no), primary_key=True),
    Column("label_index", Integer, primary_key=True),
    Column("other_label_index", Integer, primary_key=True),
    Column("run_no", Integer, primary_key=True),
    Column("generation", Integer, primary_key=True, server_default="1"),
    Column("images", BigInteger, nullable=False),
)
Index("pair_count_run", pair_count.c.run_no)
