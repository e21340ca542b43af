"""TensorRT on a CUDA device, against eager torch on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.models.runtimes import choose_runtime, engines, tensorrt_runtime
from tasks.models.runtimes.tensorrt_runtime import TensorRtRuntime
from tasks.models.spec import Precision
from tests.gpu.networks import CROP, MEAN, STD, classifier, noise, on_cpu

pytestmark = pytest.mark.gpu

Open = Callable[..., TensorRtRuntime]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that these tests share, so that each engine is built once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def runtime(compiled: Path) -> Open:
    """Opens a network of torchvision's in a precision."""
    for package in ("tensorrt", "onnx", "onnxscript", "pydantic", "safetensors"):
        pytest.importorskip(package)
    from safetensors.torch import save

    from tasks.models.bundle import ModelSpec, Preprocessing, read_bundle, write_bundle

    def open_it(name: str = "resnet18", precision: Precision = "fp32", **given: Any) -> TensorRtRuntime:
        folder = compiled / f"{name}-{precision}"
        if not folder.exists():
            folder.mkdir()
            spec = ModelSpec(name, f"torchvision:{name}", Preprocessing(CROP, CROP, MEAN, STD), precision=precision)
            labels = [str(number) for number in range(1_000)]
            write_bundle(folder, spec, labels, save(classifier(name).network.state_dict()))
        bundle = read_bundle(folder)
        assert choose_runtime(bundle, "cuda", "tensorrt").name == "tensorrt"
        return TensorRtRuntime(bundle, "cuda", compiled, **{"batch_size": 8, **given})

    return open_it


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
def test_fp32_is_fp32(name: str, runtime: Open) -> None:
    opened = runtime(name)

    found, expected = opened.predict(noise(8)), on_cpu(name, noise(8))

    assert opened.device == torch.cuda.get_device_name()
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_are_close(precision: Precision, runtime: Open) -> None:
    expected = on_cpu("resnet18", noise(8))

    np.testing.assert_allclose(
        runtime("resnet18", precision).predict(noise(8)), expected, atol=0.1 * float(np.ptp(expected))
    )


def test_an_image_has_the_same_logits_in_a_full_and_in_a_partial_batch(runtime: Open) -> None:
    opened = runtime()
    full = opened.predict(noise(8))

    for count in (1, 3, 7):
        np.testing.assert_array_equal(opened.predict(noise(8)[:count]), full[:count])


def test_two_threads_in_forward_get_what_one_gets(runtime: Open) -> None:
    opened = runtime()
    batches = [noise(count, seed) for seed, count in enumerate([8, 8, 3, 8, 1, 8] * 10)]
    alone = [opened.predict(batch) for batch in batches]

    assert opened.streams == 2
    with ThreadPoolExecutor(2) as pool:
        for left, right in zip(alone, pool.map(opened.predict, batches), strict=True):
            np.testing.assert_array_equal(left, right)


def test_every_lane_replays_a_graph(runtime: Open) -> None:
    opened = runtime()
    lanes = [opened._lanes.get() for _ in range(opened.streams)]

    assert all(lane is not None and lane.replays for lane in lanes)


def test_an_engine_is_built_once_and_used_by_the_next_worker(runtime: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = runtime().predict(noise(8))
    monkeypatch.setattr(engines, "_build", None)

    np.testing.assert_array_equal(runtime().predict(noise(8)), expected)


def test_a_damaged_engine_is_built_anew(runtime: Open, compiled: Path) -> None:
    expected = runtime("squeezenet1_0").predict(noise(8))
    for file in compiled.glob("tensorrt-*/*.engine"):
        file.write_bytes(file.read_bytes()[:1_000])
        file.chmod(0o600)

    np.testing.assert_allclose(runtime("squeezenet1_0").predict(noise(8)), expected, atol=1e-4)


def test_memory_that_runs_out_halves_the_batch(runtime: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tensorrt_runtime.engine_program

    def little(engine: engines.Engine, device: torch.device) -> Any:
        if engine.batch > 2:
            raise engines.NoMemory("as on a small device")
        return real(engine, device)

    monkeypatch.setattr(tensorrt_runtime, "engine_program", little)
    opened = runtime()

    assert opened.batch_size == 2
    np.testing.assert_allclose(opened.predict(noise(2)), on_cpu("resnet18", noise(2)), atol=1e-3)


def test_closing_gives_the_memory_back(runtime: Open) -> None:
    opened = runtime()
    opened.close()
    opened.close()

    with pytest.raises(RuntimeError, match="closed"):
        opened.predict(noise(1))


def test_int8_of_qdq_runs_close_to_fp32(runtime: Open, compiled: Path, tmp_path: Path) -> None:
    for package in ("nncf", "sqlalchemy", "openvino"):
        pytest.importorskip(package)
    from tasks.models.bundle import read_bundle
    from tasks.optimisation.qdq import quantise_for_tensorrt
    from tasks.optimisation.sample import Crops

    exact = runtime("resnet18")
    keys = tuple(str(number) for number in range(32))
    quantise_for_tensorrt(read_bundle(compiled / "resnet18-fp32"), [Crops(keys, noise(32))], tmp_path)
    opened = TensorRtRuntime(read_bundle(tmp_path), "cuda", compiled, batch_size=8)

    expected = exact.predict(noise(8))
    assert np.corrcoef(opened.predict(noise(8)).ravel(), expected.ravel())[0, 1] > 0.95
