"""What a file of predictions holds: a row for each prediction, and in its metadata the models that made them.

The columns are single scores and moments as the cache has them, so that going out and coming in changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

KEY = b"afterimage"
FORMAT = 1

GROUP_ROWS = 50_000
DIGEST_BYTES = 32

IMPORTED = (
    "model_id",
    "digest",
    "label_index",
    "label",
    "score",
    "margin",
    "entropy",
    "top_k",
    "cascade_stage",
    "predicted_at",
)
"""The columns that an import reads: which run made a prediction is for people, who may have another cache."""


def schema() -> pyarrow.Schema:
    """The columns, without metadata."""
    import pyarrow as pa

    entry = pa.struct(
        [
            pa.field("label_index", pa.int32(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("score", pa.float32(), nullable=False),
        ]
    )
    return pa.schema(
        [
            pa.field("model_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False),
            pa.field("label_index", pa.int32(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("score", pa.float32(), nullable=False),
            pa.field("margin", pa.float32(), nullable=False),
            pa.field("entropy", pa.float32(), nullable=False),
            pa.field("top_k", pa.list_(pa.field("entry", entry, nullable=False)), nullable=False),
            pa.field("cascade_stage", pa.int16()),
            pa.field("predicted_at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("dag_id", pa.string()),
            pa.field("run_id", pa.string()),
        ]
    )
