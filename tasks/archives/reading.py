"""Import: predictions of a file come into a cache in sorted batches; what is there stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from tasks.archives import checking
from tasks.archives.layout import IMPORTED
from tasks.archives.packed import pack_all
from tasks.cache import archive
from tasks.cache.archive import KeptModel, Restored
from tasks.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray
    from pyarrow import parquet

BATCH_ROWS = 10_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Microseconds from 1970 to the years 2000 and 2100.
_MOMENTS = (946_684_800e6, 4_102_444_800e6)
MOST_STAGES = 255
MOST_ENTRIES = 1_000

# More than the entropy of as many labels as a model may have, in nats.
MOST_ENTROPY = 15.0


@dataclass(frozen=True, slots=True)
class Imported:
    """Rows read, and what became of them: read = inserted + there + blocked. `models` are those of the file."""

    read: int
    inserted: int
    there: int
    blocked: int
    models: int


def import_file(engine: Engine, path: Path) -> Imported:
    """Bring the predictions of a file into the cache, whose own rows win.

    A file that is none of `export`, is not whole or was changed anywhere is refused with a ConfigurationError before a row of it
    is written: it is read twice, which takes a fraction of the time that writing does.
    """
    import pyarrow

    try:
        with _opened(path) as file:
            models = checking.check_layout(path, file)
            for _ in _checked(path, file, models):
                pass
            numbers = archive.register(engine, list(models.values()))
            total = Restored()
            for model_id, rows in _checked(path, file, models):
                number = numbers[model_id]
                total += archive.restore(engine, number, rows.for_the_cache(number))
            read = file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        told = " ".join(str(error).split())[:300]
        raise ConfigurationError(
            f"{path} cannot be read as an export: {told}. Is it whole? Copy or export it anew."
        ) from None
    return Imported(read, total.inserted, total.there, total.blocked, len(models))


@contextmanager
def _opened(path: Path) -> Iterator[parquet.ParquetFile]:
    from pyarrow import parquet

    with open(path, "rb") as source, parquet.ParquetFile(source, page_checksum_verification=True) as file:
        yield file


def _checked(path: Path, file: parquet.ParquetFile, models: Mapping[str, KeptModel]) -> Iterator[tuple[str, _Rows]]:
    """(model_id, its predictions), some thousands at a time."""
    import pyarrow.compute as pc

    first = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=list(IMPORTED)):
        batch.validate(full=True)
        ids = batch.column("model_id").cast("string")
        for model_id in pc.unique(ids).to_pylist():
            if model_id not in models:
                raise checking.wrong_row(path, f"it does not list the model {model_id!r}, whose rows stand", first)
            try:
                rows = _Rows(batch.filter(pc.equal(ids, model_id)), models[model_id])
            except ValueError as error:
                raise checking.wrong_row(path, str(error), first) from None
            yield model_id, rows
        first += batch.num_rows


class _Rows:
    """Predictions of one model, each value within its bounds. Raises ValueError, which says what is not."""

    def __init__(self, batch: pyarrow.RecordBatch, model: KeptModel) -> None:
        import pyarrow.compute as pc

        for name in IMPORTED:
            _require(name == "cascade_stage" or batch.column(name).null_count == 0, f"{name} is missing")
        self._batch = batch
        _require(len(pc.unique(batch.column("digest"))) == len(batch), "a digest stands twice")
        self._indices, self._scores = self._numbers("label_index"), self._numbers("score")
        for name, most in (("score", 1.0), ("margin", 1.0), ("entropy", MOST_ENTROPY)):
            _require(bool(_within(self._numbers(name), 0.0, most).all()), f"{name} is not between 0 and {most:g}")
        self._check_names("label", self._indices, batch.column("label"), model)
        self._read_entries(model)
        self._check_stages(model)
        self._since = batch.column("predicted_at").cast("int64").to_numpy()
        _require(bool(_within(self._since, *_MOMENTS).all()), "predicted_at is no moment of a prediction")

    def _numbers(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = self._batch.column(name).to_numpy(zero_copy_only=False)
        return found

    def _check_names(self, what: str, indices: NDArray[Any], names: pyarrow.Array, model: KeptModel) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        different, places = np.unique(indices, return_inverse=True)
        known = pa.array([model.labels.get(index, f"#{index}") for index in different.tolist()], pa.string())
        highest = max(model.labels, default=0)
        _require(
            not len(different) or (different[0] >= 0 and different[-1] <= highest), f"{what} is no output of the model"
        )
        same = pc.all(pc.equal(known.take(pa.array(places)), names)).as_py()
        _require(same is not False, f"{what} is not what the model calls that output")

    def _read_entries(self, model: KeptModel) -> None:
        """The lists, each with the best one at its beginning."""
        import numpy as np

        lists = self._batch.column("top_k")
        lengths: NDArray[np.int64] = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        _require(bool(((lengths >= 1) & (lengths <= MOST_ENTRIES)).all()), "top_k has no entry, or too many")
        entries = lists.flatten()
        _require(entries.null_count == 0, "top_k has an entry that is none")
        indices, names, scores = entries.flatten()
        _require(indices.null_count == names.null_count == scores.null_count == 0, "top_k lacks a value")
        self._check_names("a label of top_k", indices.to_numpy(), names, model)
        every, every_score = indices.to_numpy(), scores.to_numpy()
        _require(bool(_within(every_score, 0.0, 1.0).all()), "a score of top_k is not between 0 and 1")
        first = np.cumsum(lengths) - lengths
        same = (every[first] == self._indices) & (every_score[first] == self._scores)
        _require(bool(same.all()), "top_k does not begin with the best label")
        self._counts = lengths - 1
        self._more, self._their_scores = np.delete(every, first), np.delete(every_score, first)

    def _check_stages(self, model: KeptModel) -> None:
        import pyarrow.compute as pc

        found = pc.min_max(self._batch.column("cascade_stage")).as_py()
        known = range(1, min(MOST_STAGES, len(model.spec.get("stages", ()))) + 1)
        fits = found["min"] is None or (found["min"] in known and found["max"] in known)
        _require(fits, "cascade_stage is none of the model")

    def for_the_cache(self, model_no: int) -> list[tuple[Any, ...]]:
        """As restore() takes them."""
        stages = self._batch.column("cascade_stage").to_pylist()
        packed = pack_all(self._counts, self._more, self._their_scores, stages)
        names = ("label_index", "score", "margin", "entropy")
        numbers = zip(*(self._numbers(name).tolist() for name in names), strict=True)
        rows = zip(self._batch.column("digest").to_pylist(), numbers, packed, self._moments(), strict=True)
        return [archive.restored_row(model_no, *row) for row in rows]

    def _moments(self) -> list[datetime]:
        """A commit gives all of its rows one moment, so there are few."""
        import numpy as np

        different, places = np.unique(self._since, return_inverse=True)
        moments = [_EPOCH + timedelta(microseconds=one) for one in different.tolist()]
        return [moments[place] for place in places.tolist()]


def _within(values: NDArray[Any], least: float, most: float) -> NDArray[np.bool_]:
    """NaN is within nothing."""
    found: NDArray[np.bool_] = (values >= least) & (values <= most)
    return found


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
