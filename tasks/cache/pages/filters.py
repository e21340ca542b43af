"""Which predictions are asked for: what a person may filter by, and the conditions that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, func, select

from tasks.cache.pages.scope import PipelineScope
from tasks.cache.schema import image, model_label, prediction

_LAST = "\U0010ffff"


@dataclass(frozen=True, slots=True)
class Filter:
    """All must hold; None and "" ask for nothing. Scores and margins include both ends, moments only the first."""

    label: str | None = None
    score_from: float | None = None
    score_to: float | None = None
    margin_from: float | None = None
    margin_to: float | None = None
    since: datetime | None = None
    before: datetime | None = None
    prefix: str = ""
    contains: str = ""
    deleted: bool = False


def after_prefix(prefix: str) -> str | None:
    """The first text that follows all that begin with `prefix`, in the order of code points; None where there is none.

    That order is also the one of bytes in UTF-8, and so PostgreSQL's "C" and SQLite's BINARY.
    """
    stem = prefix.rstrip(_LAST)
    if not stem:
        return None
    # Surrogates are no characters: UTF-8 knows none.
    following = 0xE000 if stem[-1] == "\ud7ff" else ord(stem[-1]) + 1
    return stem[:-1] + chr(following)


def key_range(key: ColumnElement[str], prefixes: tuple[str, ...]) -> list[ColumnElement[bool]]:
    """That a key begins with each of these, as ranges that an index knows."""
    conditions: list[ColumnElement[bool]] = []
    for prefix in filter(None, prefixes):
        conditions.append(key >= prefix)
        end = after_prefix(prefix)
        if end is not None:
            conditions.append(key < end)
    return conditions


def of_scope(scope: PipelineScope, asked: Filter) -> list[ColumnElement[bool]]:
    """The range of the primary key of `image` in which all images lie that can be meant."""
    return [image.c.source_no == scope.source_no, *key_range(image.c.key, (scope.prefix, asked.prefix))]


def of_image(asked: Filter, sqlite: bool) -> list[ColumnElement[bool]]:
    """What is asked of the object in storage, beside the beginning of its key."""
    conditions: list[ColumnElement[bool]] = []
    if not asked.deleted:
        conditions.append(image.c.deleted_at.is_(None))
    if asked.contains:
        # LIKE takes upper and lower case for the same in SQLite, and has characters of its own.
        place = func.instr if sqlite else func.strpos
        conditions.append(place(image.c.key, asked.contains) > 0)
    if asked.since is not None:
        conditions.append(image.c.last_modified >= asked.since)
    if asked.before is not None:
        conditions.append(image.c.last_modified < asked.before)
    return conditions


def of_prediction(asked: Filter, model_no: int) -> list[ColumnElement[bool]]:
    """What is asked of the prediction; the labels are those of the model."""
    conditions: list[ColumnElement[bool]] = [prediction.c.model_no == model_no]
    if asked.label is not None:
        conditions.append(prediction.c.label_index.in_(label_indexes(model_no, asked.label)))
    for column, first, last in (
        (prediction.c.score, asked.score_from, asked.score_to),
        (prediction.c.margin, asked.margin_from, asked.margin_to),
    ):
        if first is not None:
            conditions.append(column >= first)
        if last is not None:
            conditions.append(column <= last)
    return conditions


def label_indexes(model_no: int, label: str | None) -> Select[int]:
    """The outputs of a model that are called so: two may have one name, as ImageNet's cranes. All for None."""
    found = select(model_label.c.label_index).where(model_label.c.model_no == model_no)
    return found if label is None else found.where(model_label.c.label == label)
