"""The torch runtime on the device `cpu`: the road of the GPU, without pinned memory, streams and graphs."""

from __future__ import annotations

import ast
import json
import logging
import os
import shutil
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tasks.errors import GlobalFault
from tasks.models.architectures import SmallCnn
from tasks.models.loading import Classifier
from tasks.models.runtimes import programs, torch_runtime
from tasks.models.runtimes.batches import FIRST, MOST, Remembered, best_batch
from tasks.models.runtimes.lanes import CpuLane
from tasks.models.runtimes.programs import Program, Target, open_program
from tasks.models.runtimes.torch_runtime import CPU_BATCH, TorchRuntime
from tasks.private import is_private, private_folder, write_whole

CROP, CLASSES = 16, 4
CPU = torch.device("cpu")


def classifier(dtype: torch.dtype = torch.float32, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    half = (0.5, 0.5, 0.5)
    return Classifier(SmallCnn(CLASSES, 4), half, half, dtype).eval()


def noise(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, CROP, CROP, 3), dtype=np.uint8)


def expected(pixels: npt.NDArray[np.uint8], dtype: torch.dtype = torch.float32) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return classifier(dtype)(torch.from_numpy(pixels)).numpy()


def runtime(**given: Any) -> TorchRuntime:
    return TorchRuntime(classifier(), CROP, **{"is_compiled": False, **given})


# Forward


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.02)])
def test_every_precision_gives_the_logits_of_the_eager_network(dtype: torch.dtype, limit: float) -> None:
    found = TorchRuntime(classifier(dtype), CROP, is_compiled=False).predict(noise(9))

    assert (found.shape, found.dtype) == ((9, CLASSES), np.float32)
    np.testing.assert_allclose(found, expected(noise(9)), atol=limit)
    np.testing.assert_array_equal(found.argmax(1), expected(noise(9)).argmax(1))


@pytest.mark.parametrize("streams", [1, 2])
def test_threads_at_the_same_time_get_what_one_gets(streams: int) -> None:
    opened = runtime(batch_size=8, streams=streams)
    batches = [noise(count, seed) for seed, count in enumerate([8, 3, 8, 1, 8, 5, 8, 8] * 4)]
    alone = [opened.predict(batch) for batch in batches]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(opened.predict, batches))

    for left, right in zip(alone, together, strict=True):
        np.testing.assert_array_equal(left, right)


class Noticing:
    """A program that keeps what it was called with, and how many threads were in it at most."""

    def __init__(self, wait: threading.Barrier | None = None) -> None:
        self.network, self.wait = classifier(), wait
        self.sizes: list[int] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        self.sizes.append(len(pixels))
        if self.wait is not None:
            self.wait.wait(timeout=10)
        logits: Tensor = self.network(pixels)
        return logits


def test_two_streams_let_two_threads_in_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Noticing(threading.Barrier(2))
    monkeypatch.setattr(torch_runtime, "eager", lambda _: Program("eager", both))
    opened = runtime(streams=2)

    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(opened.predict, [noise(2), noise(2, 1)]))) == 2


def test_a_partial_batch_runs_padded_where_the_program_takes_full_ones_only() -> None:
    noticing = Noticing()
    lane = CpuLane(Program("package", noticing), 8, CROP)
    lane.forward(noise(8, seed=5))

    found = lane.forward(noise(3))

    assert noticing.sizes == [8, 8]
    np.testing.assert_allclose(found, expected(noise(3)), atol=1e-6)
    assert found.flags.owndata


def test_a_partial_batch_costs_a_cpu_what_it_holds() -> None:
    noticing = Noticing()
    CpuLane(Program("eager", noticing), 8, CROP).forward(noise(3))

    assert noticing.sizes == [3]


@pytest.mark.parametrize("is_fixed", [False, True])
def test_the_logits_are_the_callers_to_keep(is_fixed: bool) -> None:
    lane = CpuLane(Program("package" if is_fixed else "eager", classifier()), 4, CROP)
    first = lane.forward(noise(4))
    kept = first.copy()
    lane.forward(noise(4, seed=1))

    np.testing.assert_array_equal(first, kept)


