"""Reviews: what persons say is on the images of a pipeline, and how often the model was right."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from sqlalchemy import Engine, case, delete, func, select

from tasks.cache.database import reading, repeated, writing
from tasks.cache.pages.scope import PipelineScope
from tasks.cache.pages.walking import living
from tasks.cache.runs import insert, now
from tasks.cache.schema import image, model_label, prediction, review

MOST_REVIEWS = 50_000
MOST_LABELS = 5_000

# Of the normal distribution, for 95 %.
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Judged:
    """How many of the reviewed images a model was right about; `is_part` where there are more reviews than were counted."""

    reviews: int
    right: int
    is_part: bool

    @property
    def share(self) -> float | None:
        """Of 0 to 1; None without a review."""
        return self.right / self.reviews if self.reviews else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the share: right for few reviews, and for shares near 0 and 1, too."""
        if not self.reviews:
            return None
        share, count = self.right / self.reviews, self.reviews
        middle = share + _Z**2 / (2 * count)
        half = _Z * sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
        scale = 1 + _Z**2 / count
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def judged(engine: Engine, pipeline: str, model_no: int | None = None, most: int = MOST_REVIEWS) -> Judged:
    """How a model compares with the reviews; without one, the model whose answer each reviewer was shown."""
    reviews = select(review.c.digest, review.c.label, review.c.model_no).where(review.c.pipeline == pipeline)
    part = reviews.order_by(review.c.digest).limit(most).subquery()
    same = (prediction.c.model_no == (part.c.model_no if model_no is None else model_no)) & (
        prediction.c.digest == part.c.digest
    )
    # A join, and no look-up for each: the labels of a model are few beside its reviews.
    named = (model_label.c.model_no == prediction.c.model_no) & (model_label.c.label_index == prediction.c.label_index)
    right = func.sum(case((model_label.c.label == part.c.label, 1), else_=0))
    reviewed = part.join(prediction, same).outerjoin(model_label, named)
    query = select(func.count(), func.coalesce(right, 0)).select_from(reviewed)
    more = reviews.order_by(review.c.digest).offset(most).limit(1)
    with reading(engine) as connection:
        counted, agreed = connection.execute(query).one()
        is_part = connection.execute(more).first() is not None
    return Judged(int(counted), int(agreed), is_part)


def labels_of(engine: Engine, model_no: int, most: int = MOST_LABELS) -> list[str]:
    """What the outputs of a model are called, in the order of the outputs; at most so many."""
    query = select(model_label.c.label).where(model_label.c.model_no == model_no)
    with reading(engine) as connection:
        return list(connection.execute(query.order_by(model_label.c.label_index).limit(most)).scalars())


def has_label(engine: Engine, model_no: int, label: str) -> bool:
    """Whether it is a label of the model."""
    query = select(model_label.c.label_index).where(model_label.c.model_no == model_no, model_label.c.label == label)
    with reading(engine) as connection:
        return connection.execute(query.limit(1)).first() is not None


def is_of_pipeline(engine: Engine, scope: PipelineScope, digest: bytes) -> bool:
    """Whether an image of the pipeline that is there has these bytes."""
    query = select(image.c.digest).where(image.c.digest == digest, *living(scope)).limit(1)
    with reading(engine) as connection:
        return connection.execute(query).first() is not None


@repeated
def save_review(engine: Engine, pipeline: str, digest: bytes, label: str, model_no: int, reviewer: str) -> None:
    """Write a review; it replaces an older one of the same bytes."""
    said = {"label": label, "model_no": model_no, "reviewer": reviewer, "reviewed_at": now()}
    with writing(engine) as connection:
        connection.execute(
            insert(connection, review)
            .values(pipeline=pipeline, digest=digest, **said)
            .on_conflict_do_update(index_elements=["pipeline", "digest"], set_=said)
        )


@repeated
def remove_review(engine: Engine, pipeline: str, digest: bytes) -> bool:
    """Take a review back; whether there was one."""
    with writing(engine) as connection:
        gone = connection.execute(delete(review).where(review.c.pipeline == pipeline, review.c.digest == digest))
        return gone.rowcount > 0
