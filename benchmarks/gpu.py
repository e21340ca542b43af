"""Images a second on this machine's GPU: forward only, decode only, and end to end. Runs on a bare CUDA image.

    python -m benchmarks.gpu [FOLDER] [--networks resnet50 mobilenet_v3_small] [--precisions fp32 bf16 fp16]
        [--parts decode forward whole] [--batch 256] [--no-packages] [--seconds 3] [--rounds 5]

FOLDER holds JPEG photographs; without one, pictures of 500 x 375 pixels are made. The ways are measured in turn, a
round after the other, and the medians are printed: absolute images/s. Each way takes uint8 pixels in host memory and
gives float32 logits in host memory. End to end begins with the bytes of the files in memory.

    ours fp32, bf16, fp16    TorchRuntime: two streams, pinned buffers, a compiled program, CUDA graphs
    ours, not compiled       the same around the eager network: what a worker does where nothing can be compiled
    eager fp32               torch as it comes, NCHW, TF32 off as for all of them
    AMP channels_last        autocast to fp16
    torch.compile            the same, compiled

All of them copy from pinned memory. Each thread makes a pass before its clock starts: torch looks for cuDNN's plans once in each
thread, which takes a second or two.

torch, torchvision, Pillow and NumPy are enough. Without a CUDA device it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torchvision

from benchmarks.in_threads import images_per_second
from benchmarks.jpegs import made_pictures, photographs
from benchmarks.untrained import CROP, classifier, spec_of
from tasks.inference.decoding.nvjpeg import GROUP, NvjpegDecoder
from tasks.inference.decoding.policies import WORTH_COMPILING, Decoder, open_decoder
from tasks.models.runtimes import Logits, Pixels, Runtime
from tasks.models.runtimes.lanes import pinned
from tasks.models.runtimes.torch_runtime import TorchRuntime
from tasks.models.spec import Policy, Precision, Preprocessing

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
PARTS = ("decode", "forward", "whole")

Rate = Callable[[float], float]
"""Work for some seconds; images/s."""


def main(arguments: argparse.Namespace) -> int:
    """Measure everything and print it."""
    if not torch.cuda.is_available():
        print("torch finds no CUDA device here: this benchmark measures nothing without one.", file=sys.stderr)
        return 2
    files = photographs(arguments.folder) if arguments.folder else made_pictures()
    print_machine(files)
    with tempfile.TemporaryDirectory() as home:
        if "decode" in arguments.parts:
            measure("decode only", decoding_ways(files, Path(home)), arguments)
        for name in arguments.networks:
            measure_network(name, files, Path(home), arguments)
    return 0


def measure_network(name: str, files: Sequence[bytes], home: Path, arguments: argparse.Namespace) -> None:
    """Forward only and end to end, with the same runtimes."""
    runtimes: dict[Precision, TorchRuntime] = {}
    for precision in arguments.precisions:
        runtimes[precision] = ours(name, precision, home, arguments)
    print()
    for precision, runtime in runtimes.items():
        print(f"{name} {precision}: batches of {runtime.batch_size}, program: {runtime.program}", flush=True)
    if "forward" in arguments.parts:
        measure(f"{name}, forward only", forward_ways(name, runtimes), arguments)
    if "whole" in arguments.parts:
        measure(f"{name}, end to end", whole_ways(name, files, home, runtimes), arguments)
    for runtime in runtimes.values():
        runtime.close()


def print_machine(files: Sequence[bytes]) -> None:
    """Device, driver, versions and pictures: what the figures belong to."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    print(f"device       {torch.cuda.get_device_name()}, {len(os.sched_getaffinity(0))} CPU cores")
    print(f"driver       {driver}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")  # type: ignore[no-untyped-call]
    print(f"versions     torch {torch.__version__}, torchvision {torchvision.__version__}, numpy {np.__version__}")
    print(f"pictures     {len(files)}, {sum(map(len, files)) / len(files) / 1e3:.0f} kB each on average")


def measure(title: str, ways: Iterator[tuple[str, Rate]], arguments: argparse.Namespace) -> None:
    """All ways in turn, after a warm-up of each; medians over the rounds."""
    print(f"\n{title}", flush=True)
    opened = list(ways)
    rates: dict[str, list[float]] = {name: [] for name, _ in opened}
    for _, rate in opened:
        rate(0.5)
    for _ in range(arguments.rounds):
        for name, rate in opened:
            rates[name].append(rate(arguments.seconds))
    for name, found in rates.items():
        print(f"    {name:34} {median(found):9,.0f} images/s   ({min(found):,.0f} to {max(found):,.0f})", flush=True)


