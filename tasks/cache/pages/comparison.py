"""Two models of a pipeline side by side: how often they agree, what they confuse, and on which images they differ.

The counts are those that the runs have added up (pair_count): whichever of two models came later to an image wrote the row,
so rows of both directions belong to a pair. Models are compared by what their labels are called, because two models need
not have the same labels at the same places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Subquery, func, select, union_all

from tasks.cache.database import reading
from tasks.cache.naming import labels_of
from tasks.cache.pages.scope import ModelName, PipelineScope
from tasks.cache.pages.walking import Found, Position, first_key, gather, way_of
from tasks.cache.schema import model_label, pair_count, prediction

MOST_PAIRS = 2_000
SHOWN_LABELS = 12


@dataclass(frozen=True, slots=True)
class Pair:
    """So many images are `label` to one model and `other` to the other one; None stands for all labels not shown."""

    label: str | None
    other: str | None
    images: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """`both`: images that both models have predicted; `pairs`: what they disagree on, the most frequent first."""

    both: int
    agreed: int
    pairs: Sequence[Pair]

    @property
    def share(self) -> float | None:
        """Of 0 to 1; None where no image has both."""
        return self.agreed / self.both if self.both else None


@dataclass(frozen=True, slots=True)
class Confusion:
    """The disagreements as a table: a row for each label of one model, a column for each of the other, None for the rest."""

    labels: Sequence[str | None]
    others: Sequence[str | None]
    images: dict[tuple[str | None, str | None], int]


@dataclass(frozen=True, slots=True)
class Difference:
    """An image that two models see differently; of several with the same bytes the first key stands for all."""

    digest: str
    key: str
    label: str
    score: float
    other_label: str
    other_score: float


def agreement(engine: Engine, pipeline: str, one: ModelName, other: ModelName) -> Agreement:
    """How often two models agree, by the sums of the runs."""
    rows, alike = _rows(pipeline, one.model_no, other.model_no), _alike(one.model_no, other.model_no)
    pair = (alike.c.label_index == rows.c.label_index) & (alike.c.other_label_index == rows.c.other_label_index)
    different = (
        select(rows.c.label_index, rows.c.other_label_index, func.sum(rows.c.images).label("images"))
        .join_from(rows, alike, pair, isouter=True)
        .where(alike.c.label_index.is_(None))
        .group_by(rows.c.label_index, rows.c.other_label_index)
    )
    # By numbers: names are long, and are wanted for a few.
    order = (func.sum(rows.c.images).desc(), rows.c.label_index, rows.c.other_label_index)
    with reading(engine) as connection:
        both = connection.execute(select(func.sum(rows.c.images))).scalar_one()
        agreed = connection.execute(select(func.sum(rows.c.images)).join_from(rows, alike, pair)).scalar_one()
        found = connection.execute(different.order_by(*order).limit(MOST_PAIRS)).all()
        mine, theirs = (labels_of(connection, model.model_no) for model in (one, other))
    images = Counter[tuple[str, str]]()  # Two outputs of a model may have one name.
    for row in found:
        images[mine[row.label_index], theirs[row.other_label_index]] += int(row.images)
    ordered = sorted(images.items(), key=lambda item: (-item[1], item[0]))
    return Agreement(int(both or 0), int(agreed or 0), [Pair(*labels, count) for labels, count in ordered])


def confusion(found: Agreement, most: int = SHOWN_LABELS) -> Confusion:
    """The labels that are confused most, and all others folded into one row and one column."""
    confused = Counter[str]()
    for pair in found.pairs:
        for label in (pair.label, pair.other):
            if label is not None:
                confused[label] += pair.images
    shown = {label for label, _ in confused.most_common(most)}
    images = Counter[tuple[str | None, str | None]]()
    for pair in found.pairs:
        images[_folded(pair.label, shown), _folded(pair.other, shown)] += pair.images
    unlisted = found.both - found.agreed - sum(pair.images for pair in found.pairs)
    if unlisted:
        images[None, None] += unlisted
    places: dict[str | None, int] = {label: place for place, (label, _) in enumerate(confused.most_common(most))}
    places[None] = len(places)
    rows = sorted({row for row, _ in images}, key=places.__getitem__)
    columns = sorted({column for _, column in images}, key=places.__getitem__)
    return Confusion(rows, columns, dict(images))


def _folded(label: str | None, shown: set[str]) -> str | None:
    return label if label in shown else None


def _rows(pipeline: str, one: int, other: int) -> Subquery:
    """(label_index, other_label_index, images) of a pair of models, from the rows that either of them wrote."""
    sums = pair_count
    theirs = (sums.c.other_label_index.label("label_index"), sums.c.label_index.label("other_label_index"))
    directions = [
        select(sums.c.label_index, sums.c.other_label_index, sums.c.images).where(
            sums.c.pipeline == pipeline, sums.c.model_no == one, sums.c.other_model_no == other
        ),
        select(*theirs, sums.c.images).where(
            sums.c.pipeline == pipeline, sums.c.model_no == other, sums.c.other_model_no == one
        ),
    ]
    return union_all(*directions).subquery("sums")


def _alike(one: int, other: int) -> Subquery:
    """The outputs of two models that are called the same."""
    mine, theirs = model_label.alias(), model_label.alias()
    return (
        select(mine.c.label_index, theirs.c.label_index.label("other_label_index"))
        .join_from(mine, theirs, mine.c.label == theirs.c.label)
        .where(mine.c.model_no == one, theirs.c.model_no == other)
        .subquery("alike")
    )


def differing(
    engine: Engine,
    scope: PipelineScope,
    one: ModelName,
    other: ModelName,
    label: str | None = None,
    other_label: str | None = None,
    after: Position | None = None,
    limit: int = 24,
) -> Found[Difference]:
    """Images that two models see differently, the least certain of `one` first; with one label, or two, only those."""
    models = (one.model_no, other.model_no)
    with reading(engine) as connection:
        way = way_of(connection, one.model_no, label)
        return gather(
            connection, way, after, limit, lambda digests: _different(connection, scope, models, other_label, digests)
        )


def _different(
    connection: Connection, scope: PipelineScope, models: tuple[int, int], other_label: str | None, digests: list[bytes]
) -> dict[bytes, Difference]:
    """Those of the predictions whose labels are called otherwise; names and keys are asked for those alone that need them."""
    theirs = prediction.alias()
    query = (
        select(
            prediction.c.digest,
            prediction.c.label_index,
            prediction.c.score,
            theirs.c.label_index.label("other_index"),
            theirs.c.score.label("other_score"),
        )
        .join(theirs, (theirs.c.model_no == models[1]) & (theirs.c.digest == prediction.c.digest))
        .where(prediction.c.model_no == models[0], prediction.c.digest.in_(digests))
    )
    rows = connection.execute(query).all()
    mine = labels_of(connection, models[0], {row.label_index for row in rows})
    others = labels_of(connection, models[1], {row.other_index for row in rows})
    found = {
        bytes(row.digest): row
        for row in rows
        if mine[row.label_index] != others[row.other_index] and other_label in (None, others[row.other_index])
    }
    keys = _keys(connection, scope, models[0], list(found))
    return {
        digest: Difference(
            digest.hex(), keys[digest], mine[row.label_index], row.score, others[row.other_index], row.other_score
        )
        for digest, row in found.items()
        if digest in keys
    }


def _keys(connection: Connection, scope: PipelineScope, model_no: int, digests: list[bytes]) -> dict[bytes, str]:
    """{digest: the first key of the pipeline that has it}, of those that have one."""
    key = first_key(scope, prediction.c.digest).label("key")
    query = select(prediction.c.digest, key).where(prediction.c.model_no == model_no, prediction.c.digest.in_(digests))
    return {bytes(row.digest): row.key for row in connection.execute(query) if row.key is not None}
