"""The form of networks in ONNX that bundles hold: uint8 pixels [n, crop, crop, 3] to float32 logits [n, classes], any n.

What comes from elsewhere takes normalised pictures with the channels in front, or not; may have a Softmax at its end; and may
have been exported for one batch size. Here such a graph is made into that form, and nothing of its own arithmetic changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tasks.extras import require
from tasks.models.spec import Preprocessing

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

PREFIX = "afterimage/"  # of the nodes that are put in front: quantisation leaves them alone
BATCH = "n"  # the name of the first dimension

WHAT_FOR = "A network in ONNX"


def inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """What the caller gives: old files list their weights among the inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def shape(value: ValueInfoProto) -> list[int | None]:
    """The dimensions of an input or output; None for one that is open."""
    return [size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim]


def take_pixels(model: ModelProto, preprocessing: Preprocessing) -> None:
    """Put the normalisation in front of a graph whose one input is floating-point, [n, 3, h, w] or [n, h, w, 3].

    The arithmetic is that of loading.Classifier: one multiplication and one addition, over whole rows. TensorRT wants pixels
    to be cast before anything else.
    """
    onnx, crop = require("onnx", WHAT_FOR), preprocessing.crop
    (given,) = inputs(model.graph)
    kind, first_is_channels = given.type.tensor_type.elem_type, shape(given)[1] in (3, None)
    pixels = _unused(model.graph, "pixels")
    deviations = [1.0 / (255.0 * deviation) for deviation in preprocessing.std]
    means = [-mean / deviation for mean, deviation in zip(preprocessing.mean, preprocessing.std, strict=True)]
    constants = {
        "scale": np.tile(np.array(deviations, np.float32), crop),
        "shift": np.tile(np.array(means, np.float32), crop),
        "rows": np.array([0, 0, 3 * crop], np.int64),
        "squares": np.array([0, 0, crop, 3], np.int64),
    }
    steps: list[tuple[str, list[str], dict[str, object]]] = [
        ("Cast", [], {"to": onnx.TensorProto.FLOAT}),
        ("Reshape", ["rows"], {}),
        ("Mul", ["scale"], {}),
        ("Add", ["shift"], {}),
        ("Reshape", ["squares"], {}),
    ]
    if first_is_channels:
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if kind != onnx.TensorProto.FLOAT:
        steps.append(("Cast", [], {"to": kind}))
    names = [pixels, *(f"{PREFIX}{number}" for number in range(1, len(steps))), given.name]
    nodes = [
        onnx.helper.make_node(
            operator,
            [names[at], *(PREFIX + name for name in others)],
            [names[at + 1]],
            f"{PREFIX}{operator}{at}",
            **more,
        )
        for at, (operator, others, more) in enumerate(steps)
    ]
    _put_in_front(model.graph, nodes)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, PREFIX + name) for name, value in constants.items()
    )
    model.graph.input.remove(given)
    value = onnx.helper.make_tensor_value_info(pixels, onnx.TensorProto.UINT8, [BATCH, crop, crop, 3])
    model.graph.input.insert(0, value)


def _put_in_front(graph: GraphProto, nodes: list[NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _unused(graph: GraphProto, name: str) -> str:
    """The name, lengthened until no value has it."""
    taken = {value for node in graph.node for value in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.initializer, *graph.input, *graph.output)}
    while name in taken:
        name += "_"
    return name


def give_logits(model: ModelProto) -> None:
    """Cut a Softmax over the classes off the end, and give float32: the scores are a softmax of the output already."""
    onnx = require("onnx", WHAT_FOR)
    (output,) = model.graph.output
    last = maker(model.graph, output.name)
    is_used = any(output.name in node.input for node in nodes(model.graph))
    if last is not None and last.op_type == "Softmax" and _axis(last) in (1, -1) and not is_used:
        model.graph.node.remove(last)
        _rename_output(model, last.input[0])
    kind = output.type.tensor_type.elem_type
    if kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE):
        name = _unused(model.graph, "logits")
        model.graph.node.append(
            onnx.helper.make_node("Cast", [output.name], [name], f"{PREFIX}logits", to=onnx.TensorProto.FLOAT)
        )
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        _rename_output(model, name)


def maker(graph: GraphProto, value: str) -> NodeProto | None:
    """The node that a value comes from."""
    return next((node for node in graph.node if value in node.output), None)


def _axis(softmax: NodeProto) -> int:
    """Over which dimension; files before operator set 13 mean 1 where they say nothing, which is the same of two."""
    return next((attribute.i for attribute in softmax.attribute if attribute.name == "axis"), -1)


def _rename_output(model: ModelProto, name: str) -> None:
    """Another value becomes the output; what was inferred of it before is said once only."""
    for value in [value for value in model.graph.value_info if value.name == name]:
        model.graph.value_info.remove(value)
    model.graph.output[0].name = name


def free_batch(model: ModelProto) -> None:
    """Let the first dimension be open where the file says a number; whether the graph bears it, running it tells.

    A file that was exported for one batch size often says it once more: in the shapes that Reshape makes.
    """
    (given,), (output,) = inputs(model.graph), model.graph.output
    batch = shape(given)[0]
    for value in (given, output):
        sizes = value.type.tensor_type.shape.dim
        if len(sizes):
            sizes[0].dim_param = BATCH
    if batch is None:
        return
    del model.graph.value_info[:]  # they were inferred with that number
    known = dict(constants(model.graph))
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in known:
            _free_reshape(model.graph, node, known[node.input[1]], batch)


def _free_reshape(graph: GraphProto, node: NodeProto, target: TensorProto, batch: int) -> None:
    """The batch in the first place of a Reshape's target becomes 0, which is what comes in."""
    onnx = require("onnx", WHAT_FOR)
    sizes: npt.NDArray[np.int64] = onnx.numpy_helper.to_array(target).copy()
    if sizes.ndim != 1 or len(sizes) < 2 or sizes[0] != batch:
        return
    sizes[0] = 0
    for attribute in [attribute for attribute in node.attribute if attribute.name == "allowzero"]:
        node.attribute.remove(attribute)
    node.input[1] = _unused(graph, f"{PREFIX}{node.input[1]}")
    graph.initializer.append(onnx.numpy_helper.from_array(sizes, node.input[1]))


def constants(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Every tensor that the graph itself holds, with the name of the value that it is; "" where it is a node's own."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield node.output[0] if node.op_type == "Constant" else "", attribute.t
            for inner in _graphs(attribute):
                yield from constants(inner)


def nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                yield from nodes(inner)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def to_bytes(model: ModelProto) -> bytes:
    """The file: the same for the same graph, so that equal networks are one model.

    Exporters write into it where they ran, down to the lines of source; that is taken out.
    """
    for part in (model, model.graph, *nodes(model.graph), *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    content: bytes = model.SerializeToString(deterministic=True)
    return content
