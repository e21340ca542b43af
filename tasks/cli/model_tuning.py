"""`./afterimage models tune-cascade`: at which margin a small model hands an image on to a large one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks import tables
from tasks.cli.model_keeping import uri_of
from tasks.settings import load_settings
from tasks.uris import absolute_uri

if TYPE_CHECKING:
    from tasks.optimisation.tuning import Tuning

MISSED = 1


def tune_cascade(
    uris: Annotated[list[str], typer.Argument(metavar="SMALL LARGE", help="Two model URIs with the same labels.")],
    judge: Annotated[str, typer.Option(help="Images that both predict: s3://BUCKET/PREFIX or a folder.")],
    labels: Annotated[
        Path | None, typer.Option(help="A CSV with the columns key and label (name or index), for accuracies.")
    ] = None,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="The share of images to which the cascade must give LARGE's answer.")
    ] = 0.98,
    holdout: Annotated[
        float, typer.Option(min=0, max=0.9, help="The share of images that report, and do not choose the margin.")
    ] = 0.5,
    judge_images: Annotated[int | None, typer.Option(min=1, help="Use at most so many images.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else.")] = False,
) -> None:
    """Find the smallest margin at which a cascade of two models agrees with the large one."""
    if len(uris) != 2:
        raise typer.BadParameter(
            f"it takes two models, SMALL and LARGE, and got {len(uris)}. Tune a longer cascade two at a time: each model "
            "against the next one"
        )
    from tasks.models.cascade import Model
    from tasks.models.resolving import resolve_model
    from tasks.optimisation import tuning
    from tasks.optimisation.sample import list_sample
    from tasks.optimisation.truth import read_truth

    here, settings = Path.cwd(), load_settings()
    uris, judge = [uri_of(uri, settings) for uri in uris], absolute_uri(judge, here)
    small, large = (resolve_model(uri, settings) for uri in uris)
    Model((small, large), (1.0,))  # Refuses other labels before it reads any image.
    images = list_sample(judge, settings, judge_images)
    truth = {} if labels is None else read_truth(labels, large.labels, [image.key for image in images])
    seen, rates = tuning.see((small, large), judge, images, settings)
    tuned = tuning.tune((small, large), seen, rates, truth, min_agreement, holdout)
    _show(tuned, uris, as_json)
    if not tuned.is_reached:
        raise typer.Exit(MISSED)


def _show(tuned: Tuning, uris: list[str], as_json: bool) -> None:
    toml = _toml(tuned, uris)
    if as_json:
        typer.echo(tables.to_json({**tuned.plain(), "toml": toml}))
        return
    rows = [{**tuned.row(one), "chosen": one.margin == tuned.chosen.margin} for one in tuned.table]
    tables.show(rows, _columns(has_labels=tuned.reported.labelled > 0), "", as_json=False)
    typer.echo("\n".join(map(tables.printable, _notes(tuned))))
    typer.echo(f"\n{toml}")


def _columns(*, has_labels: bool) -> tables.Columns:
    def share(name: str) -> tables.Cell:
        return lambda row: f"{row[name]:.2%}"

    columns: dict[str, tables.Cell] = {
        "margin": lambda row: f"{row['margin']:.4f}",
        "agreement": share("agreement"),
        "95% between": lambda row: f"{row['agreement_from']:.1%} and {row['agreement_to']:.1%}",
        "goes on": share("share_that_goes_on"),
        "forward images/s": lambda row: f"{row['images_per_second']:,.0f}",
    }
    if has_labels:
        columns["accuracy"] = share("accuracy")
    return {**columns, "": lambda row: "<- chosen" if row["chosen"] else ""}


def _notes(tuned: Tuning) -> list[str]:
    """What the table's figures mean, and what to think of them."""
    small, large = (bundle.spec.name for bundle in tuned.models)
    chosen, reported, value = tuned.chosen, tuned.reported, tuned.plain()
    notes = [
        f"Margin {chosen.margin:.4f}, chosen on {chosen.images:,} images, of which one is {1 / chosen.images:.2%}: it agrees "
        f"with {large} on {chosen.agreement:.2%} of them, and {chosen.share:.2%} go on.",
        f"The table is of {reported.images:,} other images."
        if tuned.is_held_out
        else "The table is of the same images, so it is brighter than what comes: hold some out with --holdout 0.5.",
        f"Forward passes alone: {small} {tuned.rates[0]:,.0f} and {large} {tuned.rates[1]:,.0f} images/s here; the table's "
        "rates follow from them and the share that goes on. Reading and decoding are not in them.",
    ]
    if reported.labelled:
        accuracies = " and ".join(
            f"{model['name']} {model['accuracy']:.2%}" for model in value["models"] if model["accuracy"] is not None
        )
        notes.append(f"Accuracy alone, on {reported.labelled:,} images with labels: {accuracies}.")
    if value["reported_on"]["images_per_second"] <= tuned.rates[1]:
        notes.append(f"This cascade is no faster than {large} alone: take {large}, or a smaller first model.")
    if not tuned.is_reached:
        notes.append(
            f"On these images it agrees on {reported.agreement:.2%} only, and {tuned.min_agreement:.2%} was asked for: tune on "
            "more images, or take a larger margin from the table."
        )
    return notes


def _toml(tuned: Tuning, uris: list[str]) -> str:
    """The lines for pipelines.toml. Where the small model is enough, it is no cascade."""
    said = [json.dumps(uri, ensure_ascii=False) for uri in uris]
    if tuned.chosen.margin == 0:
        return f"model = {said[0]}  # it agrees often enough alone"
    return f"model = [{said[0]}, {said[1]}]\ncascade_margin = {tuned.chosen.margin:g}"
