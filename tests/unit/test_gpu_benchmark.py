"""benchmarks/gpu.py as far as it goes without a GPU."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, jpegs, untrained
from benchmarks.in_threads import images_per_second
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
    first, second = (jpegs.made_picture(np.random.default_rng(seed)) for seed in range(2))

    assert first[:3] == b"\xff\xd8\xff"
    assert first != second
    assert 50_000 < len(first) < 110_000


def test_a_folder_without_photographs_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no"):
        jpegs.photographs(tmp_path)


def test_the_chain_counts_each_image_once() -> None:
    files = [jpegs.made_picture(np.random.default_rng(seed)) for seed in range(2)]
    network = untrained.classifier("mobilenet_v3_small")
    runtime = TorchRuntime(network, untrained.CROP, batch_size=4, is_compiled=False)

    def fail(*_: object) -> None:
        raise AssertionError("common JPEG stays on the device")

    decoder = NvjpegDecoder(untrained.spec_of("any", "fp32", "nvjpeg-1").preprocessing, "cpu", fail)
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
        images_per_second(0.1, [fail])


def test_a_thread_makes_one_pass_before_its_clock_starts() -> None:
    """torch looks for cuDNN's plans in each thread: a rate of that would be none of the network's."""
    begun: set[int] = set()

    def work() -> int:
        is_first = threading.get_ident() not in begun
        begun.add(threading.get_ident())
        return 1_000_000 if is_first else 0

    assert images_per_second(0.1, [work, work]) == 0
    assert len(begun) == 2


def test_an_untrained_networks_numbers_are_neither_nothing_nor_all_the_same() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    with torch.inference_mode():
        logits = untrained.classifier("mobilenet_v3_small", crop=96)(torch.from_numpy(pixels)).numpy()

    assert 0.1 < np.ptp(logits, axis=1).min() < 100


def test_rates_are_printed_for_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = argparse.Namespace(rounds=3, seconds=1.0)
    ways = [("quick", lambda _: 2_000.0), ("slow", lambda _: 10.0)]

    gpu.measure("title", iter(ways), arguments)

    assert "quick" in (printed := capsys.readouterr().out)
    assert "2,000 images/s" in printed
