"""What torchvision knows of its classification networks: preprocessing, labels and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pickle import UnpicklingError  # the error's name only
from typing import Any

import torchvision
from torch import Tensor

from tasks.errors import ModelError
from tasks.models.architectures import classifiers
from tasks.models.sources.named import Known, tensors_only
from tasks.models.spec import Option, Preprocessing

_OPTIONS: dict[str, dict[str, Option]] = {
    # Networks whose shape with trained weights differs from their shape without.
    "googlenet": {"transform_input": True, "aux_logits": False, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}


def known(name: str) -> Known:
    """See Library.known."""
    weights = _weights_enum(name)
    transforms = weights.transforms()
    preprocessing = Preprocessing(
        resize=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
    return Known(preprocessing, tuple(weights.meta["categories"]), _OPTIONS.get(name, {}))


def default_weights(name: str) -> Mapping[str, Tensor]:
    """See Library.default_weights."""
    try:
        with tensors_only():
            network = torchvision.models.get_model(name, weights="DEFAULT")
    except UnpicklingError as error:
        raise ModelError(
            f"The downloaded weights of torchvision:{name} hold more than tensors: {str(error).splitlines()[0]} Nothing of "
            "them was executed. Remove them from torch's cache (TORCH_HOME), and find out how they came there."
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: what came has another hash than its name says.
        raise ModelError(
            f"The weights of torchvision:{name} could not be downloaded: {error}. "
            f"Fetch them elsewhere and give torchvision:{name}?weights=FILE.safetensors."
        ) from None
    state: Mapping[str, Tensor] = network.state_dict()
    return state


def _weights_enum(name: str) -> Any:
    """torchvision's entry of the network's default weights: their preprocessing and their labels."""
    if name not in classifiers():
        raise ModelError(f"torchvision has no classification network {name!r}. It has: {', '.join(classifiers())}.")
    return torchvision.models.get_model_weights(name).DEFAULT
