"""What makes a smaller bundle of another precision. A maker is a file here and an entry in MAKERS.

Its module has `make(task, folder)`, which fills the folder with a whole bundle and gives the facts for the report.

quantising.py   int8 for OpenVINO on a CPU, through NNCF
qdq.py          int8 for TensorRT on a GPU, through NNCF, as a graph of ONNX
halving.py      bf16 and fp16: the same network with weights of two bytes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tasks.errors import ConfigurationError
from tasks.models.bundle import Bundle
from tasks.models.spec import Option, Precision
from tasks.optimisation.choosing import Sample
from tasks.optimisation.figures import Gate
from tasks.optimisation.truth import Truth
from tasks.settings import Settings

ACCURACY_AWARE = "--accuracy-aware"


@dataclass(frozen=True)
class Task:
    """What a maker is given. `taught` are the images to calibrate with, where the maker needs any."""

    original: Bundle
    name: str
    precision: Precision
    settings: Settings
    gate: Gate
    taught: Sample | None = None
    truth: Truth | None = None
    is_accuracy_aware: bool = False


@dataclass(frozen=True)
class Maker:
    """A way to make a bundle: the precision that it gives, the runtime that it is for, and what it needs."""

    precision: Precision
    runtime: str
    module: str
    needs_images: bool = False
    can_be_accuracy_aware: bool = False
    device: str | None = None
    """Where its bundles run, and so where they are judged; what the settings say where it is None."""
    advice: tuple[str, ...] = ()
    """What to try where its bundle misses the gate, besides a looser one."""

    @property
    def suffix(self) -> str:
        """What the new bundle's name ends in, where none is given."""
        is_first = next(maker for maker in MAKERS if maker.precision == self.precision) is self
        return f"-{self.precision}" if is_first else f"-{self.precision}-{self.runtime}"

    def advises(self, is_accuracy_aware: bool) -> str:
        """What to try, in words, without what was tried."""
        untried = [advice for advice in self.advice if not (is_accuracy_aware and advice == ACCURACY_AWARE)]
        return ", or ".join((*untried, "a looser gate"))

    def make(self, task: Task, folder: Path) -> Mapping[str, Option]:
        """Fill the folder with a bundle. Raises ModelError or ConfigurationError where this bundle cannot be made."""
        make: Callable[[Task, Path], Mapping[str, Option]] = import_module(f"tasks.optimisation.{self.module}").make
        return make(task, folder)


# The first that makes a precision is used, or the one for the runtime that was asked for.
MAKERS = (
    Maker(
        "int8",
        "openvino",
        "quantising",
        needs_images=True,
        can_be_accuracy_aware=True,
        device="cpu",
        advice=("more calibration images (--calibrate-images)", ACCURACY_AWARE),
    ),
    Maker("int8", "tensorrt", "qdq", needs_images=True, advice=("more calibration images (--calibrate-images)",)),
    Maker("bf16", "torch", "halving", advice=("--precision fp16",)),
    Maker("fp16", "torch", "halving", advice=("--precision bf16",)),
)


def choose_maker(precision: str, runtime: str | None = None) -> Maker:
    """The maker for a precision. Raises ConfigurationError with those that there are."""
    for maker in MAKERS:
        if maker.precision == precision and runtime in (None, maker.runtime):
            return maker
    there = ", ".join(f"{maker.precision} for {maker.runtime}" for maker in MAKERS)
    raise ConfigurationError(
        f"Nothing here makes {precision}{'' if runtime is None else f' for {runtime}'}. There is: {there}."
    )
