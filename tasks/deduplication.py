"""Step 2: staged objects minus the cache -> shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine

from tasks.cache import reconciling
from tasks.cache import staging as rows
from tasks.cache.blocking import hold_off_erasing
from tasks.cache.database import repeated, writing
from tasks.cache.models import mark_of, register_model
from tasks.cache.runs import Staging
from tasks.models.cascade import Model

DEFAULT_SHARD_IMAGES = 20_000


@dataclass(frozen=True, slots=True)
class Division:
    """How the open rows were divided: the model's number, and the rows of each shard."""

    model_no: int
    sizes: list[int]


@dataclass(frozen=True, slots=True)
class DedupeOptions:
    """What the pipeline and the run say about deduplication; `workers` is how many shards there are at least.

    `as_of` is the moment that the listing tells of, where it is an inventory of the past; None where it is the present.
    `is_reconciled` says that the listing has marked what is gone, and staged only what is not known.
    """

    force: bool
    limit: int | None
    shard_seconds: float
    max_shards: int
    workers: int = 1
    dry_run: bool = False
    as_of: datetime | None = None
    is_reconciled: bool = False


@repeated
def deduplicate(
    engine: Engine,
    staging: Staging,
    model: Model,
    decoder: str,
    options: DedupeOptions,
    saw: Callable[[str], bool] | None,
    retried: Callable[[str], bool] | None,
) -> Division:
    """Judge the staged rows and number the open ones into shards, in one transaction; the model is registered before it.

    `saw` tells of a key whether the listing would have shown it, so that images which are gone can be marked; None
    where that cannot be told. `retried` tells whether a key belongs to the pipeline, where failures that are due are
    to be tried again although they were not listed; None where they are not. A dry run marks and forgets nothing.
    """
    spec = model.identity()
    rows.refresh_statistics(engine)
    with writing(engine) as connection:
        # By itself: a partition that is new is locked until the transaction ends.
        model_no = register_model(connection, model.model_id, model.name, model.version, spec, model.labels)
    with writing(engine) as connection:
        hold_off_erasing(connection)
        rows.attach_model(connection, staging, model_no)
        rules = rows.Rules(model_no, mark_of(connection, model_no), decoder, options.force, options.limit)
        if not options.dry_run:
            # Images before failures, as commits lock them.
            reconciling.unmark_returned(connection, staging, options.as_of)
            if saw is not None and not options.is_reconciled:
                reconciling.mark_deleted(connection, staging, saw)
            if saw is not None:
                reconciling.forget_gone(connection, staging, saw)
        if retried is not None:
            reconciling.stage_due(connection, staging, rules, retried)
        rows.classify(connection, staging, rules)
        if not options.dry_run and options.as_of is None:  # What was mended by then may be broken by now.
            reconciling.forget_mended(connection, staging, model_no)
        rate = rows.measured_rate(connection, model_no)
        per_shard = DEFAULT_SHARD_IMAGES if rate is None else max(1, round(rate * options.shard_seconds))
        sizes = rows.assign_shards(connection, staging, per_shard, options.workers, options.max_shards)
    return Division(model_no, sizes)
