"""benchmarks/gpu.py as far as it goes without a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu
from tasks.inference.decoding.nvjpeg import NvjpegDecoder
from tasks.models.runtimes.torch_runtime import TorchRuntime
from tests.unit.test_bare_image import BLOCK, on_the_bare_image


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_ends_with_2() -> None:
    code = BLOCK + (
        "from benchmarks import gpu\n"
        "import argparse\n"
        "print(gpu.main(argparse.Namespace(folder=None, networks=[], batch=None, seconds=1.0, rounds=1)))\n"
    )
    assert on_the_bare_image(code).strip() == "2"


def test_made_pictures_are_jpeg_of_a_photographs_size() -> None:
    first, second = (gpu.made_picture(np.random.default_rng(seed)) for seed in range(2))

    assert first[:3] == b"\xff\xd8\xff"
    assert first != second
    assert 50_000 < len(first) < 110_000


def test_a_folder_without_photographs_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no"):
        gpu.photographs(tmp_path)


def test_the_chain_counts_each_image_once() -> None:
    files = [gpu.made_picture(np.random.default_rng(seed)) for seed in range(2)]
    network = gpu.classifier("mobilenet_v3_small")
    runtime = TorchRuntime(network, gpu.CROP, batch_size=4, is_compiled=False)

    def fail(*_: object) -> None:
        raise AssertionError("common JPEG stays on the device")

    decoder = NvjpegDecoder(gpu.spec_of("any", "fp32", "nvjpeg-1").preprocessing, "cpu", fail)
    chain = gpu.Chain(decoder, runtime, files, 2)
    counted: list[int] = []
    forward = runtime.predict
    runtime.predict = lambda pixels: counted.append(len(pixels)) or forward(pixels)  # type: ignore[method-assign]

    rate = chain.rate(1.0)

    assert 0 < rate <= sum(counted)
    assert chain.full.empty()
    assert chain.free.qsize() == 2 + 2 * runtime.streams, "every buffer came back"


def test_a_failure_in_a_thread_ends_the_measurement() -> None:
    def fail() -> int:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        gpu.images_per_second(0.1, [fail])


def test_rates_are_printed_for_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.Namespace(rounds=3, seconds=1.0)
    ways = [("quick", lambda _: 2_000.0), ("slow", lambda _: 10.0)]

    gpu.measure("title", iter(ways), arguments)

    assert "quick" in (printed := capsys.readouterr().out)
    assert "2,000 images/s" in printed
