"""A classifier as a program for one batch size: compiled once and kept, compiled for this process, or as it is.

An AOTInductor package is compiled once for a machine, in a minute or two, and loaded afterwards by as many processes as like.
Where it cannot be built (it needs a C++ compiler and CUDA's headers) torch.compile is tried, which every process pays
for, and where that fails too the classifier runs eagerly: slower, with the same answers, and a line in the log.

A package is code. It is loaded only from the folder of private.py, and only after it gave the answers of the eager
classifier when it was built. It holds for one batch size and checks no shapes, so its name says what it is made for.
Code can end the process that loads it, where there is no error to catch: a new package is tried in another one first
(package_trial.py), and one that crashed is not built again on this machine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision
from torch import Tensor

from tasks.models.loading import Classifier
from tasks.private import is_private, one_process, write_whole

log = logging.getLogger(__name__)

SCHEME = 1  # rises when the normalisation or the way of compiling changes
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}  # of the largest logit, against eager

TRIAL = Path(__file__).with_name("package_trial.py")
TRIAL_SECONDS = 300  # Importing torch from a cold disk and loading a package take a tenth of that.

# Compiling patches torch in many places: one thread at a time.
_COMPILING = threading.Lock()


@dataclass(frozen=True)
class Program:
    """uint8 [batch, crop, crop, 3] to float32 logits [batch, classes], on the device of its classifier.

    `kind` is package, compiled or eager; all but eager take exactly the batch that they were made for. `turn` is held
    while the program is called, where its threads may not be in it at the same time.
    """

    kind: str
    call: Callable[[Tensor], Tensor]
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)

    @property
    def is_fixed(self) -> bool:
        """Whether it takes full batches only."""
        return self.kind != "eager"

    def __call__(self, pixels: Tensor) -> Tensor:
        """The logits."""
        with self.turn:
            return self.call(pixels)


@dataclass(frozen=True)
class Target:
    """What programs are made for; `identity` names the classifier (a model_id) and `folder` keeps packages."""

    identity: str
    device: torch.device
    streams: int
    folder: Path | None

    def key(self, **more: object) -> str:
        """A file name for what holds for this model on this machine."""
        made_for = {"scheme": SCHEME, "torch": torch.__version__, "torchvision": torchvision.__version__, **more}
        made_for["device"] = describe(self.device)
        digest = hashlib.sha256(json.dumps({**made_for, "model": self.identity}, sort_keys=True).encode()).hexdigest()
        return digest[:40]


def describe(device: torch.device) -> str:
    """The kind of device that compiled code is for; a CPU's code may not run on another kind of CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} sm_{torch.cuda.get_device_capability(device)}"
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def open_program(classifier: Classifier, example: Tensor, target: Target) -> Program:
    """The fastest program that this machine can make; `example` is one batch, uint8 [batch, crop, crop, 3]."""
    for make in (_package, _compiled):
        try:
            return make(classifier, example, target)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # A compiler fails in as many ways as there are machines.
            log.warning("%s has no %s program: %s", target.identity[:16], make.__name__[1:], _first_line(error))
    log.warning(
        "%s runs eagerly, at 70 to 80 %% of the speed. Install a C++ compiler (g++) to have it compiled.",
        target.identity[:16],
    )
    return eager(classifier)


def eager(classifier: Classifier) -> Program:
    """The classifier as it is."""
    return Program("eager", classifier)


def _package(classifier: Classifier, example: Tensor, target: Target) -> Program:
    """The package from the folder, built now where there is none or where it is damaged."""
    if target.folder is None:
        raise RuntimeError("there is no folder to keep a package in")
    key = target.key(batch=len(example), crop=example.shape[1], dtype=str(classifier.dtype))
    file = target.folder / f"{key}.pt2"
    with _COMPILING:
        if (kept := _kept(file, target)) is not None:
            return kept
    # The workers of a machine with eight GPUs begin together: one builds, which takes minutes, and the others load.
    with _COMPILING, one_process(target.folder):
        if (kept := _kept(file, target)) is not None:
            return kept
        if _crashed(file).exists():
            raise RuntimeError(_what_crashed(_crashed(file)))
        log.info("compiling %s for batches of %d: once on this machine", target.identity[:16], len(example))
        made: list[Program] = []
        write_whole(file, lambda scratch: made.append(_make(classifier, example, target, scratch, _crashed(file))))
        return made[0]


def _kept(file: Path, target: Target) -> Program | None:
    """A package that was built before; one that is damaged is removed, so that it is built anew."""
    if not file.exists() or not is_private(file):
        file.unlink(missing_ok=True)
        return None
    try:
        return _load(file, target)
    except Exception as error:  # A half of a file, another compiler's library: the loader raises what it likes.
        log.warning("%s is damaged and is built anew: %s", file, _first_line(error))
        file.unlink()
        return None


