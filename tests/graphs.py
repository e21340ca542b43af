"""Small networks in ONNX, made node by node, as files from elsewhere may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.pictures import LABELS

CROP = 16
CLASSES = len(LABELS)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights(kind: type[np.generic] = np.float32) -> dict[str, npt.NDArray[Any]]:
    """The numbers of the network: a convolution and a linear layer whose logits differ between pictures."""
    random = np.random.default_rng(0)
    return {
        "conv.weight": random.normal(0, 1, (8, 3, 3, 3)).astype(kind),
        "conv.bias": random.normal(0, 1, 8).astype(kind),
        "fc.weight": random.normal(0, 1, (CLASSES, 8)).astype(kind),
        "fc.bias": random.normal(0, 1, CLASSES).astype(kind),
    }


def graph(
    end: str | None = None,
    batch: int | str = "batch",
    size: int | str = CROP,
    channels_last: bool = False,
    kind: int = TensorProto.FLOAT,
    shape: list[int] | None = None,
    opset: int = 17,
) -> ModelProto:
    """Pictures to logits by Conv, Relu, the mean of each channel and Gemm; `end` is one more node, such as Softmax.

    `shape` is what the flattening Reshape makes; a Flatten stands there where it is not given.
    """
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    tensors = {name: value.astype(dtype) for name, value in weights().items()}
    nodes = [NodeProto(), helper.make_node("Conv", ["in", "conv.weight", "conv.bias"], ["c"], "conv")]
    nodes[0] = helper.make_node("Transpose" if channels_last else "Identity", ["images"], ["in"], "first")
    if channels_last:
        nodes[0].attribute.append(helper.make_attribute("perm", [0, 3, 1, 2]))
    nodes += [helper.make_node("Relu", ["c"], ["r"]), helper.make_node("GlobalAveragePool", ["r"], ["p"])]
    if shape is None:
        nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    else:
        tensors["shape"] = np.array(shape, np.int64)
        nodes.append(helper.make_node("Reshape", ["p", "shape"], ["f"], "flatten"))
    nodes.append(helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1))
    if end is not None:
        nodes.append(helper.make_node(end, ["logits"], ["scores"], "end"))
    sides = [batch, size, size, 3] if channels_last else [batch, 3, size, size]
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", kind, sides)],
        [helper.make_tensor_value_info("scores" if end else "logits", kind, [batch, CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def write(path: Path, model: ModelProto) -> Path:
    """The model as a file."""
    onnx.save(model, path)
    return path


def expected(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What the network makes of the pixels, by torch: logits [n, CLASSES]."""
    import torch

    from tasks.models.loading import Classifier

    tensors = {name: torch.from_numpy(value) for name, value in weights().items()}

    class Network(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = torch.conv2d(images, tensors["conv.weight"], tensors["conv.bias"]).relu().mean((2, 3))
            return torch.nn.functional.linear(features, tensors["fc.weight"], tensors["fc.bias"])

    with torch.inference_mode():
        return Classifier(Network(), MEAN, STD, torch.float32)(torch.from_numpy(pixels)).numpy()


def noise(count: int, crop: int = CROP) -> npt.NDArray[np.uint8]:
    """Pictures of coloured squares, uint8 [count, crop, crop, 3], that differ from each other."""
    colours = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(colours.repeat(crop // 4, axis=1).repeat(crop // 4, axis=2))
