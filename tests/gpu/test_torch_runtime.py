"""The forward pass on a CUDA device, against eager torch on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.models.runtimes import programs, torch_runtime
from tasks.models.runtimes.lanes import CudaLane
from tasks.models.runtimes.torch_runtime import TorchRuntime
from tasks.models.spec import Precision
from tests.gpu.networks import CROP, classifier, noise, on_cpu

pytestmark = pytest.mark.gpu

NETWORKS = ("mobilenet_v3_small", "squeezenet1_0", "resnet18")


def runtime(name: str = "resnet18", precision: Precision = "fp32", **given: Any) -> TorchRuntime:
    options = {"batch_size": 8, "is_compiled": False, **given}
    return TorchRuntime(classifier(name, precision), CROP, "cuda", identity=f"{name}-{precision}", **options)


def lanes(opened: TorchRuntime) -> list[CudaLane]:
    found = [lane for lane in opened._lanes.queue if isinstance(lane, CudaLane)]
    assert len(found) == opened.streams == 2
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that these tests share: a package takes a minute or two to build."""
    return tmp_path_factory.mktemp("compiled")


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_fp32_on_the_gpu_is_fp32(name: str, is_compiled: bool, compiled: Path) -> None:
    opened = runtime(name, is_compiled=is_compiled, compiled=compiled)

    found, expected = opened.predict(noise(8)), on_cpu(name, noise(8))

    assert opened.device == torch.cuda.get_device_name()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("name", "is_compiled"), [*((name, False) for name in NETWORKS), ("resnet18", True)])
def test_half_precisions_give_the_same_top_1(
    name: str, precision: Precision, is_compiled: bool, compiled: Path
) -> None:
    expected = on_cpu(name, noise(64))
    found = runtime(name, precision, batch_size=64, is_compiled=is_compiled, compiled=compiled).predict(noise(64))

    limit = 0.1 * float(np.ptp(expected))
    np.testing.assert_allclose(found, expected, atol=limit)
    # An untrained network has near ties, which rounding may decide either way.
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 2 * np.abs(found - expected).max()
    np.testing.assert_array_equal(found.argmax(1)[clear], expected.argmax(1)[clear])
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.5


def test_a_full_batch_replays_a_graph_in_every_lane() -> None:
    opened = runtime()

    class Counting:
        def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
            self.graph, self.count = graph, 0

        def replay(self) -> None:
            self.count += 1
            self.graph.replay()

    counting = []
    for lane in lanes(opened):
        assert lane.replays
        assert lane._graph is not None
        counting.append(Counting(lane._graph))
        lane._graph = counting[-1]  # type: ignore[assignment]
    opened.predict(noise(8))

    assert sum(each.count for each in counting) == 1


def test_a_lane_without_a_graph_gives_the_same() -> None:
    opened = runtime()
    with_graph = opened.predict(noise(8))
    for lane in lanes(opened):
        lane._graph = None

    np.testing.assert_allclose(opened.predict(noise(8)), with_graph, atol=1e-5)


def test_an_image_has_the_same_logits_in_a_full_and_in_a_partial_batch() -> None:
    opened = runtime()
    full = opened.predict(noise(8))

    for count in (1, 3, 7):
        np.testing.assert_array_equal(opened.predict(noise(8)[:count]), full[:count])
    assert opened.predict(noise(21)).shape == (21, 1_000)


def test_two_threads_in_forward_get_what_one_gets() -> None:
    opened = runtime()
    batches = [noise(count, seed) for seed, count in enumerate([8, 8, 3, 8, 1, 8] * 10)]
    alone = [opened.predict(batch) for batch in batches]
    buffers = [opened.buffer() for _ in batches]

    def pinned(number: int) -> Any:
        batch = batches[number]
        buffers[number][: len(batch)] = batch
        return opened.predict(buffers[number][: len(batch)])

    with ThreadPoolExecutor(2) as pool:
        for left, right in zip(alone, pool.map(pinned, range(len(batches))), strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_buffer_is_pinned_and_is_copied_from_where_it_lies() -> None:
    opened = runtime()
    buffer = opened.buffer()
    assert buffer.shape == (8, CROP, CROP, 3)
    assert torch.from_numpy(buffer).is_pinned()
    for lane in lanes(opened):
        lane._staging.numpy()[...] = 0
    buffer[...] = noise(8)

    expected = opened.predict(noise(8))
    for lane in lanes(opened):
        lane._staging.numpy()[...] = 0
    np.testing.assert_array_equal(opened.predict(buffer), expected)
    assert all(not lane._staging.any() for lane in lanes(opened))


def test_the_logits_are_the_callers_to_keep() -> None:
    opened = runtime()
    first = opened.predict(noise(8))
    kept = first.copy()
    for seed in range(4):
        opened.predict(noise(8, seed + 1))

    np.testing.assert_array_equal(first, kept)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two gigabytes for this process, whatever the device has."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties().total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2e9) / total))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_memory_that_runs_out_halves_the_batch_until_it_fits(tmp_path: Path) -> None:
    opened = runtime(batch_size=8_192)

    assert 1 <= opened.batch_size < 8_192
    np.testing.assert_allclose(opened.predict(noise(40))[:8], on_cpu("resnet18", noise(40)[:8]), atol=1e-3)


def test_memory_that_runs_out_in_forward_halves_the_batch_and_goes_on() -> None:
    opened = runtime()
    expected = opened.predict(noise(8))

    def full(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for lane in lanes(opened):
        lane._graph, lane._program = None, programs.Program("eager", full)

    np.testing.assert_allclose(opened.predict(noise(8)), expected, atol=1e-3)
    assert opened.batch_size == 4
    assert all(lane.batch == 4 and lane.replays for lane in lanes(opened))


def test_a_package_is_built_once_and_used_by_the_next_worker(
    compiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = runtime("squeezenet1_0", is_compiled=True, compiled=compiled)
    if first.program != "package":
        pytest.skip(f"no package works here, the program is {first.program}: {caplog.text}")
    expected = first.predict(noise(8))
    assert all(lane.replays for lane in lanes(first)), "a package runs inside a graph"

    monkeypatch.setattr(programs, "build_package", None)
    again = runtime("squeezenet1_0", is_compiled=True, compiled=compiled)

    assert again.program == "package"
    np.testing.assert_allclose(again.predict(noise(8)), expected, atol=1e-5)


def test_without_a_folder_the_network_is_compiled_for_the_process_and_runs_inside_a_graph() -> None:
    opened = runtime("mobilenet_v3_small", is_compiled=True, compiled=None)

    assert opened.program == "compiled"
    assert all(lane.replays for lane in lanes(opened))
    np.testing.assert_allclose(opened.predict(noise(8)), on_cpu("mobilenet_v3_small", noise(8)), atol=1e-3)


def test_the_batch_size_is_probed_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runtime("mobilenet_v3_small", batch_size=None, compiled=tmp_path)
    assert first.batch_size >= 16
    monkeypatch.setattr(torch_runtime, "best_batch", None)

    assert runtime("mobilenet_v3_small", batch_size=None, compiled=tmp_path).batch_size == first.batch_size
    assert runtime("mobilenet_v3_small", batch_size=8, compiled=tmp_path).batch_size == 8


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_a_worker_keeps_to_its_own_device() -> None:
    before = torch.cuda.memory_allocated(0)
    opened = TorchRuntime(classifier(), CROP, "cuda:1", batch_size=8, is_compiled=False)
    opened.buffer()

    np.testing.assert_allclose(opened.predict(noise(8)), on_cpu("resnet18", noise(8)), atol=1e-3)
    assert torch.cuda.memory_allocated(0) == before
