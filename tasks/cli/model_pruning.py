"""`./afterimage models prune`: fewer channels, and a recovery without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tasks import progress
from tasks.cli.model_keeping import AsJson, uri_of
from tasks.cli.model_optimising import JudgeImages, Labels, MaxAccuracyDrop, MinAgreement, Rounds, To, tell
from tasks.settings import load_settings
from tasks.uris import absolute_uri


def prune(
    bundle: Annotated[str, typer.Argument(help="The model to begin with: any model URI of an architecture.")],
    channels: Annotated[float, typer.Option(min=0.01, max=0.9, help="The share of channels to remove, such as 0.3.")],
    judge: Annotated[str, typer.Option(help="Images that judge the new model: s3://BUCKET/PREFIX or a folder.")],
    distil: Annotated[
        str | None,
        typer.Option(
            help="Images to learn from, without labels, such as it will see. Where they are --judge's, some teach."
        ),
    ] = None,
    labels: Labels = None,
    ranking: Annotated[
        Literal["global", "layer"],
        typer.Option(help="Remove the share of all layers together, or of each layer alike."),
    ] = "global",
    epochs: Annotated[int, typer.Option(min=1, help="How often to go through the images.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other crops.")] = 0,
    min_agreement: MinAgreement = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    distil_images: Annotated[
        int | None, typer.Option(min=1, help="Learn from so many; default: all that do not judge.")
    ] = None,
    judge_images: JudgeImages = None,
    rounds: Rounds = 7,
    name: Annotated[str | None, typer.Option(help="Name of the new bundle; default: OLD-pruned.")] = None,
    to: To = None,
    as_json: AsJson = False,
) -> None:
    """Make a model of fewer channels, teach it by the original, and keep it only where it is still right."""
    from tasks.optimisation import recovering
    from tasks.optimisation.distilling import Distillation
    from tasks.optimisation.pruning import Pruning

    here, settings = Path.cwd(), load_settings()
    request = recovering.Request(
        model=uri_of(bundle, settings),
        pruning=Pruning(channels, ranking),
        judge=absolute_uri(judge, here),
        distil=None if distil is None else absolute_uri(distil, here),
        plan=Distillation(epochs=epochs, seed=seed),
        labels=labels,
        min_agreement=min_agreement,
        max_accuracy_drop=max_accuracy_drop,
        distil_images=distil_images,
        judge_images=judge_images,
        name=name,
        to=None if to is None else to.absolute(),
        rounds=rounds,
    )
    with progress.training(quiet=as_json) as bar:
        produced = recovering.recover(request, settings, bar.advance)
    tell(produced, _facts(produced.content["making"]), as_json)


def _facts(making: dict[str, Any]) -> list[str]:
    """What the maker says, in a line for each."""
    return [f"{name}: {_figure(value)}" for name, value in making.items()]


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
