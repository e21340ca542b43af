"""`./afterimage models add`: from a name, a file or a folder to a bundle that is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tasks import tables
from tasks.cli.model_keeping import AsJson, described, resolve
from tasks.errors import ConfigurationError
from tasks.models.bundle import Bundle
from tasks.settings import Settings, load_settings

CODE = ("torchvision:", "timm:")


def add(
    source: Annotated[str, typer.Argument(help="torchvision:NAME, timm:NAME, FILE.onnx, FILE.pt2, or a bundle.")],
    name: Annotated[str | None, typer.Option(help="What pipelines call it; default: the source's own name.")] = None,
    version: Annotated[str | None, typer.Option(help="A word for people; no part of what the model is.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A safetensors file, for torchvision: and timm:.")] = None,
    labels: Annotated[Path | None, typer.Option(help="One label a line, in the order of the outputs.")] = None,
    resize: Annotated[int | None, typer.Option(min=1, help="Pixels of the shorter side.")] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="Pixels of the centred square.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear or bicubic.")] = None,
    mean: Annotated[str | None, typer.Option(help="Of RGB scaled to 0..1, such as 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="As --mean.")] = None,
    decode: Annotated[str | None, typer.Option(help="exact, fast or nvjpeg.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many labels a prediction keeps.")] = None,
    trusted: Annotated[
        bool, typer.Option("--trusted", help="FILE.pt2 may execute code, and you know its maker.")
    ] = False,
    sha256: Annotated[str | None, typer.Option(help="What FILE.pt2 must have.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a bundle, check it, predict two images with it, and keep it under a name."""
    from tasks.models import shelf

    settings = load_settings()
    preprocessing = {
        key: value
        for key, value in {
            "resize": resize,
            "crop": crop,
            "interpolation": interpolation,
            "mean": _channels("--mean", mean),
            "std": _channels("--std", std),
            "decode": decode,
        }.items()
        if value is not None
    }
    made = _bundle(source, settings, weights, labels)
    kept = shelf.add(_changed(made, name, version, top_k, preprocessing), settings)
    facts = described(kept, settings)
    typer.echo(
        tables.to_json(facts) if as_json else f"{kept.spec.name} is kept in {kept.folder}. It is {kept.model_id}."
    )


def _bundle(source: str, settings: Settings, weights: Path | None, labels: Path | None) -> Bundle:
    if source.startswith(CODE):
        options = [f"{key}={quote(str(path))}" for key, path in (("weights", weights), ("labels", labels)) if path]
        return resolve(source + ("&" if "?" in source else "?") * bool(options) + "&".join(options), settings)
    if weights or labels:
        raise ConfigurationError(f"--weights and --labels belong to {' and '.join(CODE)}, and {source} has its own.")
    return resolve(source, settings)


def _changed(
    bundle: Bundle, name: str | None, version: str | None, top_k: int | None, preprocessing: dict[str, Any]
) -> Bundle:
    """The bundle as the options want it, checked as a manifest is."""
    from tasks.models.manifest import check_manifest

    spec = bundle.spec
    changed = replace(
        spec,
        name=name or spec.name,
        version=version or spec.version,
        top_k=top_k or spec.top_k,
        preprocessing=replace(spec.preprocessing, **preprocessing),
    )
    return replace(bundle, spec=check_manifest(bundle.folder / "model.toml", changed.plain()))


def _channels(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise ConfigurationError(f"{option} is {text!r}. Give three numbers, such as 0.485,0.456,0.406.")
    return values