# Forward


def ours(name: str, precision: Precision, home: Path, arguments: argparse.Namespace) -> TorchRuntime:
    """The runtime as a worker opens it."""
    return TorchRuntime(
        classifier(name, precision),
        CROP,
        "cuda",
        identity=f"benchmark-{name}-{precision}",
        compiled=None if arguments.no_packages else home,
        batch_size=arguments.batch,
    )


def forward_ways(name: str, runtimes: Mapping[Precision, TorchRuntime]) -> Iterator[tuple[str, Rate]]:
    """Every way to run the network, ours first: its batch size is everybody's."""
    for precision, runtime in runtimes.items():
        size = runtime.batch_size
        yield f"ours {precision}, batch {size}", by_streams(runtime)
        eager = TorchRuntime(classifier(name, precision), CROP, "cuda", batch_size=size, is_compiled=False)
        yield f"ours {precision}, not compiled", by_streams(eager)
    largest = max(runtime.batch_size for runtime in runtimes.values())
    for title, forward in peers(name).items():
        yield f"{title}, batch {largest}", by_one_thread(forward, largest)


def by_streams(runtime: Runtime) -> Rate:
    """As many threads in `forward` as it has streams."""

    def count(pixels: Pixels) -> int:
        return len(runtime.predict(pixels))

    def rate(seconds: float) -> float:
        buffers = [filled(runtime.buffer()) for _ in range(runtime.streams)]
        return images_per_second(seconds, [partial(count, each) for each in buffers])

    return rate


def by_one_thread(forward: Callable[[Pixels], Logits], batch: int) -> Rate:
    """One batch after the other."""
    pixels = filled(pinned(batch, CROP).numpy())
    return lambda seconds: images_per_second(seconds, [lambda: len(forward(pixels))])


def filled(pixels: Pixels) -> Pixels:
    """Noise in place, as no network takes a shortcut through."""
    pixels[...] = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    return pixels


def peers(name: str) -> dict[str, Callable[[Pixels], Logits]]:
    """torch as it is used elsewhere. They get uint8 too, which is kinder to them than the float32 of a DataLoader."""
    eager = classifier(name).cuda()
    last = classifier(name).cuda().to(memory_format=torch.channels_last)
    compiled = torch.compile(last, dynamic=False)

    def run(network: Callable[[torch.Tensor], torch.Tensor], pixels: Pixels, *, amp: bool) -> Logits:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=amp):
            return network(torch.from_numpy(pixels).cuda(non_blocking=True)).float().cpu().numpy()

    return {
        "eager fp32": lambda pixels: run(eager, pixels, amp=False),
        "AMP channels_last": lambda pixels: run(last, pixels, amp=True),
        "torch.compile AMP channels_last": lambda pixels: run(compiled, pixels, amp=True),
    }


# Decode


def decoding_ways(files: Sequence[bytes], home: Path) -> Iterator[tuple[str, Rate]]:
    """nvJPEG in one and two threads, and exact-1 on all cores."""
    ways: list[tuple[Policy, int]] = [("nvjpeg-1", 1), ("nvjpeg-1", 2), ("exact-1", len(os.sched_getaffinity(0)))]
    for policy, threads in ways:
        spec = spec_of("decoding", "fp32", policy).preprocessing
        yield f"{policy}, {threads} threads", by_threads(ready_decoder(spec, home), files, threads)


def ready_decoder(spec: Preprocessing, home: Path) -> Decoder | NvjpegDecoder:
    """A decoder that is as fast as it gets: exact-1 is compiled beside the first pictures otherwise."""
    decoder = open_decoder(spec, home, WORTH_COMPILING, "cuda")
    if isinstance(decoder, Decoder):
        decoder.prepare()
    return decoder


