"""What a file of ONNX must be, before anything runs it: whole, of standard operators, and of one picture to one row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import ModelError
from tasks.extras import require
from tasks.models import onnx_form
from tasks.models.spec import Precision

if TYPE_CHECKING:
    from onnx import ModelProto

STANDARD = ("", "ai.onnx")
OLDEST = 7  # the first operator set whose arithmetic broadcasts


def read_graph(file: Path) -> ModelProto:
    """The graph, with its own functions written out. Raises ModelError, which names the file and what to do."""
    onnx = require("onnx", onnx_form.WHAT_FOR)
    try:
        model: ModelProto = onnx.load(file, load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"{file} does not exist. Give the path of a file of ONNX.") from None
    except Exception as error:  # protobuf's errors have no base of their own
        raise ModelError(f"{file} is no file of ONNX: {error}. Export the network again.") from None
    if not model.graph.node:
        raise ModelError(f"{file} is no file of ONNX: there is no graph in it. Export the network again.")
    _is_whole(file, model)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    for check in (_is_standard, _is_recent, _has_one_of_each, _is_finite):
        check(file, model)
    check_graph(model, lambda error: f"{file} is not valid ONNX: {error} Export the network again.")
    return model


def check_graph(model: ModelProto, message: Callable[[str], str]) -> None:
    """onnx.checker. Raises ModelError with the message for its first line."""
    onnx = require("onnx", onnx_form.WHAT_FOR)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, and others where a field is missing
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(message(lines[0])) from None


def _is_whole(file: Path, model: ModelProto) -> None:
    tensors = [tensor for _, tensor in onnx_form.constants(model.graph)]
    tensors += [attribute.t for function in model.functions for node in function.node for attribute in node.attribute]
    others = sorted({entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"})
    if others:
        raise ModelError(
            f"{file} keeps its weights in other files: {', '.join(others)}. Save it in one: "
            f'python -c \'import onnx; onnx.save(onnx.load("{file.name}"), "whole.onnx")\', or export it with '
            "external_data=False."
        )


def _is_standard(file: Path, model: ModelProto) -> None:
    found = {f"{node.domain}.{node.op_type}" for node in onnx_form.nodes(model.graph) if node.domain not in STANDARD}
    if found:
        raise ModelError(
            f"{file} has operators that are not ONNX's own: {', '.join(sorted(found)[:5])}. They run in one program only: export "
            "the network without them, and quantise it with ./afterimage models optimise."
        )
    for entry in [entry for entry in model.opset_import if entry.domain not in STANDARD]:
        model.opset_import.remove(entry)


def _is_recent(file: Path, model: ModelProto) -> None:
    version = max((entry.version for entry in model.opset_import), default=0)
    if version < OLDEST:
        raise ModelError(
            f"{file} is of operator set {version}, and {OLDEST} is the oldest that is read. Export the network again, with "
            "opset_version=18."
        )


def _has_one_of_each(file: Path, model: ModelProto) -> None:
    given, taken = onnx_form.inputs(model.graph), list(model.graph.output)
    if len(given) != 1 or len(taken) != 1:
        names = f"inputs {[value.name for value in given]} and outputs {[value.name for value in taken]}"
        raise ModelError(
            f"{file} has the {names}. A classifier takes one batch of pictures and gives one of logits: export it so."
        )
    last = onnx_form.maker(model.graph, taken[0].name)
    if last is not None and last.op_type == "Sigmoid":
        raise ModelError(
            f"{file} ends in a Sigmoid, so its outputs are judged one by one, and a prediction here is one label of all. Export "
            "a network that was trained with a softmax, up to its logits."
        )


def _is_finite(file: Path, model: ModelProto) -> None:
    """A single infinity may be meant, as what a pooling is padded with; a NaN is not, nor are infinities among weights."""
    onnx = require("onnx", onnx_form.WHAT_FOR)
    broken = []
    for name, tensor in onnx_form.constants(model.graph):
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind not in "fV":
            continue
        values = values.astype(np.float32)
        if np.isnan(values).any() or (values.size > 1 and np.isinf(values).any()):
            broken.append(name or tensor.name)
    if broken:
        raise ModelError(
            f"{file} has numbers that are not finite (NaN or infinite) in {', '.join(broken[:3])}. The training diverged, or the "
            "file is damaged: export an earlier step."
        )


def check_input(file: Path, model: ModelProto, crop: int) -> None:
    """Whether the input takes what the preprocessing gives. Raises ModelError."""
    onnx = require("onnx", onnx_form.WHAT_FOR)
    (given,) = onnx_form.inputs(model.graph)
    kind, shape = onnx.TensorProto.DataType.Name(given.type.tensor_type.elem_type).lower(), onnx_form.shape(given)
    if kind not in ("float", "float16", "bfloat16", "double", "uint8"):
        raise ModelError(f"{file} takes {kind} {given.name}. Export it with a float input of normalised pictures.")
    height_at = 1 if len(shape) == 4 and shape[3] == 3 and shape[1] != 3 else 2
    channels = shape[3 if height_at == 1 else 1] if len(shape) == 4 else None
    if len(shape) != 4 or channels not in (3, None) or (kind == "uint8" and height_at == 2):
        wanted = "[n, height, width, 3]" if kind == "uint8" else "[n, 3, height, width]"
        raise ModelError(f"{file} takes {kind} {shape}, and expected is {wanted}. Export it with such an input.")
    size = shape[height_at : height_at + 2]
    if any(side not in (crop, None) for side in size):
        raise ModelError(
            f"{file} takes pictures of {size[0]} x {size[1]} pixels, and the preprocessing gives {crop} x {crop}. Set crop to "
            "the size that it was trained for, and resize to match."
        )


def precision_of(model: ModelProto) -> Precision:
    """int8 where it quantises, else the kind of its weights."""
    onnx = require("onnx", onnx_form.WHAT_FOR)
    if {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in onnx_form.nodes(model.graph)}:
        return "int8"
    kinds = {tensor.data_type for _, tensor in onnx_form.constants(model.graph) if np.prod(tensor.dims) > 1}
    if onnx.TensorProto.BFLOAT16 in kinds:
        return "bf16"
    return "fp16" if onnx.TensorProto.FLOAT16 in kinds else "fp32"
