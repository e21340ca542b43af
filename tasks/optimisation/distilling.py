"""Distillation: a smaller network learns to answer as the original does, on the user's own images and without labels.

The student is taught the teacher's scores for every class, softened by a temperature (Hinton, Vinyals and Dean,
arXiv:1503.02531). Both see the same random crop of each image, because a teacher that answers for other pixels teaches
something wrong (Beyer and others, arXiv:2106.05237). Which crop it is follows from seed and epoch alone, so that a
distillation that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.errors import ConfigurationError, ModelError
from tasks.models.runtimes import choose_device
from tasks.models.spec import Preprocessing
from tasks.optimisation.checkpoints import Checkpoints
from tasks.optimisation.choosing import Sample
from tasks.optimisation.sample import read_crops
from tasks.processors import cores
from tasks.settings import Settings

Pixels = npt.NDArray[np.uint8]

WARM_UP = 0.05  # of all steps: the optimiser's averages mean nothing before


@dataclass(frozen=True)
class Distillation:
    """How a student is taught. `batch` is in images.

    `learning_rate` is the highest one. Fitted weights are worth keeping: with ten times as much, SqueezeNet 1.0 lost what the
    fit had brought back (24 of 100 photographs seen as before) and agreed on none after 6 epochs over 100 others.
    """

    epochs: int = 10
    batch: int = 16
    learning_rate: float = 5e-5
    temperature: float = 2.0
    weight_decay: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """Where a distillation stands: `images` of `of` in epoch `epoch` (from 1) of `epochs`; the loss of the last batch."""

    epoch: int
    epochs: int
    images: int
    of: int
    loss: float


OnStep = Callable[[Step], None]


def distil(
    teacher: nn.Module,
    student: nn.Module,
    sample: Sample,
    preprocessing: Preprocessing,
    plan: Distillation,
    checkpoints: Checkpoints,
    settings: Settings,
    on_step: OnStep,
) -> list[float]:
    """Teach the student in place, and return the mean loss of each epoch. Both take uint8 [n, crop, crop, 3].

    The caller holds the checkpoints. Goes on from the newest one, which is taken as it is where it has as many epochs as are
    asked for, or more. Raises ConfigurationError where no image can be read, ModelError where the loss is not finite.
    """
    torch.set_num_threads(min(torch.get_num_threads(), cores()))
    device = choose_device(settings)
    teacher.to(device).eval()
    student.to(device)
    optimiser = torch.optim.AdamW(student.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    losses = checkpoints.restore(student, optimiser)
    lessons = _Lessons(sample, preprocessing, plan, settings)
    if not losses:
        _settle(student, lessons, device)
    for epoch in range(len(losses), plan.epochs):
        losses.append(_epoch(teacher, student, optimiser, lessons, epoch, device, on_step))
        checkpoints.write(student, optimiser, losses)
    teacher.cpu()
    student.cpu().eval()
    return losses


@dataclass(frozen=True)
class _Lessons:
    """The images of an epoch, in batches."""

    sample: Sample
    preprocessing: Preprocessing
    plan: Distillation
    settings: Settings

    @property
    def count(self) -> int:
        """Batches in an epoch, where all images can be read."""
        return math.ceil(len(self.sample.images) / self.plan.batch)

    def batches(self, epoch: int) -> Iterator[Pixels]:
        """uint8 [n, crop, crop, 3]: all images in an order of this epoch, each cropped at random.

        The order is that of the list, so that pixels are only held for the batches that are read ahead.
        """
        random = np.random.default_rng((self.plan.seed, epoch))
        images = [self.sample.images[index] for index in random.permutation(len(self.sample.images))]
        whole = replace(self.preprocessing, crop=self.preprocessing.resize)
        for crops in read_crops(self.sample.uri, images, whole, self.settings, self.plan.batch):
            if crops.keys:
                yield augment(crops.pixels, self.preprocessing.crop, random)


def augment(pixels: Pixels, crop: int, random: np.random.Generator) -> Pixels:
    """A random crop of each image, and every second one mirrored: uint8 [n, size, size, 3] to [n, crop, crop, 3].

    Mirrored digits and letters do no harm: the teacher says what it sees in them.
    """
    count, size = len(pixels), int(pixels.shape[1])
    corners = random.integers(0, size - crop + 1, (count, 2)).tolist()
    mirrored = random.integers(0, 2, count).tolist()
    cropped = np.empty((count, crop, crop, 3), np.uint8)
    for index, (top, left) in enumerate(corners):
        part = pixels[index, top : top + crop, left : left + crop]
        cropped[index] = part[:, ::-1] if mirrored[index] else part
    return cropped


def _settle(student: nn.Module, lessons: _Lessons, device: str) -> None:
    """Means and variances of BatchNorm are those of the wide network: take them anew, over the sample."""
    norms = _norms(student)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    _learn_mode(student)
    with torch.inference_mode():
        for pixels in lessons.batches(0):
            student(torch.from_numpy(pixels).to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _norms(student: nn.Module) -> list[_BatchNorm]:
    return [module for module in student.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def _learn_mode(student: nn.Module) -> None:
    """BatchNorm follows the batches; dropout and the like stay off, because the teacher's answer has no noise in it."""
    student.eval()
    for norm in _norms(student):
        norm.train()


def _epoch(
    teacher: nn.Module,
    student: nn.Module,
    optimiser: torch.optim.Optimizer,
    lessons: _Lessons,
    epoch: int,
    device: str,
    on_step: OnStep,
) -> float:
    """One pass over the images; returns the mean loss of an image."""
    _learn_mode(student)
    plan, total, seen = lessons.plan, 0.0, 0
    for number, pixels in enumerate(lessons.batches(epoch)):
        if len(pixels) == 1 and seen:
            continue  # BatchNorm has no variance of one image
        _set_rate(optimiser, learning_rate(plan, epoch * lessons.count + number, lessons.count))
        images = torch.from_numpy(pixels).to(device)
        with torch.inference_mode():
            taught = teacher(images)
        loss = distance(student(images), taught.clone(), plan.temperature)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        value = loss.item()
        if not math.isfinite(value):
            raise ModelError(
                f"The loss is {value} in epoch {epoch + 1}: the student diverged. Remove fewer channels (--channels)."
            )
        total, seen = total + value * len(pixels), seen + len(pixels)
        on_step(Step(epoch + 1, plan.epochs, seen, len(lessons.sample.images), value))
    if not seen:
        raise ConfigurationError(
            f"None of the {len(lessons.sample.images):,} images under {lessons.sample.uri} could be read. The warnings above "
            "say why."
        )
    return total / seen


def distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's answer is from the teacher's: logits [n, classes] each, to a scalar.

    The Kullback-Leibler divergence of the softened scores, times the square of the temperature, which keeps the gradients'
    size.
    """
    softened = functional.log_softmax(student / temperature, dim=1)
    target = functional.log_softmax(teacher / temperature, dim=1)
    return functional.kl_div(softened, target, reduction="batchmean", log_target=True) * temperature**2


def learning_rate(plan: Distillation, step: int, batches: int) -> float:
    """Up in a straight line over the first steps, then down to 0 along a cosine; `batches` are those of an epoch."""
    steps = plan.epochs * batches
    warm_up = max(1.0, WARM_UP * steps)
    return plan.learning_rate * min((step + 1) / warm_up, 0.5 * (1.0 + math.cos(math.pi * step / steps)))


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