def test_pixels_may_be_read_only_and_lie_anyhow() -> None:
    opened, pixels = runtime(), noise(4)
    frozen = pixels.copy()
    frozen.flags.writeable = False

    for given in (frozen, np.repeat(pixels, 2, axis=0)[::2], pixels[::-1][::-1]):
        np.testing.assert_allclose(opened.predict(given), expected(pixels), atol=1e-6)


def test_a_buffer_holds_one_batch_and_more_images_go_in_several() -> None:
    opened = runtime(batch_size=4)
    assert (opened.buffer().shape, opened.buffer().dtype) == ((4, CROP, CROP, 3), np.uint8)
    assert opened.buffer() is not opened.buffer()

    np.testing.assert_allclose(opened.predict(noise(11)), expected(noise(11)), atol=1e-6)
    assert opened.predict(noise(0)).shape == (0, CLASSES)


# The batch size


def curve(*rates: float | None) -> tuple[Callable[[int], float | None], list[int]]:
    """A probe that gives these rates for 16, 32, 64 ... images."""
    asked: list[int] = []

    def rate(size: int) -> float | None:
        asked.append(size)
        return rates[(size // FIRST).bit_length() - 1]

    return rate, asked


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ((100.0, 104.0), 16),
        ((100.0, 190.0, 195.0), 32),
        ((100.0, 190.0, 300.0, None), 64),
        ((100.0, 90.0), 16),
        ((100.0, None), 16),
        (tuple(100.0 * 2**step for step in range(12)), MOST),
    ],
)
def test_the_batch_is_doubled_while_it_pays_and_fits(rates: tuple[float | None, ...], best: int) -> None:
    rate, asked = curve(*rates)

    assert best_batch(rate) == best
    assert max(asked) <= MOST


@pytest.mark.parametrize(("fits", "best"), [(8, 8), (3, 2), (1, 1), (0, 1)])
def test_the_batch_is_halved_where_not_even_the_first_fits(fits: int, best: int) -> None:
    assert best_batch(lambda size: 10.0 if size <= fits else None) == best


def test_a_batch_size_is_remembered_in_whole(tmp_path: Path) -> None:
    file = tmp_path / "size.json"
    assert Remembered(file).read() is None
    Remembered(file).write(128)

    assert Remembered(file).read() == 128
    assert list(tmp_path.iterdir()) == [file]
    Remembered(None).write(64)
    assert Remembered(None).read() is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"batch_size": "64"}', '{"batch_size": 0}', '{"batch_size": true}', "\x00"]
)
def test_a_remembered_size_that_makes_no_sense_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "size.json").write_text(content)

    assert Remembered(tmp_path / "size.json").read() is None


def test_a_probe_is_made_once_for_a_model_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[int] = []

    def probed(_: object) -> int:
        probes.append(1)
        return 64

    class Gpu(TorchRuntime):
        """It probes as on a GPU, and computes on the CPU."""

        def _best_batch(self) -> int:
            self._on_gpu = True
            found = super()._best_batch()
            self._on_gpu = False
            return found

    monkeypatch.setattr(torch_runtime, "best_batch", probed)
    same: dict[str, Any] = {"compiled": tmp_path, "is_compiled": False}

    assert [Gpu(classifier(), CROP, identity="a", **same).batch_size for _ in range(2)] == [64, 64]
    assert len(probes) == 1
    assert Gpu(classifier(), CROP, identity="another", **same).batch_size == 64
    assert Gpu(classifier(torch.bfloat16), CROP, identity="a", **same).batch_size == 64
    assert len(probes) == 3
    assert Gpu(classifier(), CROP, identity="a", batch_size=8, **same).batch_size == 8, "the setting wins"
    assert len(probes) == 3


def test_a_cpu_takes_32() -> None:
    assert (runtime().batch_size, runtime().device, runtime().streams) == (CPU_BATCH, "cpu", 1) == (32, "cpu", 1)


# Memory runs out


