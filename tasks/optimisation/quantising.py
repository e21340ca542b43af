"""int8 for OpenVINO on a CPU: NNCF looks at what flows through the network, and chooses the ranges of its integers.

The network is the one that the runtime would convert: uint8 pixels in, float32 logits out. So the new bundle's network
holds the normalisation too, and is run like any other.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigurationError, ModelError
from tasks.extras import require
from tasks.models.bundle import ModelSpec, write_bundle
from tasks.models.spec import Form, Option
from tasks.optimisation.making import Task
from tasks.optimisation.sample import read_crops

FORMS: tuple[Form, ...] = ("torch", "openvino", "onnx")

# A crop as the network takes it, uint8 [1, crop, crop, 3], and the label that it should get.
Judged = tuple[Any, int]


def make(task: Task, folder: Path) -> Mapping[str, Option]:
    """Quantise task.original into the folder; see making.py. Raises ConfigurationError where NNCF is not installed."""
    spec = task.original.spec
    if spec.precision != "fp32" or spec.form not in FORMS:
        raise ModelError(
            f"{task.original.folder} is {spec.precision} in the form {spec.form}, and int8 is made from fp32 in the form "
            f"{', '.join(FORMS)}. Name the bundle that it was made from."
        )
    with _quiet_nncf() as nncf:
        crops, keys = _calibration(task)
        method, facts = _quantise(nncf, task, crops, keys, folder / "network.xml")
    assert task.taught is not None
    unread = len(task.taught.images) - len(crops)
    if unread:
        facts["calibration images left out"] = unread
    made = ModelSpec(
        name=task.name,
        version=spec.version,
        architecture="openvino",
        network="network.xml",
        weights="network.bin",
        precision="int8",
        top_k=spec.top_k,
        preprocessing=spec.preprocessing,
        provenance={
            "made_from": task.original.model_id,
            "method": method,
            "calibrated_on": task.taught.uri,
            "calibration_images": len(crops),
            "nncf": version("nncf"),
            "openvino": version("openvino"),
        },
    )
    write_bundle(folder, made, task.original.labels)
    return facts


def _calibration(task: Task) -> tuple[list[Any], list[str]]:
    """The crops, each uint8 [1, crop, crop, 3], and their keys. 300 of 224 x 224 pixels take 45 MB."""
    if task.taught is None:
        raise ConfigurationError("int8 needs images that show what flows through the network. Name some: --calibrate.")
    crops: list[Any] = []
    keys: list[str] = []
    for group in read_crops(task.taught.uri, task.taught.images, task.original.spec.preprocessing, task.settings):
        crops += [np.ascontiguousarray(pixels[None]) for pixels in group.pixels]
        keys += group.keys
    if not crops:
        raise ConfigurationError(
            f"None of the {len(task.taught.images):,} images under {task.taught.uri} could be read, so nothing was calibrated. "
            "The warnings above say why."
        )
    return crops, keys


def _quantise(nncf: Any, task: Task, crops: list[Any], keys: list[str], file: Path) -> tuple[str, dict[str, Option]]:
    """Write the network of integers; the method, and further facts for the report."""
    from tasks.models.runtimes.openvino_runtime import network_file
    from tasks.models.runtimes.unreported import ov

    network = ov.Core().read_model(network_file(task.original, task.settings.compiled))
    common = {"preset": nncf.QuantizationPreset.MIXED, "subset_size": len(crops)}
    method, facts = "nncf.quantize", {}
    if task.is_accuracy_aware:
        judged, what = _validation(task, network, crops, keys)
        most = task.gate.max_accuracy_drop if what == "accuracy" else 1.0 - (task.gate.min_agreement or 0.0)
        method = "nncf.quantize_with_accuracy_control"
        facts["validated by"] = f"{what} on {len(judged):,} of the calibration images, at most {most:.4f} lost"
        quantised = nncf.quantize_with_accuracy_control(
            network, nncf.Dataset(crops), nncf.Dataset(judged), _share_right, max_drop=most, **common
        )
    else:
        quantised = nncf.quantize(network, nncf.Dataset(crops), **common)
    ov.save_model(quantised, file, compress_to_fp16=False)
    return f"{method}, preset mixed", dict(facts)


def _validation(task: Task, network: Any, crops: list[Any], keys: list[str]) -> tuple[list[Judged], str]:
    """What NNCF checks itself by: labels where there are any, else what the original says.

    They are calibration images, so that those that judge the result stay unseen.
    """
    truth = task.truth or {}
    known = [(crop, truth[key]) for crop, key in zip(crops, keys, strict=True) if key in truth]
    if known and task.gate.max_accuracy_drop is not None:
        return known, "accuracy"
    from tasks.models.runtimes.openvino_runtime import ALONE
    from tasks.models.runtimes.unreported import ov

    original = ov.Core().compile_model(network, "CPU", ALONE)
    return [(crop, int(original(crop)[0].argmax())) for crop in crops], "agreement"


def _share_right(network: Any, judged: Iterable[Judged]) -> tuple[float, list[float]]:
    """The share of crops that get their label, and 1.0 or 0.0 for each."""
    right = [float(int(network(crop)[0].argmax()) == label) for crop, label in judged]
    return sum(right) / len(right), right


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF, which reports nothing home and writes nothing on standard output, where --json promises one JSON value."""
    from tasks.models.runtimes.unreported import unreported

    with unreported(), contextlib.redirect_stdout(sys.stderr):
        nncf = require("nncf", "Quantisation to int8")
        # NNCF's own set_log_level changes the root's handlers, and would silence this program.
        logging.getLogger("nncf").setLevel(logging.ERROR)
        yield nncf
