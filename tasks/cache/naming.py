"""What predictions say, by name: a prediction keeps numbers, and model_label what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Text, cast, func, literal, select

from tasks.cache.packing import unpack
from tasks.cache.schema import model_label, prediction

# Numbers in one statement.
CHUNK = 500


def label_of(rows: FromClause = prediction) -> ColumnElement[str]:
    """The best label of a prediction; `#7` where the cache does not know its name."""
    named = model_label.alias()
    name = select(named.c.label).where(named.c.model_no == rows.c.model_no, named.c.label_index == rows.c.label_index)
    unnamed = literal("#").concat(cast(rows.c.label_index, Text))
    return func.coalesce(name.correlate_except(named).scalar_subquery(), unnamed)


def labels_of(connection: Connection, model_no: int, indices: Iterable[int] | None = None) -> dict[int, str]:
    """{label index: label} of a model, of these outputs or of all that have a name."""
    query = select(model_label.c.label_index, model_label.c.label).where(model_label.c.model_no == model_no)
    if indices is None:
        return dict(connection.execute(query).all())
    ordered, found = sorted(set(indices)), dict[int, str]()
    for start in range(0, len(ordered), CHUNK):
        some = query.where(model_label.c.label_index.in_(ordered[start : start + CHUNK]))
        found.update(connection.execute(some).all())
    return {index: found.get(index, f"#{index}") for index in ordered}


def top_k(label_index: int, score: float, packed: bytes, labels: Mapping[int, str]) -> list[dict[str, Any]]:
    """`[{"label": "tench", "score": 0.97}, ...]`, best first."""
    entries, _ = unpack(packed)
    return [
        {"label": labels.get(index, f"#{index}"), "score": value} for index, value in [(label_index, score), *entries]
    ]


def top_ks(connection: Connection, rows: Sequence[Row[Any]]) -> list[list[dict[str, Any]]]:
    """As top_k, of rows that have model_no, label_index, score and top_k."""
    wanted: dict[int, set[int]] = {}
    for row in rows:
        indices = {row.label_index, *(index for index, _ in unpack(row.top_k)[0])}
        wanted.setdefault(row.model_no, set()).update(indices)
    labels = {model_no: labels_of(connection, model_no, indices) for model_no, indices in wanted.items()}
    return [top_k(row.label_index, row.score, row.top_k, labels[row.model_no]) for row in rows]


def stage_of(packed: bytes) -> int | None:
    """The place of the network of a cascade that answered; None where the model is no cascade."""
    return unpack(packed)[1]
