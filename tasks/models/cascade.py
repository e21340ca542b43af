"""What a pipeline predicts with: one bundle, or a cascade of them.

In a cascade a cheap model answers first. An image whose margin (best score minus second) is below the cascade's margin goes
on to the next model; the last one answers whatever is left. All of that is part of the cascade's `model_id`: with another
margin it is another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from tasks.errors import ModelError
from tasks.models.bundle import Bundle
from tasks.models.fingerprint import fingerprint
from tasks.models.resolving import resolve_model
from tasks.models.spec import Preprocessing

if TYPE_CHECKING:
    from tasks.settings import Settings


@dataclass(frozen=True)
class Model:
    """The bundles in the order in which images meet them, and the margin below which an image leaves each but the last.

    Raises ModelError where the bundles do not have the same labels in the same order.
    """

    stages: tuple[Bundle, ...]
    margins: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Labels mean the same whoever answers."""
        if len(self.margins) != len(self.stages) - 1:
            raise ModelError(
                f"{self.name} has {len(self.stages)} models and {len(self.margins)} margins. Give one margin fewer than models."
            )
        for other in self.stages[1:]:
            _check_labels(self.stages[0], other)

    @property
    def is_cascade(self) -> bool:
        """Whether more than one bundle may answer."""
        return len(self.stages) > 1

    @cached_property
    def model_id(self) -> str:
        """64 hex digits. One bundle has its own; a cascade's covers its bundles, their order and its margins."""
        if not self.is_cascade:
            return self.stages[0].model_id
        return fingerprint({"stages": [bundle.model_id for bundle in self.stages], "margins": list(self.margins)})

    @property
    def labels(self) -> tuple[str, ...]:
        """One for each output, the same in all bundles."""
        return self.stages[0].labels

    @property
    def top_k(self) -> int:
        """How many labels a prediction keeps, whichever bundle answers: as many as the last one says."""
        return self.stages[-1].spec.top_k

    @property
    def name(self) -> str:
        """What the model's row is called: `small+large`."""
        return "+".join(bundle.spec.name for bundle in self.stages)

    @property
    def version(self) -> str:
        """The versions of the bundles: `1+3`."""
        return "+".join(bundle.spec.version for bundle in self.stages)

    def identity(self) -> dict[str, Any]:
        """Plain JSON values for the model's row: what a bundle says of itself, or what each one of the cascade does.

        A view reads the name of the one that answered out of it, for each row. So the labels, which are long, stay out: they
        are part of each bundle's model_id.
        """
        if not self.is_cascade:
            return self.stages[0].identity()
        return {"margins": list(self.margins), "stages": [_stage(bundle) for bundle in self.stages]}


def resolve_models(uris: Sequence[str], margins: Sequence[float], settings: Settings) -> Model:
    """The model that some URIs and margins name. Raises ModelError, which names the URI and what to do."""
    return Model(tuple(resolve_model(uri, settings) for uri in uris), tuple(margins))


def pixels_key(preprocessing: Preprocessing) -> tuple[object, ...]:
    """What decides the pixels of an image. Mean and deviation do not: each network normalises inside."""
    return preprocessing.decode, preprocessing.resize, preprocessing.crop, preprocessing.interpolation


def _stage(bundle: Bundle) -> dict[str, Any]:
    identity = bundle.identity()
    del identity["labels"]
    return {"name": bundle.spec.name, "version": bundle.spec.version, "model_id": bundle.model_id, **identity}


def _check_labels(first: Bundle, other: Bundle) -> None:
    for number, (one, two) in enumerate(zip_longest(first.labels, other.labels)):
        if one != two:
            raise ModelError(
                f"A cascade needs models with the same labels in the same order, and output {number} is {_said(one)} in "
                f"{first.spec.name} ({first.folder}) and {_said(two)} in {other.spec.name} ({other.folder}). Use models that "
                "were trained for the same labels."
            )


def _said(label: str | None) -> str:
    return "missing" if label is None else repr(label)