class Small:
    """A device with memory for `most` images."""

    def __init__(self, most: int) -> None:
        self.network, self.most = classifier(), most
        self.failed: list[int] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        if len(pixels) > self.most:
            self.failed.append(len(pixels))
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.network(pixels)
        return logits


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    device = Small(5)
    monkeypatch.setattr(torch_runtime, "eager", lambda _: Program("eager", device))
    return device


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(small: Small, tmp_path: Path) -> None:
    opened = runtime(compiled=tmp_path)

    np.testing.assert_allclose(opened.predict(noise(32)), expected(noise(32)), atol=1e-6)

    assert small.failed == [32, 16, 8]
    assert opened.batch_size == 4
    opened.predict(noise(32))
    assert small.failed == [32, 16, 8], "the smaller size is kept"
    assert runtime(compiled=tmp_path).batch_size == 4, "and remembered"


def test_threads_that_run_out_of_memory_together_halve_once(small: Small) -> None:
    opened = runtime(batch_size=8, streams=3)
    batches = [noise(8, seed) for seed in range(12)]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(opened.predict, batches))

    assert opened.batch_size == 4
    for logits, batch in zip(found, batches, strict=True):
        np.testing.assert_allclose(logits, expected(batch), atol=1e-6)


def test_a_thread_that_hears_late_of_a_smaller_batch_does_not_enlarge_it(small: Small) -> None:
    opened = runtime()
    opened.predict(noise(32))
    lane = opened._lanes.queue[0]

    opened._halve(32)

    assert opened.batch_size == 4
    assert list(opened._lanes.queue) == [lane]


def test_memory_that_runs_out_while_lanes_are_made_halves_the_batch(tmp_path: Path) -> None:
    class Tight(TorchRuntime):
        def _make_lanes(self) -> Any:
            if self.batch_size > 8:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._make_lanes()

    opened = Tight(classifier(), CROP, compiled=tmp_path, is_compiled=False)

    assert opened.batch_size == 8
    assert opened.predict(noise(20)).shape == (20, CLASSES)
    assert runtime(compiled=tmp_path).batch_size == 8


def test_no_memory_for_one_image_is_nobodys_fault_and_every_thread_hears_of_it(small: Small) -> None:
    small.most = 0
    opened = runtime(batch_size=4, streams=2)

    def told(seed: int) -> str:
        with pytest.raises(GlobalFault) as fault:
            opened.predict(noise(4, seed))
        return str(fault.value)

    with ThreadPoolExecutor(4) as pool:
        assert all("not enough memory for a single image" in message for message in pool.map(told, range(8)))


def test_another_error_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch_runtime, "eager", lambda _: Program("eager", fail))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        runtime().predict(noise(2))


# Programs


