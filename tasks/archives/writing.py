"""Export: the predictions that a filter names, in one snapshot, written while they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from tasks.archives.layout import FORMAT, GROUP_ROWS, KEY, schema
from tasks.archives.packed import unpack_all
from tasks.cache import archive
from tasks.cache.archive import Asked, KeptModel
from tasks.cache.runs import now
from tasks.errors import AfterimageError, ConfigurationError
from tasks.whole import whole_file

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, slots=True)
class Written:
    """Rows of the file, which are those that the filter counted in the same snapshot; its models and bytes."""

    rows: int
    models: int
    bytes: int


def export(engine: Engine, asked: Asked, path: Path, group_rows: int = GROUP_ROWS) -> Written:
    """Write a file, in the place of one that is there. Interrupted, it leaves nothing. Raises ConfigurationError."""
    with archive.snapshot(engine, asked, group_rows) as snapshot:
        try:
            with whole_file(path) as scratch:
                rows = _write(scratch, snapshot, asked)
                if rows != snapshot.count:
                    raise AfterimageError(
                        f"{rows} rows came of {snapshot.count} that were counted. Give the command again."
                    )
                size = os.path.getsize(scratch)
        except OSError as error:
            raise ConfigurationError(
                f"{path} cannot be written: {error.strerror or error}. Name another file."
            ) from None
    return Written(rows, len(snapshot.models), size)


def _write(scratch: Path, snapshot: archive.Snapshot, asked: Asked) -> int:
    # Only who exports pays for the import.
    from pyarrow import parquet

    layout = schema().with_metadata({KEY: _metadata(snapshot, asked)})
    options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": _SELDOM_DIFFERENT}
    rows = 0
    with parquet.ParquetWriter(scratch, layout, **options) as writer:
        for model, group in snapshot.groups:
            writer.write_table(_table(layout, model, group))
            rows += len(group)
    return rows


_SELDOM_DIFFERENT = [
    "model_id",
    "label_index",
    "label",
    "top_k.list.entry.label_index",
    "top_k.list.entry.label",
    "cascade_stage",
    "predicted_at",
    "dag_id",
    "run_id",
]


def _metadata(snapshot: archive.Snapshot, asked: Asked) -> bytes:
    models = [
        {
            "model_id": one.model_id,
            "name": one.name,
            "version": one.version,
            "spec": dict(one.spec),
            "labels": sorted(one.labels.items()),
        }
        for one in snapshot.models
    ]
    filtered = {name: value for name, value in asdict(asked).items() if value is not None}
    facts = {"format": FORMAT, "rows": snapshot.count, "exported_at": now(), "filter": filtered, "models": models}
    return json.dumps(facts, default=str).encode()


def _table(layout: pyarrow.Schema, model: KeptModel, rows: Sequence[Any]) -> pyarrow.Table:
    import numpy as np
    import pyarrow as pa

    digests, indices, scores, margins, entropies, packed, moments, dags, runs = zip(*rows, strict=True)
    labels = _Labels(model.labels)
    counts, more, their_scores, stages = unpack_all(packed)
    best = np.array(indices, np.int32)
    offsets = np.concatenate(([0], np.cumsum(counts + 1))).astype(np.int32)
    # Each list begins with the best one, which has columns of its own.
    first = (np.cumsum(counts) - counts).astype(np.int64)
    every = np.insert(more, first, best)
    every_score = np.insert(their_scores, first, np.array(scores, np.float32))
    entry = layout.field("top_k").type.value_type
    entries = pa.StructArray.from_arrays([pa.array(every), labels.of(every), pa.array(every_score)], fields=list(entry))
    model_id = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), pa.array([model.model_id]))
    columns = {
        "model_id": model_id,
        "digest": pa.array(digests, layout.field("digest").type),
        "label_index": pa.array(best),
        "label": labels.of(best),
        **{
            name: pa.array(np.array(values, np.float32))
            for name, values in (("score", scores), ("margin", margins), ("entropy", entropies))
        },
        "top_k": pa.ListArray.from_arrays(pa.array(offsets), entries, type=layout.field("top_k").type),
        "cascade_stage": pa.array(stages, pa.int16()),
        "predicted_at": pa.array(moments, layout.field("predicted_at").type),
        "dag_id": pa.array(dags, pa.string()),
        "run_id": pa.array(runs, pa.string()),
    }
    return pa.Table.from_arrays([columns[name] for name in layout.names], schema=layout)


class _Labels:
    """Names by number, as arrays; `#7` where the cache does not know one."""

    def __init__(self, labels: Mapping[int, str]) -> None:
        self._labels = labels

    def of(self, indices: Any) -> pyarrow.Array:
        """The names of outputs."""
        import numpy as np
        import pyarrow as pa

        different, places = np.unique(indices, return_inverse=True)
        names = pa.array([self._labels.get(index, f"#{index}") for index in different.tolist()], pa.string())
        return names.take(pa.array(places))
