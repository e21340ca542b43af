"""Step 2: staged objects minus the cache -> shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine

from tasks.cache import reconciling
from tasks.cache import staging as rows
from tasks.cache.database import writing
from tasks.cache.models import register_model
from tasks.cache.runs import Staging
from tasks.models.bundle import Bundle

DEFAULT_SHARD_IMAGES = 20_000


@dataclass(frozen=True, slots=True)
class Division:
    """How the open rows were divided: the model's number, and the rows of each shard."""

    model_no: int
    sizes: list[int]


@dataclass(frozen=True, slots=True)
class DedupeOptions:
    """What the pipeline and the run say about deduplication."""

    force: bool
    limit: int | None
    shard_seconds: float
    max_shards: int


def deduplicate(
    engine: Engine,
    staging: Staging,
    bundle: Bundle,
    decoder: str,
    options: DedupeOptions,
    deleted_under: Callable[[str], bool] | None,
) -> Division:
    """Judge the staged rows and number the open ones into shards, in one transaction.

    `deleted_under` is the pipeline's key filter where the listing saw everything under the prefix, so that images
    which are gone can be marked; None where it did not.
    """
    spec = {**bundle.identity(), "weights": bundle.spec.weights}
    with writing(engine) as connection:
        model_no = register_model(connection, bundle.model_id, bundle.spec.name, bundle.spec.version, spec)
        rows.attach_model(connection, staging, model_no)
        rows.classify(connection, staging, rows.Rules(model_no, decoder, options.force, options.limit))
        reconciling.forget_mended(connection, staging, model_no)
        if deleted_under is not None:
            reconciling.mark_deleted(connection, staging, deleted_under)
        rate = rows.measured_rate(connection, model_no)
        per_shard = DEFAULT_SHARD_IMAGES if rate is None else max(1, round(rate * options.shard_seconds))
        sizes = rows.assign_shards(connection, staging, per_shard, options.max_shards)
    return Division(model_no, sizes)
