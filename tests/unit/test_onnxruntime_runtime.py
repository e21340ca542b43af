"""ONNX Runtime on a CPU: bundles that are code are exported once, and rows do not depend on what they come with."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tasks.errors import ConfigurationError, ModelError
from tasks.models.bundle import Bundle, read_bundle
from tasks.models.loading import load_classifier
from tasks.models.runtimes import converting, onnxruntime_runtime, open_runtime
from tasks.models.runtimes.converting import export, keep, onnx_file
from tasks.models.runtimes.onnxruntime_runtime import OnnxRuntime
from tasks.settings import Settings, load_settings
from tests.graphs import noise
from tests.pictures import write_small_bundle

CROP = 16


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path_factory.mktemp("model") / "small"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home that these tests share, so that the network is exported once."""
    return load_settings(home=tmp_path_factory.mktemp("home"), device="cpu", runtime="onnxruntime")


def eager(bundle: Bundle, count: int) -> np.ndarray:
    with torch.inference_mode():
        return load_classifier(bundle)(torch.from_numpy(noise(count))).numpy()


def test_it_gives_the_logits_of_the_eager_network(bundle: Bundle, settings: Settings) -> None:
    runtime = open_runtime(bundle, settings)

    assert isinstance(runtime, OnnxRuntime)
    assert (runtime.device, runtime.buffer().shape, runtime.buffer().dtype) == ("cpu", (8, CROP, CROP, 3), np.uint8)
    for count in (1, 5, 8):
        found = runtime.predict(noise(count))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, eager(bundle, count), atol=1e-5)


def test_it_is_used_only_where_it_is_asked_for(bundle: Bundle, settings: Settings) -> None:
    assert not isinstance(open_runtime(bundle, load_settings(home=settings.home, device="cpu")), OnnxRuntime)


def test_a_network_is_exported_once_on_a_machine(
    bundle: Bundle, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_runtime(bundle, settings).predict(noise(3))
    monkeypatch.setattr(converting, "export", None)

    np.testing.assert_array_equal(open_runtime(bundle, settings).predict(noise(3)), first)
    (folder,) = settings.compiled.glob("*-onnx-*")
    assert folder.name.startswith(bundle.model_id)
    assert folder.stat().st_mode & 0o055 == 0o055, "workers may run as others"


def test_a_row_does_not_depend_on_the_batch_that_it_comes_with(
    bundle: Bundle, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = open_runtime(bundle, settings)
    together = runtime.predict(noise(8))
    given: list[tuple[int, ...]] = []

    class Watching:
        def run(self, names: None, inputs: dict[str, np.ndarray]) -> object:
            given.extend(array.shape for array in inputs.values())
            return session.run(names, inputs)

    session = runtime._session  # type: ignore[attr-defined]
    monkeypatch.setattr(runtime, "_session", Watching())
    parts = np.concatenate([runtime.predict(noise(8)[:3]), runtime.predict(noise(8)[3:])])
    np.testing.assert_array_equal(parts, together)
    assert given == [(8, CROP, CROP, 3)] * 2, "every batch is filled up"


def test_as_many_threads_as_cores_share_a_session(
    bundle: Bundle, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_runtime, "cores", lambda: 3)
    runtime = open_runtime(bundle, settings)
    alone = runtime.predict(noise(8))

    assert runtime.streams == 3
    with ThreadPoolExecutor(3) as pool:
        assert all(np.array_equal(alone, found) for found in pool.map(runtime.predict, [noise(8)] * 30))


def test_a_closed_network_predicts_nothing(bundle: Bundle, settings: Settings) -> None:
    runtime = open_runtime(bundle, settings)
    runtime.close()
    runtime.close()

    with pytest.raises(RuntimeError, match="closed"):
        runtime.predict(noise(1))


def test_the_batch_size_of_the_settings_is_used(bundle: Bundle, settings: Settings) -> None:
    runtime = open_runtime(bundle, settings.model_copy(update={"batch_size": 3}))

    assert (runtime.batch_size, runtime.buffer().shape[0]) == (3, 3)
    np.testing.assert_allclose(runtime.predict(noise(2)), eager(bundle, 2), atol=1e-5)


def test_without_the_extra_it_is_named(bundle: Bundle, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.extras.find_spec", lambda _: None)

    with pytest.raises(ConfigurationError, match=r"AFTERIMAGE_RUNTIME=onnxruntime needs the package onnxruntime"):
        open_runtime(bundle, settings)


# What is exported


def test_what_is_exported_is_quiet_and_says_nothing_of_the_machine(
    bundle: Bundle, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.WARNING):
        file = onnx_file(bundle, tmp_path)

    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert b"/tasks/models" not in file.read_bytes(), "no stack traces"
    assert b"site-packages" not in file.read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_network_is_exported_in_the_precision_of_its_bundle(precision: str, tmp_path: Path) -> None:
    """For TensorRT, which computes in the types that the graph says. BatchNorm is folded, and must not stay float32."""
    from safetensors.torch import save

    from tasks.models.architectures import build
    from tasks.models.bundle import ModelSpec, Preprocessing, write_bundle

    preprocessing = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    spec = ModelSpec("net", "torchvision:mnasnet0_5", preprocessing, precision=precision)
    torch.manual_seed(0)
    write_bundle(tmp_path, spec, ("a", "b", "c"), save(build(spec.architecture, 3, {}).state_dict()))

    model = export(read_bundle(tmp_path))

    kind = {"fp32": onnx.TensorProto.FLOAT, "bf16": onnx.TensorProto.BFLOAT16, "fp16": onnx.TensorProto.FLOAT16}[
        precision
    ]
    weights = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert weights == {kind}
    assert (model.graph.input[0].type.tensor_type.elem_type, model.graph.output[0].type.tensor_type.elem_type) == (
        onnx.TensorProto.UINT8,
        onnx.TensorProto.FLOAT,
    )
    onnx.checker.check_model(model, full_check=True)


def test_a_network_that_torch_cannot_export_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))

    classifier = load_classifier(bundle)
    classifier.network = Odd()
    monkeypatch.setattr("tasks.models.loading.load_classifier", lambda _: classifier)

    with pytest.raises(ModelError, match=r"cannot write small_cnn as ONNX in fp32: .* Set AFTERIMAGE_RUNTIME to auto"):
        export(bundle)


def test_a_worker_that_comes_second_leaves_what_the_first_kept(tmp_path: Path) -> None:
    for content in ("first", "second"):
        keep(tmp_path / "kept", lambda folder, content=content: (folder / "x").write_text(content))

    assert (tmp_path / "kept" / "x").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
