"""Speed and memory of several models on this machine, each in a process of its own, measured in turn.

A machine that warms up, or has other work for a while, is then slow for all of them alike: A B A B, and not A A B B.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ConfigurationError
from tasks.inference.decoding.policies import WORTH_COMPILING, Decoder, open_decoder
from tasks.inference.reading import read_object
from tasks.location import parse_location
from tasks.models.bundle import Bundle
from tasks.models.runtimes import choose_device
from tasks.models.spec import Preprocessing
from tasks.optimisation.choosing import Sample
from tasks.processors import cores
from tasks.settings import PROJECT, Settings
from tasks.storage import open_store

ROUNDS, SECONDS = 7, 0.5
DECODED = 64  # images that are kept in memory to measure decoding with


@dataclass(frozen=True)
class Speed:
    """One model's rounds: images per second of each, and the most memory above an empty process, where it is known."""

    device: str
    runtime: str
    rates: tuple[float, ...]
    peak_bytes: int | None

    @property
    def images_per_second(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)


def ratio(original: Speed, new: Speed) -> float:
    """How many times faster the new one is: the median over rounds that stood side by side."""
    return statistics.median(after / before for before, after in zip(original.rates, new.rates, strict=True))


def machine() -> str:
    """The processor and how many cores of it are ours, for the report."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor() or platform.machine())}, {cores()} cores"


def measure_in_turn(
    bundles: Sequence[Bundle], settings: Settings, rounds: int = ROUNDS, seconds: float = SECONDS
) -> list[Speed]:
    """Full batches of the forward pass, by each bundle in turn. Raises ConfigurationError where a process fails.

    Compare the bundles first: what a runtime converts once is then there, and does not count as memory.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(closing(_Process(bundle, settings))) for bundle in bundles]
        about = [process.answer() for process in processes]
        results = [[process.ask(seconds=seconds) for process in processes] for _ in range(rounds)]
    return [
        Speed(
            device=about[number]["device"],
            runtime=about[number]["runtime"],
            rates=tuple(result[number]["images_per_second"] for result in results),
            peak_bytes=results[-1][number]["peak_bytes"],
        )
        for number in range(len(bundles))
    ]


class _Process:
    """One model in a process of its own; see rounds.py."""

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        self._folder = bundle.folder
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tasks.optimisation.rounds"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        self._tell(
            bundle=str(bundle.folder.resolve()),
            home=str(settings.home.resolve()),
            device=settings.device,
            runtime=settings.runtime,
            batch_size=settings.batch_size,
        )

    def ask(self, **values: Any) -> dict[str, Any]:
        """Send a line, and wait for the answer."""
        self._tell(**values)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line. Raises ConfigurationError with what the process says, or with how it ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ConfigurationError(
                f"The process that measures {self._folder} ended with {self._process.wait()}. What it printed stands above; "
                "where there is nothing, memory ran out: free some, or set a smaller AFTERIMAGE_BATCH_SIZE."
            )
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ConfigurationError(found["error"])
        return found

    def _tell(self, **values: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # It ended, and its last answer says why.
            self._process.stdin.write(json.dumps(values) + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """Let it end by itself, or end it where it does not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def decoding_rate(sample: Sample, preprocessing: Preprocessing, settings: Settings, rounds: int = 3) -> float:
    """Images per second that all cores (or the GPU) decode, with the files in memory: the median of the rounds."""
    store = open_store(parse_location(sample.uri), settings)
    read = (read_object(store, image).data for image in sample.images[:DECODED])
    files = [data for data in read if data]
    decoder = open_decoder(preprocessing, settings.compiled, WORTH_COMPILING, choose_device(settings))
    if isinstance(decoder, Decoder):
        decoder.prepare()
    groups = [files[start : start + decoder.group] for start in range(0, len(files), decoder.group)]

    def decode(group: list[bytes]) -> None:
        shape = (len(group), preprocessing.crop, preprocessing.crop, 3)
        decoder.decode_group(group, list(np.empty(shape, np.uint8)))

    rates = []
    with ThreadPoolExecutor(cores(), "decode") as pool:
        for _ in range(rounds + 1):
            started = time.perf_counter()
            list(pool.map(decode, groups))
            rates.append(len(files) / (time.perf_counter() - started))
    return statistics.median(rates[1:])  # the first one warms up
