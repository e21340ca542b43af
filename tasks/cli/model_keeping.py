"""`./afterimage models list`, `show`, `verify` and `remove`: the bundles that are kept by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks import tables
from tasks.errors import AfterimageError, ModelError
from tasks.models.bundle import Bundle
from tasks.pipelines import read_pipelines
from tasks.settings import Settings, load_settings
from tasks.uris import KEPT, absolute_uri

PROBLEMS = 1

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")]
Name = Annotated[str, typer.Argument(metavar="MODEL", help="A name from `models list`, or any model URI.")]


def list_models(as_json: AsJson = False) -> None:
    """List the models that are kept by name."""
    from tasks.models import shelf

    settings = load_settings()
    rows = [_row(name, settings) for name in shelf.names(settings)]
    tables.show(rows, tables.MODELS, "No model yet. Add one: ./afterimage models add torchvision:resnet18", as_json)


def show(model: Name, as_json: AsJson = False) -> None:
    """Show what a bundle says, its files, and what runs it here."""
    settings = load_settings()
    found = described(resolve(model, settings), settings)
    if as_json:
        typer.echo(tables.to_json(found))
        return
    rows = [{"key": key, "value": value} for key, value in _flat(found)]
    tables.show(rows, tables.FACTS, "", as_json=False)


def verify(
    model: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Names or URIs; all that are kept.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every file against its sha256, load the network, and predict two images with it."""
    from tasks.models import shelf

    settings = load_settings()
    rows = [_verified(one, settings) for one in model or shelf.names(settings)]
    tables.show(rows, tables.FINDINGS, "No model yet.", as_json)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(PROBLEMS)


def remove(
    name: Annotated[str, typer.Argument(help="A name from `models list`.")],
    force: Annotated[bool, typer.Option("--force", help="Also where a pipeline uses it.")] = False,
) -> None:
    """Take a model away. What it predicted stays in the cache."""
    from tasks.models import shelf

    settings = load_settings()
    users = [] if force else _users(name, settings)
    if users:
        raise ModelError(
            f"{name} is the model of {', '.join(users)} in {settings.pipelines}. Give them another model first, or use --force."
        )
    shelf.remove(name, settings)
    typer.echo(f"Removed {name}. Its predictions stay in the cache.")


def resolve(model: str, settings: Settings) -> Bundle:
    """The bundle of a name or a URI; relative paths are taken from the working folder."""
    from tasks.models.resolving import resolve_model

    return resolve_model(uri_of(model, settings), settings)


def uri_of(model: str, settings: Settings) -> str:
    """The URI of what a person types: the name of a model that is kept, or any URI. A folder of that name is ./NAME."""
    from tasks.models import shelf

    return f"{KEPT}{model}" if model in shelf.names(settings) else absolute_uri(model, Path.cwd())


def described(bundle: Bundle, settings: Settings) -> dict[str, Any]:
    """All that a bundle says, as plain values."""
    from tasks.models.runtimes import choose_device, runtimes_of

    device = choose_device(settings)
    return {
        **bundle.spec.plain(),
        "model_id": bundle.model_id,
        "labels": f"{len(bundle.labels):,} in {bundle.spec.labels}",
        "folder": str(bundle.folder),
        "bytes": sum(file.stat().st_size for file in bundle.files),
        f"runtimes on {device}": ", ".join(runtimes_of(bundle, device)) or "none",
    }


def _row(name: str, settings: Settings) -> dict[str, Any]:
    """A line of the list; a bundle that is broken is shown with what is wrong with it."""
    from tasks.models import shelf

    try:
        bundle = shelf.find(name, settings)
        spec = bundle.spec
        return {
            "name": name,
            "version": spec.version,
            "architecture": spec.architecture,
            "precision": spec.precision,
            "labels": len(bundle.labels),
            "bytes": sum(file.stat().st_size for file in bundle.files),
            "model_id": bundle.model_id,
            "problem": None,
        }
    except ModelError as error:
        empty = dict.fromkeys(("version", "architecture", "precision", "labels", "bytes", "model_id"))
        return {"name": name, **empty, "problem": str(error)}


def _verified(model: str, settings: Settings) -> dict[str, Any]:
    from tasks.models import shelf

    try:
        bundle = resolve(model, settings)
        model_id = bundle.model_id
        shelf.try_out(bundle, settings)
    except AfterimageError as error:
        return {"check": model, "ok": False, "finding": str(error)}
    pins = "its files are what model.toml pins" if bundle.spec.files else "model.toml pins no file"
    return {"check": model, "ok": True, "finding": f"model_id {model_id[:12]}; {pins}; it loads and predicts"}


def _users(name: str, settings: Settings) -> list[str]:
    """Pipelines whose model this is."""
    if not settings.pipelines.is_file():
        return []
    pipelines, _ = read_pipelines(settings.pipelines)
    return [pipeline.name for pipeline in pipelines.values() if f"{KEPT}{name}" in pipeline.models]


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested tables as dotted keys, as TOML writes them."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return lines
