"""Images a second on this machine's GPU: forward only, decode only, and end to end. Runs on a bare CUDA image.

    python -m benchmarks.gpu [FOLDER] [--networks resnet50 mobilenet_v3_small] [--batch 256] [--seconds 3] [--rounds 5]

FOLDER holds JPEG photographs; without one, pictures of 500 x 375 pixels are made. The ways are measured in turn, a
round after the other, and the medians are printed: absolute images/s. Each way takes uint8 pixels in host memory and
gives float32 logits in host memory. End to end begins with the bytes of the files in memory.

    ours fp32, bf16, fp16    TorchRuntime: two streams, pinned buffers, a compiled program, CUDA graphs
    eager fp32               torch as it comes, NCHW, TF32 off as for all of them
    AMP channels_last        autocast to fp16
    torch.compile            the same, compiled

torch, torchvision, Pillow and NumPy are enough. Without a CUDA device it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from PIL import Image

from tasks.inference.decoding.nvjpeg import GROUP, NvjpegDecoder
from tasks.inference.decoding.policies import Decoder, open_decoder
from tasks.models.architectures import build
from tasks.models.loading import Classifier, wrap
from tasks.models.runtimes import Logits, Pixels, Runtime
from tasks.models.runtimes.torch_runtime import TorchRuntime
from tasks.models.spec import ModelSpec, Policy, Precision, Preprocessing

RESIZE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
MADE = 256  # pictures, where no folder is given

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
        measure("decode only", decoding_ways(files, Path(home)), arguments)
        for name in arguments.networks:
            measure(f"{name}, forward only", forward_ways(name, Path(home), arguments.batch), arguments)
            measure(f"{name}, end to end", whole_ways(name, files, Path(home), arguments.batch), arguments)
    return 0


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


def spec_of(name: str, precision: Precision, policy: Policy = "exact-1") -> ModelSpec:
    """A network of torchvision's with the usual preprocessing."""
    preprocessing = Preprocessing(RESIZE, CROP, MEAN, STD, decode=policy)
    return ModelSpec(name, f"torchvision:{name}", preprocessing, precision=precision)


def classifier(name: str, precision: Precision = "fp32") -> Classifier:
    """An untrained network: its rate is that of a trained one."""
    torch.manual_seed(0)
    spec = spec_of(name, precision)
    return wrap(build(spec.architecture, 1_000, spec.options), spec)


def ours(name: str, precision: Precision, home: Path, batch: int | None) -> TorchRuntime:
    """The runtime as a worker opens it."""
    network = classifier(name, precision)
    return TorchRuntime(
        network, CROP, "cuda", identity=f"benchmark-{name}-{precision}", compiled=home, batch_size=batch
    )


def forward_ways(name: str, home: Path, batch: int | None) -> Iterator[tuple[str, Rate]]:
    """Every way to run the network, ours first: its batch size is everybody's."""
    sizes = []
    for precision in PRECISIONS:
        runtime = ours(name, precision, home, batch)
        sizes.append(runtime.batch_size)
        yield f"ours {precision}, batch {runtime.batch_size}", by_streams(runtime)
    for title, forward in peers(name).items():
        yield f"{title}, batch {max(sizes)}", by_one_thread(forward, max(sizes))


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
    pixels = filled(np.empty((batch, CROP, CROP, 3), np.uint8))
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
            return network(torch.from_numpy(pixels).cuda()).float().cpu().numpy()

    return {
        "eager fp32": lambda pixels: run(eager, pixels, amp=False),
        "AMP channels_last": lambda pixels: run(last, pixels, amp=True),
        "torch.compile AMP channels_last": lambda pixels: run(compiled, pixels, amp=True),
    }


def images_per_second(seconds: float, works: Sequence[Callable[[], int]]) -> float:
    """Each work in a thread of its own, over and over; a work returns how many images it did."""
    done = [0] * len(works)
    failures: list[BaseException] = []
    started = time.perf_counter()

    def repeat(number: int) -> None:
        try:
            while time.perf_counter() - started < seconds:
                done[number] += works[number]()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(done) / (time.perf_counter() - started)


# Decode


def decoding_ways(files: Sequence[bytes], home: Path) -> Iterator[tuple[str, Rate]]:
    """nvJPEG in one and two threads, and exact-1 on all cores."""
    ways: list[tuple[Policy, int]] = [("nvjpeg-1", 1), ("nvjpeg-1", 2), ("exact-1", len(os.sched_getaffinity(0)))]
    for policy, threads in ways:
        spec = spec_of("decoding", "fp32", policy).preprocessing
        decoder = open_decoder(spec, home, len(files) * 1_000, "cuda")
        yield f"{policy}, {threads} threads", by_threads(decoder, files, threads)


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


def whole_ways(name: str, files: Sequence[bytes], home: Path, batch: int | None) -> Iterator[tuple[str, Rate]]:
    """Decoding and forward passes side by side."""
    for precision in PRECISIONS:
        spec = spec_of(name, precision, "nvjpeg-1").preprocessing
        runtime = ours(name, precision, home, batch)
        yield f"ours {precision}, nvJPEG", Chain(open_decoder(spec, home, 0, "cuda"), runtime, files, 2).rate
    cores = len(os.sched_getaffinity(0))
    spec = spec_of(name, "bf16").preprocessing
    exact = open_decoder(spec, home, len(files) * 1_000, "cuda")
    yield f"ours bf16, exact-1 on {cores} threads", Chain(exact, ours(name, "bf16", home, batch), files, cores).rate
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


# Pictures


def photographs(folder: Path) -> list[bytes]:
    """Every JPEG file below a folder."""
    found = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not found:
        raise SystemExit(f"{folder} holds no *.jpg or *.jpeg. Give a folder of photographs, or none to have some made.")
    return found


def made_pictures() -> list[bytes]:
    """Pictures with as many bytes as photographs of their size have: large areas, edges and grain."""
    return [made_picture(np.random.default_rng(seed)) for seed in range(MADE)]


def made_picture(random: np.random.Generator) -> bytes:
    """One of 500 x 375 pixels, some 75 kB."""
    areas = Image.fromarray(random.integers(0, 256, (19, 25, 3), dtype=np.uint8)).resize((500, 375), 3)
    levels: npt.NDArray[np.float64] = np.asarray(areas) + random.normal(0, 9, (375, 500, 1))
    out = io.BytesIO()
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Images a second on this GPU.")
    parser.add_argument("folder", nargs="?", type=Path, help="JPEG photographs; without it pictures are made")
    parser.add_argument("--networks", nargs="+", default=["resnet50", "mobilenet_v3_small"])
    parser.add_argument("--batch", type=int, help="images in one forward pass; probed where it is not given")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way in each round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main(parsed()))
