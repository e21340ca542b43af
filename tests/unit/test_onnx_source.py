"""Files of ONNX become bundles with the same answers in every runtime, or are refused with what to do."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tasks.errors import ConfigurationError, ModelError
from tasks.models.bundle import Bundle, read_bundle
from tasks.models.runtimes import open_runtime
from tasks.models.sources.onnx_source import from_onnx
from tasks.models.spec import Preprocessing
from tasks.settings import load_settings
from tests.graphs import CLASSES, CROP, MEAN, STD, expected, graph, noise, write
from tests.pictures import LABELS

PREPROCESSING = Preprocessing(resize=20, crop=CROP, mean=MEAN, std=STD)
RUNTIMES = ("openvino", "onnxruntime")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels.txt"
    file.write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    return file


@pytest.fixture
def add(tmp_path: Path, labels: Path) -> Callable[..., Bundle]:
    """Make a bundle of a model; keyword arguments are from_onnx's."""

    def make(model: ModelProto, **given: Any) -> Bundle:
        folder = tmp_path / "bundle"
        folder.mkdir(exist_ok=True)
        options = {"labels": labels, "preprocessing": PREPROCESSING, **given}
        from_onnx(folder, write(tmp_path / "network.onnx", model), **options)
        return read_bundle(folder)

    return make


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as refused:
        call()
    return str(refused.value)


def logits(bundle: Bundle, runtime: str, tmp_path: Path, count: int = 3) -> Any:
    opened = open_runtime(bundle, load_settings(home=tmp_path / "home", device="cpu", runtime=runtime))
    found = opened.predict(noise(count))
    opened.close()
    return found


# What is taken


def change_reshape(model: ModelProto) -> ModelProto:
    """As torch exports it today: a 0 would mean no rows."""
    (node,) = (node for node in model.graph.node if node.op_type == "Reshape")
    node.attribute.append(helper.make_attribute("allowzero", 1))
    return model


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "model",
    [
        graph(),
        graph(channels_last=True),
        graph(size="side"),
        graph(end="Softmax"),
        graph(batch=1),
        graph(batch=1, shape=[1, 8]),
        graph(batch=1, shape=[1, -1]),
        change_reshape(graph(batch=1, shape=[1, 8])),
        graph(batch=5, shape=[5, 8]),
        graph(batch="n", shape=[0, -1]),
        graph(batch=1, end="Softmax", channels_last=True, opset=11),
    ],
    ids=[
        "plain",
        "channels_last",
        "any_size",
        "softmax",
        "one",
        "one_reshaped",
        "one_flat",
        "zeros_meant",
        "five",
        "zero",
        "all",
    ],
)
def test_a_file_gives_the_logits_of_its_network(
    model: ModelProto, runtime: str, add: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = add(model)

    assert (bundle.spec.form, bundle.spec.precision, bundle.labels) == ("onnx", "fp32", LABELS)
    for count in (1, 3, 8):
        np.testing.assert_allclose(logits(bundle, runtime, tmp_path, count), expected(noise(count)), atol=1e-4)


def test_the_form_is_uint8_pixels_to_float32_logits_for_any_batch(add: Callable[..., Bundle]) -> None:
    made = onnx.load(add(graph(batch=1)).network)

    (given,), (taken,) = made.graph.input, made.graph.output
    assert given.type.tensor_type.elem_type == TensorProto.UINT8
    assert taken.type.tensor_type.elem_type == TensorProto.FLOAT
    sizes = [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim] for value in (given, taken)
    ]
    assert sizes == [["n", CROP, CROP, 3], ["n", CLASSES]]
    assert made.graph.node[0].op_type == "Cast", "TensorRT takes uint8 into a Cast and nothing else"


def test_where_a_file_was_exported_makes_no_other_model(add: Callable[..., Bundle]) -> None:
    """Exporters write lines of source into it, in two places."""
    first = add(graph()).model_id
    other = graph()
    other.graph.node[1].doc_string = "/home/someone/train.py, line 3"
    other.graph.node[1].metadata_props.add(key="stack_trace", value="/home/someone/train.py, line 3")

    bundle = add(other)
    assert b"someone" not in bundle.network.read_bytes()
    assert bundle.model_id == first


def test_a_graph_that_takes_pixels_is_left_as_it_is(add: Callable[..., Bundle], tmp_path: Path) -> None:
    """What another program put in front is not put there again."""
    first = add(graph())
    before = first.network.read_bytes()

    assert add(onnx.load(first.network)).network.read_bytes() == before


