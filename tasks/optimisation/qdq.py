"""int8 for TensorRT: a network in ONNX with QuantizeLinear and DequantizeLinear around what is computed in int8.

TensorRT takes signed numbers around zero only: int8 with a zero point of 0, for activations as for weights, and a scale for
each channel of the weights. NNCF finds the ranges on real images. Normalisation stays in float32, or a pixel would lose half
of its levels.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tasks.errors import ModelError
from tasks.extras import require
from tasks.models import onnx_form
from tasks.models.bundle import Bundle, write_bundle
from tasks.models.runtimes.converting import export
from tasks.models.runtimes.unreported import unreported
from tasks.models.spec import Option
from tasks.optimisation.making import Task
from tasks.optimisation.sample import Crops, read_crops

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

NETWORK = "network.onnx"
CALIBRATION = 300  # images: more of them change the ranges little


def make(task: Task, folder: Path) -> Mapping[str, Option]:
    """Quantise task.original into the folder; see making.py. Raises ConfigurationError where NNCF is not installed."""
    assert task.taught is not None
    preprocessing, sample = task.original.spec.preprocessing, task.taught
    crops = read_crops(sample.uri, sample.images, preprocessing, task.settings)
    named = replace(task.original, spec=replace(task.original.spec, name=task.name))
    quantisers = quantise_for_tensorrt(named, crops, folder, len(sample.images), calibrated_on=sample.uri)
    return {"quantisers": quantisers}


def quantise_for_tensorrt(
    bundle: Bundle, sample: Iterable[Crops], folder: Path, images: int = CALIBRATION, calibrated_on: str = ""
) -> int:
    """Fill a folder that exists with an int8 bundle in ONNX of an fp32 bundle that is code, or in ONNX itself.

    `sample` is what its crops are calibrated on; at most `images` of them are taken. The number of quantisers in the graph.
    Raises ModelError.
    """
    spec = bundle.spec
    if spec.precision != "fp32" or spec.form not in ("torch", "onnx"):
        raise ModelError(
            f"{bundle.folder} is {spec.form} in {spec.precision}, and int8 for TensorRT is made of fp32 networks in "
            "safetensors or ONNX. Give the bundle that it was made from."
        )
    rows = list(itertools.islice(_rows(sample), images))
    model = _quantised(_graph(bundle), rows)
    quantisers = check_for_tensorrt(model)
    (folder / NETWORK).write_bytes(onnx_form.to_bytes(model))
    made = replace(
        spec,
        architecture="onnx",
        weights=NETWORK,
        precision="int8",
        options={},
        pruned=False,
        files={},
        provenance={
            "made_from": bundle.model_id,
            "method": "nncf.quantize, symmetric int8 for TensorRT",
            "calibrated_on": calibrated_on,
            "calibration_images": len(rows),
            "nncf": version("nncf"),
        },
    )
    write_bundle(folder, made, bundle.labels)
    return quantisers


def _graph(bundle: Bundle) -> ModelProto:
    if bundle.spec.form == "onnx":
        onnx = require("onnx", onnx_form.WHAT_FOR)
        return onnx.load(bundle.network)  # type: ignore[no-any-return]
    return export(bundle)


def _rows(sample: Iterable[Crops]) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 [1, crop, crop, 3] for each image: ranges are those of single images, whatever comes beside them."""
    for crops in sample:
        yield from (crops.pixels[number : number + 1] for number in range(len(crops.pixels)))


def _quantised(model: ModelProto, rows: list[npt.NDArray[np.uint8]]) -> ModelProto:
    if not rows:
        raise ModelError("There is no image to calibrate on. Name a folder or a prefix that holds some hundreds.")
    with unreported(), contextlib.redirect_stdout(io.StringIO()):  # NNCF draws progress bars there
        nncf = require("nncf", "Quantisation to int8")
        from nncf.common.quantization.structs import QuantizationScheme
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

        # NNCF's own set_log_level changes the root's handlers, and would silence this program.
        logging.getLogger("nncf").setLevel(logging.ERROR)
        around_zero = QuantizationParameters(mode=QuantizationScheme.SYMMETRIC, per_channel=False)
        name = onnx_form.inputs(model.graph)[0].name
        quantised: ModelProto = nncf.quantize(
            model,
            nncf.Dataset(rows, lambda row: {name: row}),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(rows),
            # What is joined by a Concat is quantised behind it, once: on its ways in it would share one range.
            ignored_scope=nncf.IgnoredScope(
                names=[node.name for node in model.graph.node if _is_ours(node.name)], types=["Concat"], validate=False
            ),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_quantization_params=around_zero,
                weights_quantization_params=replace(around_zero, per_channel=True),
                overflow_fix=nncf.OverflowFix.DISABLE,  # that is for CPUs which add up in 16 bits
            ),
        )
    _make_signed(quantised)
    return quantised


def _make_signed(model: ModelProto) -> None:
    """What NNCF found to be never negative, behind a Relu, it counts in uint8: the same range in int8, in larger steps."""
    onnx = require("onnx", onnx_form.WHAT_FOR)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = {tuple(node.input[1:3]) for node in _quantisers(model)}
    for scale, zero in sorted(pair for pair in pairs if tensors[pair[1]].data_type == onnx.TensorProto.UINT8):
        to_array, from_array = onnx.numpy_helper.to_array, onnx.numpy_helper.from_array
        # A zero point that is not 0 stays what it is, and is refused.
        if not to_array(tensors[zero]).any():
            tensors[zero].CopyFrom(from_array(np.zeros_like(to_array(tensors[zero]), np.int8), zero))
            tensors[scale].CopyFrom(from_array((to_array(tensors[scale]) * (255 / 127)).astype(np.float32), scale))
    del model.graph.value_info[:]  # it says uint8


def _quantisers(model: ModelProto) -> list[NodeProto]:
    return [node for node in onnx_form.nodes(model.graph) if node.op_type in ("QuantizeLinear", "DequantizeLinear")]


def _is_ours(node: str) -> bool:
    return node.startswith(onnx_form.PREFIX)


def check_for_tensorrt(model: ModelProto) -> int:
    """How many quantisers the graph has. Raises ModelError where TensorRT would not take one, or there is none.

    It takes int8 with a zero point of 0, and a scale for each channel on weights only.
    """
    onnx = require("onnx", onnx_form.WHAT_FOR)
    known = dict(onnx_form.constants(model.graph))
    quantised = {node.output[0]: node for node in _quantisers(model) if node.op_type == "QuantizeLinear"}
    for node in _quantisers(model):
        zero = known.get(node.input[2]) if len(node.input) > 2 else None
        first = quantised.get(node.input[0], node)
        is_weight, scale = first.input[0] in known, known[node.input[1]]
        is_symmetric = (
            zero is not None and zero.data_type == onnx.TensorProto.INT8 and not onnx.numpy_helper.to_array(zero).any()
        )
        if not is_symmetric or not (is_weight or int(np.prod(scale.dims)) == 1):
            raise ModelError(
                f"{node.op_type} {node.name} is not int8 with a zero point of 0 and one scale, which is all that TensorRT takes "
                "of activations. Use fp16 for this network."
            )
    if not quantised:
        raise ModelError(
            "Nothing of this network can be quantised: it has no convolution and no linear layer. Use fp16."
        )
    return len(quantised)