class Compiler:
    """In place of AOTInductor, which takes half a minute: a package is a zip file, and calls the eager network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built: list[Path] = []
        self.loaded: list[dict[str, Any]] = []
        self.answer: Callable[[Tensor], Tensor] = classifier()
        monkeypatch.setattr(programs, "build_package", self.build)
        monkeypatch.setattr(programs, "load_package", self.load)
        self.monkeypatch = monkeypatch
        self.folder = TemporaryDirectory()
        self.trial("")

    def build(self, _network: Classifier, _example: Tensor, file: Path) -> None:
        self.built.append(file)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("library.so", b"code" * 100)

    def trial(self, code: str) -> None:
        """What a process does that tries a package."""
        script = Path(self.folder.name) / "trial.py"
        script.write_text(code)
        self.monkeypatch.setattr(programs, "TRIAL", script)

    def load(self, file: Path, **options: Any) -> Callable[[Tensor], Tensor]:
        self.loaded.append(options)
        assert zipfile.is_zipfile(file)
        return self.answer


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(monkeypatch)


def target(folder: Path | None, identity: str = "a" * 64) -> Target:
    return Target(identity, CPU, 2, folder)


def example(batch: int = 8) -> Tensor:
    return torch.zeros(batch, CROP, CROP, 3, dtype=torch.uint8)


def test_a_package_is_built_once_and_loaded_afterwards(compiler: Compiler, tmp_path: Path) -> None:
    for _ in range(3):
        assert open_program(classifier(), example(), target(tmp_path)).kind == "package"

    assert len(compiler.built) == 1
    assert compiler.loaded == [{"num_runners": 2}] * 3
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_another_model_batch_precision_or_torch_is_another_package(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_program(classifier(), example(), target(tmp_path))
    open_program(classifier(), example(), target(tmp_path, "b" * 64))
    open_program(classifier(), example(4), target(tmp_path))
    open_program(classifier(torch.bfloat16), example(), target(tmp_path))
    monkeypatch.setattr(torch, "__version__", "99.0")
    open_program(classifier(), example(), target(tmp_path))
    monkeypatch.setattr(programs, "describe", lambda _: "another CPU")
    open_program(classifier(), example(), target(tmp_path))

    assert len(compiler.built) == len(list(tmp_path.iterdir())) == 6


def damage_whole(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(b"codecode")] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_whole, cut, flip])
def test_a_damaged_package_is_built_anew(damage: Callable[[Path], None], compiler: Compiler, tmp_path: Path) -> None:
    open_program(classifier(), example(), target(tmp_path))
    (file,) = tmp_path.iterdir()
    damage(file)

    assert open_program(classifier(), example(), target(tmp_path)).kind == "package"
    assert len(compiler.built) == 2
    assert open_program(classifier(), example(), target(tmp_path)).kind == "package"
    assert len(compiler.built) == 2


def test_a_package_that_others_may_write_is_not_loaded(compiler: Compiler, tmp_path: Path) -> None:
    open_program(classifier(), example(), target(tmp_path))
    (file,) = tmp_path.iterdir()
    file.chmod(0o666)

    open_program(classifier(), example(), target(tmp_path))

    assert len(compiler.built) == 2
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_package_with_other_answers_is_not_used(
    compiler: Compiler, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler.answer = classifier(seed=1)

    assert open_program(classifier(), example(), target(tmp_path)).kind == "eager"

    assert "its logits differ from the eager ones" in caplog.text
    assert list(tmp_path.iterdir()) == []


CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize("end", [CRASH, "import time; time.sleep(60)"], ids=["crashes", "hangs"])
def test_a_package_that_ends_a_process_never_enters_this_one_and_is_not_built_again(
    end: str, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler.trial(end)
    monkeypatch.setattr(programs, "TRIAL_SECONDS", 1)

    for _ in range(2):
        assert open_program(classifier(), example(), target(tmp_path)).kind == "eager"

    assert (len(compiler.built), compiler.loaded) == (1, [])
    (crashed,) = tmp_path.iterdir()
    assert "ended the process that tried it, or hung in it. Another C++ compiler (CXX) may" in caplog.text
    assert f"Then remove {crashed}" in caplog.text

    crashed.unlink()
    compiler.trial("")
    assert open_program(classifier(), example(), target(tmp_path)).kind == "package"


def test_what_the_process_gets_that_tries_a_package(compiler: Compiler, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    compiler.trial(f"import sys; open({str(found)!r}, 'w').write(repr(sys.argv[1:])); sys.exit(1)")

    assert open_program(classifier(), example(), target(tmp_path / "kept")).kind == "eager", "there is no such folder"
    (tmp_path / "kept").mkdir()
    assert open_program(classifier(), example(), target(tmp_path / "kept")).kind == "package", "an error is judged here"

    given, options = (json.loads(one) for one in ast.literal_eval(found.read_text()))
    assert (given["shape"], given["device"], options) == ([8, CROP, CROP, 3], "cpu", {"num_runners": 2})
    assert given["file"].endswith(".pt2")


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("C++ compile error")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)

    assert open_program(classifier(), example(), target(tmp_path)).kind == "eager"
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_the_network_runs_eagerly_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore lines")

    monkeypatch.setattr(programs, "build_package", fail)

    opened = TorchRuntime(classifier(), CROP, identity="a" * 64, compiled=tmp_path)

    np.testing.assert_allclose(opened.predict(noise(5)), expected(noise(5)), atol=1e-6)
    assert opened.program == "eager"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("No working C++ compiler found" in line and "more lines" not in line for line in warnings)
    assert any("runs eagerly" in line and "g++" in line for line in warnings)
    (folder,) = tmp_path.iterdir()
    assert list(folder.iterdir()) == [], "no half of a package stays"


def test_memory_that_runs_out_while_compiling_is_no_missing_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(programs, "build_package", fail)
    with pytest.raises(torch.OutOfMemoryError):
        open_program(classifier(), example(), target(tmp_path))


def test_the_folder_of_compiled_code_is_this_users_alone(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "compiled", "torch")

    assert folder is not None
    assert folder.stat().st_mode & 0o777 == 0o700
    assert str(os.geteuid()) in folder.name
    assert private_folder(tmp_path / "compiled", "torch") == folder


def test_a_folder_that_others_may_write_or_that_is_a_link_holds_no_code(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = private_folder(tmp_path, "torch")
    assert folder is not None
    folder.chmod(0o777)
    assert private_folder(tmp_path, "torch") is None
    assert "mode 777" in caplog.text
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert private_folder(tmp_path, "torch") is None


def test_code_of_another_user_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "file").chmod(0o600)
    assert is_private(tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "file").stat().st_uid + 1)
    assert not is_private(tmp_path / "file")


def test_a_folder_that_cannot_be_made_costs_the_cache_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "compiled").write_text("a file in its place")

    opened = runtime(compiled=tmp_path / "compiled")
    assert opened.predict(noise(2)).shape == (2, CLASSES)


def test_a_file_is_written_in_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("before")

    def fail(scratch: Path) -> None:
        scratch.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.json", fail)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_workers_that_begin_together_build_one_package(
    tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads without the lock of their process are as two processes."""
    monkeypatch.setattr(programs, "_COMPILING", nullcontext())
    networks = [classifier(), classifier()]
    with ThreadPoolExecutor(2) as pool:
        opened = list(pool.map(lambda each: open_program(each, example(), target(tmp_path)), networks))
    assert [program.kind for program in opened] == ["package"] * 2
    assert len(compiler.built) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler: apt-get install -y g++")