def test_half_precision_is_kept_and_declared(add: Callable[..., Bundle], tmp_path: Path) -> None:
    import onnxruntime

    bundle = add(graph(kind=TensorProto.FLOAT16))

    assert bundle.spec.precision == "fp16"
    session = onnxruntime.InferenceSession(str(bundle.network), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": noise(3)})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(noise(3)), atol=0.02)
    with pytest.raises(
        ConfigurationError, match=r"No runtime takes network \(onnx, fp16\) on cpu. On cuda it is tensorrt"
    ):
        logits(bundle, "auto", tmp_path)


def quantised() -> ModelProto:
    """The activations before the linear layer go through int8 and back."""
    made = graph()
    fc = made.graph.node[-1]
    made.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    )
    pair = [
        helper.make_node("QuantizeLinear", ["f", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
    ]
    fc.input[0] = "d"
    made.graph.node.remove(made.graph.node[-1])
    made.graph.node.extend([*pair, fc])
    return made


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_quantised_file_is_int8(runtime: str, add: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = add(quantised())

    assert bundle.spec.precision == "int8"
    np.testing.assert_allclose(logits(bundle, runtime, tmp_path), expected(noise(3)), atol=0.5)


def test_the_bundle_says_where_it_comes_from_and_pins_its_files(add: Callable[..., Bundle], tmp_path: Path) -> None:
    import hashlib

    bundle = add(graph(), name="pets", version="7")

    digest = hashlib.sha256((tmp_path / "network.onnx").read_bytes()).hexdigest()
    assert (bundle.spec.name, bundle.spec.version) == ("pets", "7")
    assert bundle.spec.provenance == {"file": "network.onnx", "sha256": digest}
    assert set(bundle.spec.files) == {"network.onnx", "labels.txt"}
    assert add(graph(), sha256=digest).model_id == bundle.model_id
    assert "was expected" in refusal(lambda: add(graph(), sha256="0" * 64))


def test_other_preprocessing_is_in_the_graph(add: Callable[..., Bundle], tmp_path: Path) -> None:
    half = Preprocessing(resize=CROP, crop=CROP, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    first, second = (
        logits(add(graph()), "openvino", tmp_path),
        logits(add(graph(), preprocessing=half), "openvino", tmp_path),
    )

    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_torch_exports_is_taken(runtime: str, tmp_path: Path, labels: Path) -> None:
    """By today's exporter, for any batch."""
    import torch

    from tasks.models.architectures import SmallCnn

    torch.manual_seed(0)
    network = SmallCnn(CLASSES, 4).eval()
    file = tmp_path / "exported.onnx"
    images = torch.randn(2, 3, CROP, CROP)
    torch.onnx.export(
        network, (images,), file, dynamo=True, external_data=False, dynamic_shapes=({0: "n"},), verbose=False
    )
    (tmp_path / "bundle").mkdir()
    from_onnx(tmp_path / "bundle", file, labels=labels, preprocessing=PREPROCESSING)

    from tasks.models.loading import Classifier

    with torch.inference_mode():
        wanted = Classifier(network, MEAN, STD, torch.float32)(torch.from_numpy(noise(5))).numpy()
    np.testing.assert_allclose(logits(read_bundle(tmp_path / "bundle"), runtime, tmp_path, 5), wanted, atol=1e-4)


# What is refused


def change(edit: Callable[[ModelProto], object], **given: Any) -> ModelProto:
    made = graph(**given)
    edit(made)
    return made


def set_weight(name: str, at: tuple[int, ...], value: float) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(tensor).copy()
        values[at] = value
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return edit


def keep_elsewhere(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    tensor.ClearField("raw_data")


def second_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 3]))


def second_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, ["n", 8]))


def custom_operator(model: ModelProto) -> None:
    model.graph.node[2].domain = "com.someone"
    model.opset_import.append(helper.make_opsetid("com.someone", 1))


def end_in(
    operator: str, rank: int = 2, kind: int = TensorProto.FLOAT, **attributes: Any
) -> Callable[[ModelProto], None]:
    """One more node at the end, whose output has another shape or kind."""

    def edit(model: ModelProto) -> None:
        model.graph.node.append(helper.make_node(operator, ["logits"], ["other"], "end", **attributes))
        sides = [f"d{number}" for number in range(rank)]
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("other", kind, sides))

    return edit


def softmax_by_hand(model: ModelProto) -> None:
    """Exp, sum and division, as some programs write it."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    model.graph.node.extend(
        [
            helper.make_node("Exp", ["logits"], ["e"]),
            helper.make_node("ReduceSum", ["e", "axes"], ["s"], keepdims=1),
            helper.make_node("Div", ["e", "s"], ["other"]),
        ]
    )
    model.graph.output[0].name = "other"


def divide_by_what_may_be_zero(model: ModelProto) -> None:
    """0 / 0 for a blank image in which all channels are the same behind the first convolution."""
    set_weight("conv.weight", (slice(None),), 0.0)(model)
    set_weight("conv.bias", (slice(None),), 0.0)(model)
    set_weight("fc.bias", (slice(None),), 0.0)(model)
    model.graph.node.append(helper.make_node("Div", ["logits", "logits"], ["other"]))
    model.graph.output[0].name = "other"


def mix_the_batch(model: ModelProto) -> None:
    """A softmax over the pictures of a batch: no row is its own."""
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["other"], axis=0))
    model.graph.output[0].name = "other"


def numbers_for_two_pictures(model: ModelProto) -> None:
    """Exported for two pictures, in a way that no other number of them can take."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, CLASSES), np.float32), "each"))
    model.graph.node.append(helper.make_node("Add", ["logits", "each"], ["other"]))
    model.graph.output[0].name = "other"


