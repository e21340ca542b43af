"""The worker function, the same on every engine: one shard, from its descriptor to committed rows.

Airflow's mapped tasks, the processes of the command line and the actors of a Ray cluster call it. A Worker is a process
that does many shards and loads the model once; predict_shard is for a process that does one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sqlalchemy import Engine

from tasks.cache.commits import Scope
from tasks.cache.database import cache_name, connect
from tasks.cache.ledger import ShardLedger
from tasks.cache.migrating import prepare
from tasks.errors import ConfigurationError, DatabaseUnavailable, ModelChanged
from tasks.location import parse_location
from tasks.models.cascade import Model, resolve_models
from tasks.observation import Observation
from tasks.plan import ShardDescriptor
from tasks.settings import Settings
from tasks.storage import open_store
from tasks.storage.thumbnails import ThumbnailStore, open_thumbnails

if TYPE_CHECKING:
    from tasks.models.runtimes import Runtime

log = logging.getLogger(__name__)

Progress = Callable[[int], None]
Observe = Callable[[Observation], None]


def no_progress(_images: int) -> None:
    """Nobody asks how many images a commit closed."""


def no_observation(_observation: Observation) -> None:
    """Nobody asks what a commit observed."""


class Worker:
    """A process that does shards one after the other: the cache is opened once, and each model is loaded once.

    `engine` is a cache that is open already; without one the worker opens that of the settings.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.settings = settings
        self._engine = engine
        self._loaded: tuple[Model, tuple[Runtime, ...]] | None = None
        self._runtimes = ExitStack()
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the models and of the device's memory, whatever happened; a later shard loads them anew."""
        self._loaded = None
        self._runtimes.close()

    def stop(self) -> None:
        """From another thread: the shard in hand commits what is finished and raises Interrupted, and so does a later one."""
        self._stop.set()

    def predict(
        self,
        descriptor: ShardDescriptor,
        on_progress: Progress = no_progress,
        stop_after: timedelta | None = None,
        observe: Observe = no_observation,
    ) -> dict[str, int]:
        """Predict what is open in one shard; {outcome: rows} of the whole shard, as its rows show them.

        After `stop_after` it ends with a commit, and the rest is `open`. Raises ModelChanged where the bundle is not
        the one that was frozen.
        """
        from tasks.inference.shard import Shard, predict_shard

        engine = self._cache(descriptor.cache)
        model = _frozen_model(descriptor, self.settings)
        location = parse_location(descriptor.images)
        _check_source(location.source(self.settings.s3_endpoint), descriptor.source)
        store = open_store(location, self.settings)
        scope = Scope(descriptor.staging, descriptor.shard, descriptor.model_no, decoder_of(model), descriptor.force)
        ledger = ShardLedger(engine, scope)
        model, runtimes = self._load(model)
        shard = Shard(
            ledger,
            store,
            model,
            runtimes,
            self.settings,
            descriptor,
            stop_after,
            observe,
            self._stop,
            thumbnails=_thumbnails(descriptor, self.settings),
        )
        outcomes = predict_shard(shard, on_progress)
        log.info("%s: %s", descriptor.label, outcomes)
        return outcomes

    def _cache(self, expected: str) -> Engine:
        if self._engine is None:
            self._engine = open_cache(self.settings)
        check_cache(self._engine, expected)
        return self._engine

    def _load(self, model: Model) -> tuple[Model, tuple[Runtime, ...]]:
        """A runtime for each bundle of the model; those of another model make room first."""
        from tasks.models.runtimes import open_runtime

        if self._loaded is None or self._loaded[0].model_id != model.model_id:
            self.close()
            runtimes: list[Runtime] = []
            for bundle in model.stages:
                runtimes.append(open_runtime(bundle, self.settings))
                self._runtimes.callback(runtimes[-1].close)
            self._loaded = model, tuple(runtimes)
        return self._loaded


def predict_shard(
    descriptor: ShardDescriptor,
    settings: Settings,
    engine: Engine | None = None,
    on_progress: Progress = no_progress,
    stop_after: timedelta | None = None,
    observe: Observe = no_observation,
) -> dict[str, int]:
    """One shard in a process that does no other; as Worker.predict."""
    with Worker(settings, engine) as worker:
        return worker.predict(descriptor, on_progress, stop_after, observe)


def open_cache(settings: Settings, statement_timeout: timedelta | None = None) -> Engine:
    """The cache, migrated (SQLite) or checked (PostgreSQL)."""
    engine = connect(settings.database_url, statement_timeout)
    prepare(engine)
    return engine


def check_cache(engine: Engine, expected: str) -> None:
    """The steps of a run must meet in one database. Raises DatabaseUnavailable, which is tried again.

    Airflow answers a Connection that it cannot fetch for a moment as one that does not exist, and the task would go on
    with the default of its environment.
    """
    found = cache_name(engine)
    if found != expected:
        raise DatabaseUnavailable(
            f"This task would use the cache {found}, and list_images used {expected}. Give all workers the same "
            "Connection afterimage_database or AFTERIMAGE_DATABASE."
        )


def decoder_of(model: Model) -> str:
    """The versions of all decoders that the model's images go through."""
    from tasks.inference.decoding.policies import decoder_version

    policies = dict.fromkeys(bundle.spec.preprocessing.decode for bundle in model.stages)
    return "; ".join(decoder_version(policy) for policy in policies)


def _check_source(found: str, expected: str) -> None:
    if found != expected:
        raise ConfigurationError(
            f"This worker would read from {found}, and the images were listed in {expected}. Give all workers the same "
            "AFTERIMAGE_S3_ENDPOINT or Connection afterimage_storage."
        )


def _thumbnails(descriptor: ShardDescriptor, settings: Settings) -> ThumbnailStore | None:
    return None if descriptor.thumbnails is None else open_thumbnails(parse_location(descriptor.thumbnails), settings)


def _frozen_model(descriptor: ShardDescriptor, settings: Settings) -> Model:
    model = resolve_models(descriptor.models, descriptor.margins, settings)
    if model.model_id != descriptor.model_id:
        raise ModelChanged(
            f"{' + '.join(descriptor.models)} has the fingerprint {model.model_id[:12]} here, and had "
            f"{descriptor.model_id[:12]} at deduplicate. Bring back that bundle, or clear deduplicate to go on with this one."
        )
    return model