def test_a_real_package_gives_the_eager_logits_and_is_used_by_the_next_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compiles C++: some 20 to 60 seconds."""
    given: dict[str, Any] = {"identity": "a" * 64, "compiled": tmp_path, "batch_size": 4, "streams": 2}
    opened = TorchRuntime(classifier(), CROP, **given)
    assert opened._lanes.queue[0]._program.kind == "package"
    np.testing.assert_allclose(opened.predict(noise(7)), expected(noise(7)), atol=1e-5)

    monkeypatch.setattr(programs, "build_package", None)
    again = TorchRuntime(classifier(), CROP, **given)
    assert again._lanes.queue[0]._program.kind == "package"
    batches = [noise(count, seed) for seed, count in enumerate([4, 2, 4, 1] * 4)]
    with ThreadPoolExecutor(2) as pool:
        for logits, batch in zip(pool.map(again.predict, batches), batches, strict=True):
            np.testing.assert_allclose(logits, expected(batch), atol=1e-5)
    (folder,) = tmp_path.iterdir()
    assert [path.suffix for path in folder.iterdir()] == [".pt2"], "nothing of the compiler stays"


def test_half_precisions_on_a_cpu_run_through_this_class_with_the_setting(tmp_path: Path) -> None:
    from tasks.models.bundle import read_bundle
    from tasks.models.runtimes import open_runtime
    from tasks.settings import load_settings
    from tests.pictures import write_small_bundle

    folder = write_small_bundle(tmp_path / "bundle")
    manifest = folder / "model.toml"
    manifest.write_text(manifest.read_text().replace('"fp32"', '"bf16"'))
    opened = open_runtime(read_bundle(folder), load_settings(home=tmp_path, device="cpu", batch_size=8))

    assert isinstance(opened, TorchRuntime)
    assert (opened.batch_size, opened.streams) == (8, 1)
    assert opened.predict(noise(9)).shape == (9, CLASSES)
    assert json.dumps(opened.device) == '"cpu"'