def pictures_of_two_sizes(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 16], np.int64), "both"))
    model.graph.node[4].CopyFrom(helper.make_node("Reshape", ["p", "both"], ["f"]))


def maps_for_logits(model: ModelProto) -> None:
    """A network that ends in its last pooling."""
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 8, 1, 1]))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (change(keep_elsewhere), "keeps its weights in other files: ../../etc/passwd. Save it in one"),
        (change(custom_operator), "operators that are not ONNX's own: com.someone.Relu"),
        (change(second_input), "inputs ['images', 'mask'] and outputs ['logits']"),
        (change(second_output), "outputs ['logits', 'f']"),
        (graph(end="Sigmoid"), "ends in a Sigmoid"),
        (change(set_weight("fc.weight", (0, 0), np.nan)), "not finite (NaN or infinite) in fc.weight"),
        (change(set_weight("conv.bias", (3,), np.inf)), "not finite (NaN or infinite) in conv.bias"),
        (change(set_weight("fc.weight", (0, 0), 3e38)), "gives logits that are not finite"),
        (change(divide_by_what_may_be_zero), "gives logits that are not finite (NaN or infinite) for a blank"),
        (change(softmax_by_hand), "gives probabilities: each row adds up to 1"),
        (change(mix_the_batch), "in another batch. Export it for any batch"),
        (change(end_in("Unsqueeze", 3)), "is not valid ONNX"),
        (change(end_in("Shape", 1, TensorProto.INT64)), "gives int64 [2] for 1 images, and expected are float logits"),
        (change(end_in("ReduceMax", 1, axes=[1], keepdims=0)), "gives float32 [1] for 1 images"),
        (change(end_in("Transpose", 2, perm=[1, 0])), "gives 4 rows for 1 images. Export it for any batch"),
        (graph(size=32), "takes pictures of 32 x 32 pixels, and the preprocessing gives 16 x 16"),
        (graph(kind=TensorProto.DOUBLE, opset=6), "is of operator set 6, and 7 is the oldest"),
        (change(numbers_for_two_pictures, batch=2), "gives 2 rows for 1 images. Export it for any batch"),
        (change(pictures_of_two_sizes, batch=2), "does not load in ONNX Runtime"),
        (change(maps_for_logits), "gives float32 [1, 8, 1, 1] for 1 images"),
        (graph(batch=1, shape=[-1, 8]), None),
    ],
)
def test_what_cannot_be_a_bundle_is_refused(model: ModelProto, says: str | None, add: Callable[..., Bundle]) -> None:
    if says is None:
        assert add(model)
        return
    message = refusal(lambda: add(model))
    assert says in message
    assert "xport" in message or "Set crop" in message, "what to do"


def test_an_input_that_is_no_picture_is_refused(add: Callable[..., Bundle]) -> None:
    for kind, sides, says in (
        (TensorProto.INT64, ["n", 3, CROP, CROP], "takes int64 images"),
        (
            TensorProto.FLOAT,
            ["n", 1, CROP, CROP],
            "takes float [None, 1, 16, 16], and expected is [n, 3, height, width]",
        ),
        (TensorProto.FLOAT, ["n", 3 * CROP * CROP], "takes float [None, 768]"),
        (
            TensorProto.UINT8,
            ["n", 3, CROP, CROP],
            "takes uint8 [None, 3, 16, 16], and expected is [n, height, width, 3]",
        ),
    ):
        model = graph()
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", kind, sides))
        assert says in refusal(lambda model=model: add(model))


def test_another_number_of_labels_than_outputs_is_refused(add: Callable[..., Bundle], labels: Path) -> None:
    labels.write_text("a\nb\n", encoding="utf-8")

    message = refusal(lambda: add(graph()))
    assert f"network.onnx: 4 outputs, and {labels} has 2 labels." in message


class Bomb:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.touched,)


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path, labels: Path) -> None:
    file = tmp_path / "x.onnx"
    for content in (b"", b"hello", pickle.dumps(Bomb(tmp_path / "touched")), b"\x08\x08"):
        file.write_bytes(content)
        message = refusal(lambda: from_onnx(tmp_path, file, labels=labels))
        assert message.startswith(f"{file} is n")
        assert "xport" in message
    assert not (tmp_path / "touched").exists()
    assert "does not exist" in refusal(lambda: from_onnx(tmp_path, tmp_path / "nowhere.onnx", labels=labels))
    assert "labels.csv does not exist" in refusal(lambda: from_onnx(tmp_path, file, labels=tmp_path / "labels.csv"))


def test_without_the_extra_it_is_named(add: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph()
    monkeypatch.setattr("tasks.extras.find_spec", lambda _: None)

    with pytest.raises(ConfigurationError, match=r"A network in ONNX needs the package onnx, .* make extra-onnx"):
        add(model)
