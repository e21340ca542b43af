"""`./afterimage models add`: from a name, a file or a folder to a bundle that is kept."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tasks import tables
from tasks.cli.model_keeping import AsJson, described, resolve
from tasks.errors import ConfigurationError
from tasks.models.bundle import Bundle, read_bundle
from tasks.settings import Settings, load_settings

CODE = ("torchvision:", "timm:")
FILES = (".onnx", ".pt2")


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
    preprocessing = _given(
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        mean=_channels("--mean", mean),
        std=_channels("--std", std),
        decode=decode,
    )
    with tempfile.TemporaryDirectory() as scratch:
        if source.endswith(FILES):
            proof = _given(trusted=trusted or None, sha256=sha256)
            made = _of_file(Path(source), Path(scratch), labels, preprocessing, proof)
            preprocessing = {}  # It is in the file's graph now.
        else:
            made = _bundle(source, settings, weights, labels)
        kept = shelf.add(_changed(made, preprocessing, _given(name=name, version=version, top_k=top_k)), settings)
    facts = described(kept, settings)
    typer.echo(
        tables.to_json(facts) if as_json else f"{kept.spec.name} is kept in {kept.folder}. It is {kept.model_id}."
    )


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def _bundle(source: str, settings: Settings, weights: Path | None, labels: Path | None) -> Bundle:
    if not source.startswith(CODE) and (weights or labels):
        raise ConfigurationError(
            f"--weights and --labels belong to {', '.join(CODE)} and to files, and {source} has its own. Leave them out."
        )
    files = [f"{key}={quote(str(path))}" for key, path in (("weights", weights), ("labels", labels)) if path]
    return resolve(source + ("&" if "?" in source else "?") * bool(files) + "&".join(files), settings)


def _of_file(
    file: Path, folder: Path, labels: Path | None, preprocessing: dict[str, Any], proof: dict[str, Any]
) -> Bundle:
    from tasks.models.sources import IMAGENET
    from tasks.models.sources.exported_source import from_exported
    from tasks.models.sources.onnx_source import from_onnx

    if labels is None:
        raise ConfigurationError(
            f"{file} does not say what its outputs are called. Give --labels FILE, one label a line."
        )
    spec = replace(IMAGENET, **preprocessing)
    if file.suffix == ".onnx":
        proof.pop("trusted", None)
        from_onnx(folder, file, labels=labels, preprocessing=spec, **proof)
    else:
        from_exported(folder, file, labels=labels, preprocessing=spec, **proof)
    return read_bundle(folder)


def _changed(bundle: Bundle, preprocessing: dict[str, Any], others: dict[str, Any]) -> Bundle:
    """The bundle as the options want it, checked as a manifest is."""
    from tasks.models.manifest import check_manifest

    spec = bundle.spec
    changed = replace(spec, preprocessing=replace(spec.preprocessing, **preprocessing), **others)
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
