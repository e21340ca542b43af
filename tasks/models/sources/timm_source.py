"""What timm knows of its networks: preprocessing, labels and weights. NAME may carry a tag, as in resnet50.a1_in1k."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pickle import UnpicklingError  # the error's name only
from typing import Any

from torch import Tensor

from tasks.errors import ModelError
from tasks.extras import require
from tasks.models.architectures import in_timm
from tasks.models.sources.named import Known, tensors_only
from tasks.models.spec import Preprocessing


def known(name: str) -> Known:
    """See Library.known."""
    timm = require("timm", f"timm:{name}")
    if not in_timm(name):
        raise ModelError(
            f"timm {timm.__version__} has no network {name!r}. Its names are those of timm.list_models(), with a tag of "
            f"timm.list_models(pretrained=True) if you like: {', '.join(timm.list_models(name[:6] + '*')[:5]) or 'none like it'}."
        )
    trained = timm.models.get_pretrained_cfg(name)
    return Known(_preprocessing(name, trained), _labels(trained.num_classes))


def _preprocessing(name: str, trained: Any) -> Preprocessing:
    """As timm.data.create_transform evaluates: the shorter side to floor(size / crop_pct), then the centre."""
    channels, height, width = trained.input_size
    if (channels, height) != (3, width) or trained.crop_mode != "center":
        raise ModelError(
            f"timm:{name} takes {channels} x {height} x {width} by crop mode {trained.crop_mode!r}, and a bundle says a centred "
            "square of RGB. Take another network."
        )
    if trained.interpolation not in ("bilinear", "bicubic"):
        raise ModelError(
            f"timm:{name} is evaluated on images of interpolation {trained.interpolation!r}, and a bundle says bilinear or "
            "bicubic. Take another network."
        )
    return Preprocessing(
        resize=math.floor(height / trained.crop_pct),
        crop=height,
        interpolation=trained.interpolation,
        mean=trained.mean,
        std=trained.std,
    )


def _labels(classes: int) -> tuple[str, ...] | None:
    """In torchvision's words where they are ImageNet's 1,000, so that a class has one name whoever made the network."""
    import torchvision

    subset = require("timm.data", "timm").infer_imagenet_subset({"num_classes": classes})
    if subset != "imagenet-1k":
        return None
    return tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])


def default_weights(name: str) -> Mapping[str, Tensor]:
    """See Library.default_weights."""
    timm = require("timm", f"timm:{name}")
    try:
        with tensors_only():
            network = timm.create_model(name, pretrained=True)
    except UnpicklingError as error:
        raise ModelError(
            f"The downloaded weights of timm:{name} hold more than tensors: {str(error).splitlines()[0]} Nothing of them was "
            "executed. Remove them from the caches of torch and huggingface_hub, and find out how they came there."
        ) from None
    except Exception as error:  # The hub's client and its HTTP library raise what they like.
        raise ModelError(
            f"The weights of timm:{name} could not be downloaded: {error}. "
            f"Fetch them elsewhere and give timm:{name}?weights=FILE.safetensors."
        ) from None
    state: Mapping[str, Tensor] = network.state_dict()
    return state
