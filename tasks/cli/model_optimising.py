"""`./afterimage models optimise` and `bench`: smaller models, and several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks import tables
from tasks.cli.model_keeping import AsJson, uri_of
from tasks.settings import load_settings
from tasks.uris import absolute_uri

if TYPE_CHECKING:
    from tasks.optimisation.producing import Produced

GATE_MISSED = 1

Labels = Annotated[Path | None, typer.Option(help="A CSV with the columns key and label (name or index).")]
Rounds = Annotated[int, typer.Option(min=1, help="Measure each model's speed so often, in turn.")]
MinAgreement = Annotated[
    float | None, typer.Option(min=0, max=1, help="The share of equal top-1 labels; 0.98 without --labels.")
]
MaxAccuracyDrop = Annotated[
    float | None, typer.Option(min=0, max=1, help="The share of accuracy that may be lost; 0.02 with --labels.")
]
To = Annotated[Path | None, typer.Option(help="The new bundle's folder; default: models/NAME in the home.")]
JudgeImages = Annotated[int | None, typer.Option(min=1, help="Judge by at most so many images.")]


def optimise(
    bundle: Annotated[str, typer.Argument(help="The model to begin with: any model URI.")],
    precision: Annotated[str, typer.Option(help="int8, bf16 or fp16.")],
    judge: Annotated[str, typer.Option(help="Images that judge the new model: s3://BUCKET/PREFIX or a folder.")],
    calibrate: Annotated[
        str | None,
        typer.Option(help="Images that int8 is calibrated with. Where they are --judge's, some calibrate."),
    ] = None,
    labels: Labels = None,
    min_agreement: MinAgreement = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    calibrate_images: Annotated[
        int | None, typer.Option(min=1, help="Calibrate with so many; 300, or half where there are fewer than 600.")
    ] = None,
    judge_images: JudgeImages = None,
    accuracy_aware: Annotated[
        bool, typer.Option("--accuracy-aware", help="Leave layers in fp32 that lose too much; takes much longer.")
    ] = False,
    rounds: Rounds = 7,
    runtime: Annotated[str | None, typer.Option("--for", help="The runtime that it is for, such as openvino.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new bundle; default: OLD-PRECISION.")] = None,
    to: To = None,
    as_json: AsJson = False,
) -> None:
    """Make a model of another precision, and keep it only where it is still right."""
    from tasks.optimisation import optimising

    here, settings = Path.cwd(), load_settings()
    request = optimising.Request(
        model=uri_of(bundle, settings),
        precision=precision,
        judge=absolute_uri(judge, here),
        calibrate=None if calibrate is None else absolute_uri(calibrate, here),
        labels=labels,
        min_agreement=min_agreement,
        max_accuracy_drop=max_accuracy_drop,
        calibrate_images=calibrate_images,
        judge_images=judge_images,
        is_accuracy_aware=accuracy_aware,
        rounds=rounds,
        runtime=runtime,
        name=name,
        to=None if to is None else to.absolute(),
    )
    produced = optimising.optimise(request, settings)
    tell(produced, (), as_json)


def tell(produced: Produced, facts: Sequence[str], as_json: bool) -> None:
    """Print what became of the order, with the maker's facts; a missed gate ends with exit code 1."""
    from tasks.optimisation import report

    if as_json:
        typer.echo(tables.to_json(produced.content))
    else:
        told = produced.content
        lines = (*report.summary(told), *facts, report.verdict(told), f"report: {produced.report}")
        typer.echo("\n".join(map(tables.printable, lines)))
    if produced.folder is None:
        raise typer.Exit(GATE_MISSED)


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['share']:.2%} ({row['count']:,} of {row['images']:,})"


def _columns(measure: str) -> tables.Columns:
    return {
        "model": lambda row: str(row["name"]),
        measure: _share,
        "forward images/s": lambda row: f"{row['images_per_second']:,.0f}",
        "decode images/s": lambda row: f"{row['decoded_per_second']:,.0f}",
        "memory MB": lambda row: "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}",
        "size MB": lambda row: f"{row['size_bytes'] / 1e6:,.2f}",
        "$ per million": lambda row: (
            "-" if row["dollars_per_million"] is None else f"{row['dollars_per_million']:,.2f}"
        ),
        "best": lambda row: "yes" if row["on_frontier"] else "",
        "runtime": lambda row: f"{row['runtime']} {row['precision']}, {row['device']}",
    }


def bench(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE...", help="Model URIs with the same labels.")],
    judge: Annotated[str, typer.Option(help="Images that they are compared on: s3://BUCKET/PREFIX or a folder.")],
    labels: Labels = None,
    judge_images: JudgeImages = None,
    cost_per_hour: Annotated[
        float | None,
        typer.Option(min=0, help="Dollars for an hour of this machine; default: AFTERIMAGE_COST_PER_HOUR."),
    ] = None,
    rounds: Rounds = 7,
    plot: Annotated[Path | None, typer.Option(help="Draw speed against accuracy into this .png file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare models: accuracy (or agreement with the first), speed, memory, size and cost."""
    from tasks.optimisation import benching
    from tasks.optimisation.charts import draw_frontier

    if plot is not None and (plot.suffix != ".png" or not plot.absolute().parent.is_dir()):
        raise typer.BadParameter(f"--plot {plot}: give a .png file in a folder that exists")
    here = Path.cwd()
    settings = load_settings(**({} if cost_per_hour is None else {"cost_per_hour": cost_per_hour}))
    uris = [uri_of(uri, settings) for uri in bundles]
    found = benching.bench(uris, absolute_uri(judge, here), settings, labels, judge_images, rounds)
    if plot is not None:
        draw_frontier(found["models"], found["measure"], plot)
    if as_json:
        typer.echo(tables.to_json(found))
        return
    tables.show(found["models"], _columns(found["measure"]), "", as_json=False)
    typer.echo("\n".join(map(tables.printable, _notes(found))))


def _notes(found: Mapping[str, Any]) -> list[str]:
    """What the table's figures mean."""
    judged = found["judged"]
    notes = [
        f"Judged on {judged['images']:,} images of {judged['uri']}, {judged['left_out']:,} left out. {found['machine']}. "
        "Speeds are medians, measured in turn; memory is the peak above an empty process, without a GPU's own.",
    ]
    if found["cost_per_hour"] is None:
        return [*notes, "For dollars per million images give --cost-per-hour, or set AFTERIMAGE_COST_PER_HOUR."]
    return [*notes, f"Dollars are an estimate for decoding and the forward pass at {found['cost_per_hour']:g} an hour."]
