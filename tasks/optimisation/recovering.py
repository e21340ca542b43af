"""A pruned model, taught by the one that it was made from: choose the images, prune, distil, judge."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tasks.errors import ConfigurationError, ModelError
from tasks.location import parse_location
from tasks.models.bundle import Bundle, read_bundle, write_bundle
from tasks.models.loading import DTYPES, Classifier, load_classifier, wrap
from tasks.models.resolving import resolve_model
from tasks.models.spec import ModelSpec, Option, Preprocessing
from tasks.optimisation.checkpoints import Checkpoints
from tasks.optimisation.choosing import Sample, choose_judging, choose_samples
from tasks.optimisation.comparing import compare
from tasks.optimisation.costs import cost_of
from tasks.optimisation.distilling import Distillation, OnStep, distil
from tasks.optimisation.figures import accuracy_of, agreement_of
from tasks.optimisation.importance import moments_of
from tasks.optimisation.measuring import ROUNDS
from tasks.optimisation.optimising import gate_of, name_of
from tasks.optimisation.producing import Facts, Order, Produced, produce, refuse_existing
from tasks.optimisation.pruning import Pruned, Pruning, prune
from tasks.optimisation.reconstructing import IMAGES, reconstruct
from tasks.optimisation.sample import read_crops
from tasks.optimisation.truth import Truth, read_truth
from tasks.settings import Settings

# Rises when the same key would stand for another student.
SCHEME = 1

ADVICE = (
    "more --epochs (the same command with a higher number goes on from where this one ended), more images for --distil, "
    "fewer --channels, or a looser gate"
)


@dataclass(frozen=True)
class Request:
    """What `./afterimage models prune` is asked for; URIs and numbers as its help says."""

    model: str
    pruning: Pruning
    judge: str
    distil: str | None = None
    plan: Distillation = field(default_factory=Distillation)
    labels: Path | None = None
    min_agreement: float | None = None
    max_accuracy_drop: float | None = None
    distil_images: int | None = None
    judge_images: int | None = None
    name: str | None = None
    to: Path | None = None
    rounds: int = ROUNDS


def recover(request: Request, settings: Settings, on_step: OnStep) -> Produced:
    """Make and judge the bundle. Raises ConfigurationError where the request makes no sense, ModelError where the model
    cannot be pruned; what misses the gate is no error, but Produced says so."""
    gate = gate_of(request.labels is not None, request.min_agreement, request.max_accuracy_drop)
    original = resolve_model(request.model, settings)
    if original.spec.form != "torch":
        raise ModelError(
            f"{original.folder} holds its network in the form {original.spec.form}, and channels are pruned of an architecture "
            "that is code. Prune the bundle that it was made from, and convert or quantise what comes out."
        )
    name = name_of(request.name, f"{original.spec.name}-pruned")
    folder = request.to or settings.models / name
    refuse_existing(folder)
    taught, judged = _samples(request, settings)
    truth: Truth = {}
    if request.labels is not None:
        truth = read_truth(request.labels, original.labels, (image.key for image in judged.images))
    work = _Work(original, name, request, taught, judged, truth, settings, on_step)
    order = Order(folder, settings.home / "reports" / name, judged, gate, truth, ADVICE, request.rounds)
    return produce(original, work.make, order, settings)


def _samples(request: Request, settings: Settings) -> tuple[Sample | None, Sample]:
    if request.distil is None:
        return None, choose_judging(request.judge, settings, request.judge_images)
    count = request.distil_images
    if count is None and parse_location(request.distil) != parse_location(request.judge):
        count = sys.maxsize  # images that judge nothing can all teach
    return choose_samples(request.distil, request.judge, settings, count, request.judge_images)


def checkpoints_of(original: Bundle, pruning: Pruning, plan: Distillation, taught: Sample, home: Path) -> Checkpoints:
    """Where this distillation keeps its state: one place for the same teacher, pruning, images and way to teach.

    The number of epochs is no part of it, so that more of them go on from what is there.
    """
    way = {key: value for key, value in asdict(plan).items() if key != "epochs"}
    images = hashlib.sha256(repr([(image.key, image.etag) for image in taught.images]).encode()).hexdigest()
    identity = [SCHEME, original.model_id, asdict(pruning), way, images]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode("ascii")).hexdigest()
    return Checkpoints(home / "distilling" / key[:32])


@dataclass(frozen=True)
class _Work:
    """What it takes to make the bundle."""

    original: Bundle
    name: str
    request: Request
    taught: Sample | None
    judged: Sample
    truth: Truth
    settings: Settings
    on_step: OnStep

    def make(self, folder: Path) -> Facts:
        """Fill the folder with the pruned bundle; see producing.Make."""
        preprocessing = self.original.spec.preprocessing
        # Taught in fp32, whatever the bundle declares.
        spec = replace(self.original.spec, precision="fp32")
        teacher = load_classifier(replace(self.original, spec=spec))
        images = None if self.taught is None else some_images(self.taught, teacher, preprocessing, self.settings)
        moments = None if images is None else moments_of(teacher.network, images)
        pruned = prune(teacher.network, self.request.pruning, preprocessing.crop, moments)
        network = pruned.network
        before, after = (cost_of(each, preprocessing.crop) for each in (teacher.network, network))
        facts: dict[str, Option] = {
            "parameters before": before.parameters,
            "parameters after": after.parameters,
            "multiply-accumulates of an image before": before.macs,
            "multiply-accumulates of an image after": after.macs,
        }
        epochs = 0
        if self.taught is not None and images is not None:
            facts |= self._unrecovered(network)
            losses = self._teach(teacher, pruned, self.taught, images)
            epochs = len(losses)
            facts |= {
                "images that taught": len(self.taught.images),
                "epochs": epochs,
                "loss of the first epoch": losses[0],
                "loss of the last epoch": losses[-1],
            }
        write_pruned(folder, network, self._spec(epochs), self.original.labels)
        return facts

    def _teach(self, teacher: Classifier, pruned: Pruned, taught: Sample, images: Tensor) -> list[float]:
        """Fit the weights that are left, and distil; or go on distilling. Returns the loss of each epoch."""
        plan, pruning = self.request.plan, self.request.pruning
        checkpoints = checkpoints_of(self.original, pruning, plan, taught, self.settings.home)
        student = wrap(pruned.network, replace(self.original.spec, precision="fp32"))
        with checkpoints.held():
            if not checkpoints.there():
                reconstruct(teacher.network, pruned, images)
            preprocessing = self.original.spec.preprocessing
            return distil(teacher, student, taught, preprocessing, plan, checkpoints, self.settings, self.on_step)

    def _unrecovered(self, network: nn.Module) -> Mapping[str, Option]:
        """How right the pruned network is before it is taught anything."""
        with tempfile.TemporaryDirectory() as scratch:
            write_pruned(Path(scratch), network, self._spec(0), self.original.labels)
            comparison = compare([self.original, read_bundle(Path(scratch))], self.judged, self.settings)
        facts: dict[str, Option] = {"agreement before recovery": agreement_of(*comparison.answers).share}
        if self.truth:
            facts["accuracy before recovery"] = accuracy_of(comparison, 1, self.truth).share
        return facts

    def _spec(self, epochs: int) -> ModelSpec:
        pruning, plan = self.request.pruning, self.request.plan
        worth = "magnitude" if self.taught is None else "what they carry"
        method = f"{pruning.channels:g} of the channels removed by {worth}, ranking: {pruning.ranking}"
        provenance: dict[str, Option] = {
            "made_from": self.original.model_id,
            "method": method,
            "torch_pruning": version("torch-pruning"),
        }
        if self.taught is not None and epochs:
            provenance |= {
                "distilled_epochs": epochs,
                "distilled_images": len(self.taught.images),
                "seed": plan.seed,
            }
        return replace(
            self.original.spec,
            name=self.name,
            weights="weights.safetensors",
            labels="labels.txt",
            pruned=True,
            files={},
            provenance=provenance,
        )


def some_images(sample: Sample, classifier: Classifier, preprocessing: Preprocessing, settings: Settings) -> Tensor:
    """At most IMAGES of a sample, from all over it: float [n, 3, crop, crop], normalised. Raises ConfigurationError where none
    can be read."""
    step = max(1, len(sample.images) // IMAGES)
    chosen = sample.images[::step][:IMAGES]
    groups = [crops.pixels for crops in read_crops(sample.uri, chosen, preprocessing, settings) if crops.keys]
    if not groups:
        raise ConfigurationError(
            f"None of {len(chosen):,} images under {sample.uri} could be read. The warnings above say why."
        )
    pixels = torch.from_numpy(np.concatenate(groups)).float()
    return (pixels * classifier.scale + classifier.shift).permute(0, 3, 1, 2)


def write_pruned(folder: Path, network: nn.Module, spec: ModelSpec, labels: tuple[str, ...]) -> None:
    """Write a network as a bundle into a folder that exists, with weights in the precision that the spec declares."""
    from safetensors.torch import save

    dtype = DTYPES[spec.precision]
    state = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in network.state_dict().items()
    }
    write_bundle(folder, spec, labels, save(state))
