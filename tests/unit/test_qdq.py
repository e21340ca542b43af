"""int8 for TensorRT: only what it takes, made of real networks and real pictures, and right on a CPU too."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from tasks.errors import ModelError
from tasks.models import onnx_form
from tasks.models.bundle import Bundle, read_bundle
from tasks.models.runtimes import open_runtime
from tasks.models.sources.onnx_source import from_onnx
from tasks.models.spec import Preprocessing
from tasks.optimisation.qdq import _make_signed, check_for_tensorrt, quantise_for_tensorrt
from tasks.optimisation.sample import Crops
from tasks.settings import load_settings
from tests.graphs import CROP, MEAN, STD, graph, noise, write
from tests.pictures import LABELS, write_small_bundle


def crops(count: int = 24) -> list[Crops]:
    keys = tuple(str(number) for number in range(count))
    return [Crops(keys[:10], noise(count)[:10]), Crops(keys[10:], noise(count)[10:])]


def onnx_bundle(folder: Path) -> Bundle:
    folder.mkdir()
    (folder / "l.txt").write_text("".join(f"{label}\n" for label in LABELS))
    preprocessing = Preprocessing(resize=CROP, crop=CROP, mean=MEAN, std=STD)
    from_onnx(folder, write(folder / "source.onnx", graph()), labels=folder / "l.txt", preprocessing=preprocessing)
    return read_bundle(folder)


@pytest.fixture(params=["torch", "onnx"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Bundle, Bundle]:
    """A bundle in fp32 and what was quantised of it."""
    exact = read_bundle(write_small_bundle(tmp_path / "a")) if request.param == "torch" else onnx_bundle(tmp_path / "a")
    (tmp_path / "b").mkdir()
    quantise_for_tensorrt(exact, crops(), tmp_path / "b")
    return exact, read_bundle(tmp_path / "b")


def logits(bundle: Bundle, runtime: str, home: Path) -> npt.NDArray[np.float32]:
    opened = open_runtime(bundle, load_settings(home=home, device="cpu", runtime=runtime))
    found = opened.predict(noise(8))
    opened.close()
    return found


def test_a_quantised_bundle_is_int8_around_zero_and_right_on_a_cpu(pair: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    exact, made = pair
    model = onnx.load(made.network)

    assert (made.spec.form, made.spec.precision, made.labels) == ("onnx", "int8", exact.labels)
    assert (made.spec.preprocessing, made.spec.top_k) == (exact.spec.preprocessing, exact.spec.top_k)
    assert (made.spec.provenance["made_from"], made.spec.provenance["calibration_images"]) == (exact.model_id, 24)
    assert made.model_id != exact.model_id
    onnx.checker.check_model(model, full_check=True)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = [
        tensors[node.input[2]] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert len(zeros) >= 4
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert any(zero.ndim == 1 and len(zero) > 1 for zero in zeros), "weights have a scale for each channel"
    expected = logits(exact, "openvino", tmp_path)
    for runtime in ("openvino", "onnxruntime"):
        found = logits(made, runtime, tmp_path)
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
        assert not np.array_equal(found, expected)


def test_pixels_are_normalised_in_float32(pair: tuple[Bundle, Bundle]) -> None:
    first = [node.op_type for node in onnx.load(pair[1].network).graph.node[:6]]

    assert first == ["Cast", "Reshape", "Mul", "Add", "Reshape", "Transpose"]


def test_nothing_of_the_machine_is_written_into_the_file(pair: tuple[Bundle, Bundle]) -> None:
    assert b"site-packages" not in pair[1].network.read_bytes()


def test_quantising_is_quiet_and_silences_nobody_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    exact = onnx_bundle(tmp_path / "a")
    capfd.readouterr()
    quantise_for_tensorrt(exact, crops(), tmp_path)
    logging.getLogger("tasks.anything").warning("heard")

    assert capfd.readouterr().out == ""
    assert [record.message for record in caplog.records] == ["heard"]


def test_what_is_no_fp32_network_is_refused(pair: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is onnx in int8, and int8 for TensorRT is made of fp32 networks"):
        quantise_for_tensorrt(pair[1], crops(), tmp_path)


def test_no_images_are_no_calibration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no image to calibrate on"):
        quantise_for_tensorrt(onnx_bundle(tmp_path / "a"), [], tmp_path)


# What TensorRT takes


def quantised(kind: type[np.generic] = np.int8, zero: int = 0, scales: int = 1) -> ModelProto:
    """A graph with one quantiser of activations."""
    made = graph()
    scale = np.float32(0.5) if scales == 1 else np.full(scales, 0.5, np.float32)
    made.graph.initializer.extend(
        [
            numpy_helper.from_array(np.asarray(scale), "scale"),
            numpy_helper.from_array(np.full(np.shape(scale), zero, kind), "zero"),
        ]
    )
    pair = [
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
    ]
    nodes = list(made.graph.node)
    nodes[3].input[0] = "d"
    del made.graph.node[:]
    made.graph.node.extend([*nodes[:3], *pair, *nodes[3:]])
    return made


def test_what_tensorrt_takes_passes() -> None:
    assert check_for_tensorrt(quantised()) == 1


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (quantised(np.uint8), "is not int8 with a zero point of 0"),
        (quantised(zero=3), "is not int8 with a zero point of 0"),
        (quantised(scales=8), "and one scale"),
        (graph(), "Nothing of this network can be quantised"),
    ],
)
def test_what_tensorrt_does_not_take_is_refused(model: ModelProto, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        check_for_tensorrt(model)


def test_an_unsigned_range_becomes_the_same_range_in_int8() -> None:
    """0..255 of steps of 0.5 is 0..127.5, and so is 0..127 of steps of 127.5/127."""
    model = quantised(np.uint8)

    _make_signed(model)

    tensors = {name: numpy_helper.to_array(tensor) for name, tensor in onnx_form.constants(model.graph)}
    assert check_for_tensorrt(model) == 1
    assert float(tensors["scale"]) * 127 == pytest.approx(0.5 * 255)
    onnx.checker.check_model(model, full_check=True)
    other = quantised(np.uint8, zero=7)
    _make_signed(other)
    with pytest.raises(ModelError, match="not int8"):
        check_for_tensorrt(other)
