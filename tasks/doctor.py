"""`./afterimage doctor`: is everything there that a run needs? Each finding says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tasks.cache.database import connect, described, is_sqlite
from tasks.cache.migrating import head_version, version
from tasks.errors import AfterimageError, ConfigurationError
from tasks.location import parse_location
from tasks.models.cascade import resolve_models
from tasks.models.runtimes import choose_device
from tasks.notifiers import load_notifier
from tasks.pipelines import Pipeline, find_pipeline, load_pipelines
from tasks.settings import Settings
from tasks.storage import open_store
from tasks.storage.base import ImageObject

# They come once a week at the least, and up to two days late.
OLD_INVENTORY = timedelta(days=9)


@dataclass(frozen=True)
class Finding:
    """The answer of one check."""

    check: str
    ok: bool
    finding: str


def examine(settings: Settings, name: str | None) -> list[Finding]:
    """Run every check; a check that raises is a finding too."""
    return list(_findings(settings, name))


def _findings(settings: Settings, name: str | None) -> Iterator[Finding]:
    yield _check("database", lambda: _database(settings))
    yield _check("device", lambda: f"the forward pass runs on {choose_device(settings)}")
    yield _check("pool", _pool)
    try:
        pipelines = [find_pipeline(settings.pipelines, name)] if name else load_pipelines(settings.pipelines).values()
    except ConfigurationError as error:
        yield Finding("pipelines", False, str(error))
        return
    for pipeline in pipelines:
        yield _check(f"{pipeline.name}: images", lambda pipeline=pipeline: _images(settings, pipeline))  # type: ignore[misc]
        yield _check(f"{pipeline.name}: model", lambda pipeline=pipeline: _model(settings, pipeline))  # type: ignore[misc]
        if pipeline.inventory is not None:
            yield _check(f"{pipeline.name}: inventory", lambda pipeline=pipeline: _inventory(settings, pipeline))  # type: ignore[misc]
        if pipeline.notify:
            yield _check(f"{pipeline.name}: notify", lambda pipeline=pipeline: _notifiers(pipeline))  # type: ignore[misc]


def _check(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, True, look())
    except AfterimageError as error:
        return Finding(check, False, str(error))
    except Exception as error:  # A doctor that falls over at the first surprise helps nobody.
        return Finding(check, False, f"{type(error).__name__}: {error}")


def _database(settings: Settings) -> str:
    engine = connect(settings.database_url)
    current, head = version(engine), head_version()
    where = described(engine)
    if current == head:
        return f"{where} is at version {current}"
    if is_sqlite(engine) and current is None:
        return f"{where} is empty: the first run makes its tables"
    raise ConfigurationError(f"{where} is at version {current or 'none'}, not {head}. Run ./afterimage migrate.")


def _pool() -> str:
    """Airflow schedules no task whose pool is missing; without an Airflow beside it there is no pool to check."""
    name = os.environ.get("AFTERIMAGE_POOL", "gpu")
    if "AIRFLOW_HOME" not in os.environ:
        return f"AIRFLOW_HOME is not set, so the Airflow pool {name!r} was not looked for"
    command = [sys.executable, "-m", "airflow", "pools", "get", name, "--output", "plain"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if found.returncode == 0 and name in found.stdout:
        return f"Airflow has the pool {name!r}"
    raise ConfigurationError(f"Airflow has no pool {name!r}. Run: airflow pools set {name} 1 'one slot per GPU'")


def _images(settings: Settings, pipeline: Pipeline) -> str:
    """List one page and read one object of it."""
    location = parse_location(pipeline.images)
    store = open_store(location, settings)
    prefix = location.prefix if location.template is None else location.template.stem
    page: list[ImageObject] = next(store.pages(prefix), [])
    if not page:
        return f"{pipeline.images} can be listed and holds nothing"
    blob = store.read(page[0].key, None)
    return f"{pipeline.images} can be listed and read ({page[0].key!r}: {len(blob.data):,} bytes)"


def _inventory(settings: Settings, pipeline: Pipeline) -> str:
    """The newest inventory, and how old it is: where S3 has stopped to write them, somebody should know."""
    from tasks.storage.inventory import open_inventory

    assert pipeline.inventory is not None
    manifest = open_inventory(pipeline.inventory, parse_location(pipeline.images).root, settings).manifest
    made = (
        f"{manifest.key} tells of {manifest.created:%Y-%m-%d %H:%M} UTC, in {len(manifest.files)} {manifest.form} files"
    )
    if datetime.now(UTC) - manifest.created > OLD_INVENTORY:
        raise ConfigurationError(
            f"{made}: more than {OLD_INVENTORY.days} days ago. Look at its configuration in S3, or leave `inventory` out."
        )
    return made


def _model(settings: Settings, pipeline: Pipeline) -> str:
    """The model, and of a cascade each stage with the margin below which images leave it."""
    model = resolve_models(pipeline.models, pipeline.margins, settings)
    stages = [f"{bundle.spec.name} {bundle.spec.version}" for bundle in model.stages]
    for number, margin in enumerate(model.margins):
        stages[number] += f", below a margin of {margin:g}"
    return f"{', then '.join(stages)}, {len(model.labels)} labels, model_id {model.model_id[:12]}"


def _notifiers(pipeline: Pipeline) -> str:
    """Import each notifier and see whether it takes its arguments; nothing is sent."""
    for one in pipeline.notify:
        load_notifier(pipeline.name, one)
    return ", ".join(f"{one.notifier.rpartition('.')[2]} on {', '.join(one.on)}" for one in pipeline.notify)
