"""A model in another precision: choose the images, make the bundle, judge it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tasks.errors import ConfigurationError
from tasks.models.resolving import resolve_model
from tasks.models.shelf import NAME
from tasks.optimisation.choosing import Sample, choose_judging, choose_samples
from tasks.optimisation.figures import Gate
from tasks.optimisation.making import Maker, Task, choose_maker
from tasks.optimisation.measuring import ROUNDS
from tasks.optimisation.producing import Order, Produced, produce, refuse_existing
from tasks.optimisation.truth import Truth, read_truth
from tasks.settings import Settings

MAX_ACCURACY_DROP, MIN_AGREEMENT = 0.02, 0.98


@dataclass(frozen=True)
class Request:
    """What `./afterimage models optimise` is asked for; URIs and numbers as its help says."""

    model: str
    precision: str
    judge: str
    calibrate: str | None = None
    labels: Path | None = None
    min_agreement: float | None = None
    max_accuracy_drop: float | None = None
    calibrate_images: int | None = None
    judge_images: int | None = None
    is_accuracy_aware: bool = False
    runtime: str | None = None
    name: str | None = None
    to: Path | None = None
    rounds: int = ROUNDS


def optimise(request: Request, settings: Settings) -> Produced:
    """Make and judge the bundle. Raises ConfigurationError where the request makes no sense, ModelError where the model
    cannot be made so; what misses the gate is no error, but Produced says so."""
    maker = choose_maker(request.precision, request.runtime)
    gate = gate_of(request.labels is not None, request.min_agreement, request.max_accuracy_drop)
    _check(request, maker)
    if maker.device is not None:
        settings = settings.model_copy(update={"device": maker.device})
    original = resolve_model(request.model, settings)
    name = name_of(request.name, f"{original.spec.name}{maker.suffix}")
    folder = request.to or settings.models / name
    refuse_existing(folder)
    taught, judged = _samples(request, settings)
    truth = _truth(request.labels, original.labels, judged, taught)
    task = Task(
        original=original,
        name=name,
        precision=maker.precision,
        settings=settings,
        gate=gate,
        taught=taught,
        truth=truth,
        is_accuracy_aware=request.is_accuracy_aware,
    )
    order = Order(
        folder=folder,
        report=settings.home / "reports" / name,
        judged=judged,
        gate=gate,
        truth=truth,
        advice=maker.advises(request.is_accuracy_aware),
        rounds=request.rounds,
    )
    return produce(original, lambda scratch: maker.make(task, scratch), order, settings)


def gate_of(has_labels: bool, min_agreement: float | None, max_accuracy_drop: float | None) -> Gate:
    """The bounds that were asked for, or the default: the accuracy where there are labels, else the agreement."""
    if has_labels:
        return Gate(MAX_ACCURACY_DROP if max_accuracy_drop is None else max_accuracy_drop, min_agreement)
    if max_accuracy_drop is not None:
        raise ConfigurationError("--max-accuracy-drop needs labels. Give --labels CSV, or ask for --min-agreement.")
    return Gate(min_agreement=MIN_AGREEMENT if min_agreement is None else min_agreement)


def name_of(wanted: str | None, default: str) -> str:
    """The new bundle's name, which is a folder's name too. Raises ConfigurationError where it is none."""
    name = default if wanted is None else wanted
    if not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for a bundle: it names a folder. "
            "Give --name with letters, digits, `_`, `.` and `-`, a letter or digit first."
        )
    return name


def _check(request: Request, maker: Maker) -> None:
    what = f"--precision {maker.precision}"
    if maker.needs_images and request.calibrate is None:
        raise ConfigurationError(
            f"{what} needs images to calibrate with. Give --calibrate URI; it may be the one of --judge, of whose images "
            "some then calibrate and the others judge."
        )
    if not maker.needs_images and (request.calibrate is not None or request.calibrate_images is not None):
        raise ConfigurationError(f"{what} needs no images to calibrate with. Leave --calibrate out.")
    if request.is_accuracy_aware and not maker.can_be_accuracy_aware:
        raise ConfigurationError(f"{what} has nothing that --accuracy-aware could choose. Leave it out.")


def _samples(request: Request, settings: Settings) -> tuple[Sample | None, Sample]:
    if request.calibrate is None:
        return None, choose_judging(request.judge, settings, request.judge_images)
    return choose_samples(request.calibrate, request.judge, settings, request.calibrate_images, request.judge_images)


def _truth(path: Path | None, labels: tuple[str, ...], judged: Sample, taught: Sample | None) -> Truth:
    if path is None:
        return {}
    also = () if taught is None else taught.images
    return read_truth(path, labels, (image.key for image in judged.images), (image.key for image in also))