def by_threads(decoder: Decoder | NvjpegDecoder, files: Sequence[bytes], threads: int) -> Rate:
    """Groups of files into arrays, in that many threads."""

    def work(turn: Iterator[bytes], out: Pixels) -> int:
        must_succeed(decoder.decode_group(list(itertools.islice(turn, len(out))), list(out)))
        return len(out)

    def rate(seconds: float) -> float:
        turns = [itertools.cycle([*files[number:], *files[:number]]) for number in range(threads)]
        outs = [np.empty((min(decoder.group, GROUP), CROP, CROP, 3), np.uint8) for _ in range(threads)]
        works = [lambda turn=turn, out=out: work(turn, out) for turn, out in zip(turns, outs, strict=True)]
        return images_per_second(seconds, works)

    return rate


def must_succeed(errors: Sequence[Exception | None]) -> None:
    """A benchmark over pictures that fail would be a fast one."""
    for error in errors:
        if error is not None:
            raise error


# End to end


def whole_ways(
    name: str, files: Sequence[bytes], home: Path, runtimes: Mapping[Precision, TorchRuntime]
) -> Iterator[tuple[str, Rate]]:
    """Decoding and forward passes side by side."""
    for precision, runtime in runtimes.items():
        spec = spec_of(name, precision, "nvjpeg-1").preprocessing
        yield f"ours {precision}, nvJPEG", Chain(ready_decoder(spec, home), runtime, files, 2).rate
    cores = len(os.sched_getaffinity(0))
    exact = ready_decoder(spec_of(name, "fp32").preprocessing, home)
    yield f"ours {precision}, exact-1 on {cores} threads", Chain(exact, runtime, files, cores).rate
    yield "eager fp32, exact-1 in its thread", alternating(files, peers(name)["eager fp32"], exact)


class Chain:
    """Threads that fill buffers with decoded pictures, and threads that run them; buffers go round between them."""

    def __init__(
        self, decoder: Decoder | NvjpegDecoder, runtime: Runtime, files: Sequence[bytes], decoding: int
    ) -> None:
        self.decoder, self.runtime = decoder, runtime
        self.files = itertools.cycle(files)
        self.decoding = decoding
        self.turn = threading.Lock()
        self.free: queue.Queue[Pixels] = queue.Queue()
        self.full: queue.Queue[Pixels] = queue.Queue()
        for _ in range(decoding + 2 * runtime.streams):
            self.free.put(runtime.buffer())

    def rate(self, seconds: float) -> float:
        """Images/s that came out at the end."""
        works = [self.decode] * self.decoding + [self.forward] * self.runtime.streams
        found = images_per_second(seconds, works)
        while not self.full.empty():  # What was decoded in this round must not count in the next.
            self.free.put(self.full.get())
        return found

    def decode(self) -> int:
        """Fill one buffer; the images are counted where they come out."""
        try:
            buffer = self.free.get(timeout=0.1)
        except queue.Empty:
            return 0
        with self.turn:
            data = list(itertools.islice(self.files, len(buffer)))
        for at in range(0, len(buffer), self.decoder.group):
            rows = buffer[at : at + self.decoder.group]
            must_succeed(self.decoder.decode_group(data[at : at + len(rows)], list(rows)))
        self.full.put(buffer)
        return 0

    def forward(self) -> int:
        """Run one buffer."""
        try:
            buffer = self.full.get(timeout=0.1)
        except queue.Empty:
            return 0
        count = len(self.runtime.predict(buffer))
        self.free.put(buffer)
        return count


def alternating(files: Sequence[bytes], forward: Callable[[Pixels], Logits], decoder: Decoder | NvjpegDecoder) -> Rate:
    """What a loop does: decode a batch, run it, decode the next."""
    turn, pixels = itertools.cycle(files), np.empty((64, CROP, CROP, 3), np.uint8)

    def work() -> int:
        must_succeed(decoder.decode_group(list(itertools.islice(turn, len(pixels))), list(pixels)))
        return len(forward(pixels))

    return lambda seconds: images_per_second(seconds, [work])


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Images a second on this GPU.")
    parser.add_argument("folder", nargs="?", type=Path, help="JPEG photographs; without it pictures are made")
    parser.add_argument("--networks", nargs="+", default=["resnet50", "mobilenet_v3_small"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="of ours")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--no-packages",
        action="store_true",
        help="compile for this process: the same kernels, made in 20 s instead of 100",
    )
    parser.add_argument("--batch", type=int, help="images in one forward pass; probed where it is not given")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main(parsed()))