def _make(classifier: Classifier, example: Tensor, target: Target, file: Path, crashed: Path) -> Program:
    """Build a package, run it in a process of its own, and compare it here; nobody else sees the file before.

    `crashed` is written where the process dies of it. An error that Python sees is raised again when the package is
    loaded here, so it is not looked at.
    """
    build_package(classifier, example, file)
    if not _survives(file, example, target):
        crashed.touch(mode=0o600)
        raise RuntimeError(_what_crashed(crashed))
    program = _load(file, target)
    _agree(program, classifier, example)
    return program


def _survives(file: Path, example: Tensor, target: Target) -> bool:
    """Whether a process that runs the package comes to an end by itself, with an error or without one."""
    given = json.dumps({"file": str(file), "shape": list(example.shape), "device": str(example.device)})
    command = [sys.executable, "-P", str(TRIAL), given, json.dumps(_options(target))]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=TRIAL_SECONDS).returncode >= 0
    except subprocess.TimeoutExpired:
        return False


def _what_crashed(crashed: Path) -> str:
    return (
        "a package that was built here ended the process that tried it, or hung in it. Another C++ compiler (CXX) may build one "
        f"that works: one that links libstdc++ into each library does not. Then remove {crashed}"
    )


def _crashed(file: Path) -> Path:
    return file.with_suffix(".crashed")


def build_package(classifier: Classifier, example: Tensor, file: Path) -> None:
    """Compile into a file. The compiler's own cache, which holds pickles, lies beside it and goes afterwards.

    After an error fresh_cache leaves its folder behind, so it gets one to leave it in.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache

    if example.device.type == "cuda":
        _find_headers()
    with TemporaryDirectory(dir=file.parent) as scratch, fresh_cache(dir=scratch), torch.inference_mode():
        exported = torch.export.export(classifier, (example,))
        aoti_compile_and_package(exported, package_path=str(file))


def _find_headers() -> None:
    """Let the compiler have CUDA's headers from the wheel that torch itself came with, where no toolkit is installed."""
    from torch.utils import cpp_extension

    wheels = sorted(Path(torch.__file__).parent.parent.glob("nvidia/cu*/include/cuda_runtime.h"))
    if cpp_extension.CUDA_HOME is None and wheels:
        cpp_extension.CUDA_HOME = str(wheels[-1].parent.parent)


def _load(file: Path, target: Target) -> Program:
    with zipfile.ZipFile(file) as archive:
        if (broken := archive.testzip()) is not None:  # The loader would hand a damaged library to dlopen.
            raise ValueError(f"{broken} in it has a wrong checksum")
    program = load_package(file, **_options(target))
    if target.device.type != "cuda":
        return Program("package", program)
    return Program("package", program, threading.Lock())


def _options(target: Target) -> dict[str, Any]:
    """How the loader is to run a package.

    On a GPU its own bookkeeping of threads may not run while a graph is captured. Lanes replay graphs and are not in it at
    the same time; a lane without a graph waits for its turn.
    """
    if target.device.type != "cuda":
        return {"num_runners": target.streams}
    index = torch.cuda.current_device() if target.device.index is None else target.device.index
    return {"run_single_threaded": True, "device_index": index}


def load_package(file: Path, **options: Any) -> Callable[[Tensor], Tensor]:
    """Load a package's library into this process."""
    # aoti_load_package is the same, but until torch 2.15 it took no num_runners.
    from torch._inductor.package.package import load_package as load

    loaded: Callable[[Tensor], Tensor] = load(str(file), **options)
    return loaded


def _compiled(classifier: Classifier, example: Tensor, target: Target) -> Program:
    """Compiled for this process by torch.compile; a CPU is left as it is, where that brings little."""
    if target.device.type != "cuda":
        raise RuntimeError("torch.compile is used on GPUs only")
    with _COMPILING, torch.inference_mode():
        program = Program("compiled", torch.compile(classifier, dynamic=False, fullgraph=True), threading.Lock())
        _agree(program, classifier, example)
    return program


def _agree(program: Program, classifier: Classifier, example: Tensor) -> None:
    """Refuse a program whose logits for noise are not those of the eager classifier."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, example.shape, generator=generator, dtype=torch.uint8).to(example.device)
    with torch.inference_mode():
        expected, found = classifier(noise), program(noise)
    limit = TOLERANCE[classifier.dtype] * max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    if torch.isfinite(expected).all() and not difference <= limit:
        raise RuntimeError(f"its logits differ from the eager ones by {difference:.3g}, and {limit:.3g} is allowed")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
