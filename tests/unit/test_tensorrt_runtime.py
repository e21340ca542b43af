"""What of TensorRT needs no device: when it is chosen, what it refuses, and which engines are never loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tasks.errors import ConfigurationError
from tasks.models.bundle import Bundle, read_bundle
from tasks.models.runtimes import choose_runtime, engines
from tasks.models.runtimes.engines import engine_file, kept_plan
from tasks.models.runtimes.programs import Target
from tasks.models.runtimes.tensorrt_runtime import TensorRtRuntime
from tasks.models.spec import Form, Precision
from tests.pictures import write_small_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path / "model"))


def of(bundle: Bundle, form: Form, precision: Precision) -> Bundle:
    architecture = bundle.spec.architecture if form == "torch" else form
    return replace(bundle, spec=replace(bundle.spec, architecture=architecture, precision=precision))


@pytest.mark.parametrize(
    ("form", "precision", "wanted", "chosen"),
    [
        ("onnx", "fp32", "auto", "tensorrt"),
        ("onnx", "int8", "auto", "tensorrt"),
        ("onnx", "fp16", "auto", "tensorrt"),
        ("torch", "fp16", "auto", "torch"),
        ("torch", "fp16", "tensorrt", "tensorrt"),
        ("torch", "bf16", "tensorrt", "tensorrt"),
    ],
)
def test_a_gpu_runs_onnx_by_tensorrt_and_other_networks_where_it_is_asked_for(
    form: Form, precision: Precision, wanted: str, chosen: str, bundle: Bundle
) -> None:
    assert choose_runtime(of(bundle, form, precision), "cuda:0", wanted).name == chosen


def test_a_cpu_has_no_tensorrt(bundle: Bundle) -> None:
    with pytest.raises(ConfigurationError, match="AFTERIMAGE_RUNTIME is 'tensorrt', which does not run"):
        choose_runtime(bundle, "cpu", "tensorrt")


def test_without_the_package_it_says_what_to_install(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.extras.find_spec", lambda _: None)

    with pytest.raises(ConfigurationError, match=r"needs the package tensorrt, .* make extra-tensorrt"):
        TensorRtRuntime(bundle, "cuda", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.models.runtimes.tensorrt_runtime.tensorrt", lambda: None)

    with pytest.raises(ConfigurationError, match="TensorRT needs a CUDA device, and torch finds none"):
        TensorRtRuntime(bundle, "cuda", tmp_path)


# Engines


def target(folder: Path | None, identity: str = "model", device: str = "cpu") -> Target:
    return Target(identity, torch.device(device), 2, folder)


def test_an_engine_holds_for_one_model_device_version_and_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine_file(target(tmp_path), 8, "11.4.0")
    others = [
        engine_file(target(tmp_path), 4, "11.4.0"),
        engine_file(target(tmp_path), 8, "11.5.0"),
        engine_file(target(tmp_path, "another"), 8, "11.4.0"),
    ]
    monkeypatch.setattr("tasks.models.runtimes.programs.describe", lambda _: "another GPU")
    others.append(engine_file(target(tmp_path), 8, "11.4.0"))
    monkeypatch.undo()
    monkeypatch.setattr(engines, "SCHEME", engines.SCHEME + 1)
    others.append(engine_file(target(tmp_path), 8, "11.4.0"))
    monkeypatch.undo()

    assert first is not None
    assert first.parent == tmp_path
    assert len({first, *others}) == 6
    assert engine_file(target(tmp_path), 8, "11.4.0") == first
    assert engine_file(target(None), 8, "11.4.0") is None


def test_an_engine_that_others_may_have_written_is_removed_and_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x.engine"
    assert kept_plan(file) is None
    assert kept_plan(None) is None
    file.write_bytes(b"engine")
    file.chmod(0o600)
    assert kept_plan(file) == b"engine"

    for mode in (0o620, 0o602, 0o666):
        file.write_bytes(b"machine code")
        file.chmod(mode)
        assert kept_plan(file) is None
        assert not file.exists()


def test_a_link_in_the_place_of_an_engine_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"machine code")
    os.symlink(elsewhere, tmp_path / "x.engine")

    assert kept_plan(tmp_path / "x.engine") is None
    assert elsewhere.exists()


def test_what_is_kept_is_read_back_and_a_full_disk_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engines._keep(tmp_path / "x.engine", b"plan")
    assert kept_plan(tmp_path / "x.engine") == b"plan"
    engines._keep(tmp_path / "nowhere" / "x.engine", b"plan")

    assert "The engine is built again next time" in caplog.text


class Logged:
    def __init__(self, *errors: str) -> None:
        self.errors = list(errors)


def test_what_tensorrt_logs_becomes_an_error_with_what_to_do() -> None:
    said = engines._failed(Logged("one", "Could not find any implementation for node conv"), Path("network.onnx"))
    assert "builds no engine of network.onnx: one; Could not find any implementation" in str(said)
    assert isinstance(
        engines._failed(Logged("Error Code 2: OutOfMemory (Requested size was 9)"), Path("x")), engines.NoMemory
    )
    assert "it says no reason" in str(engines._failed(Logged(), Path("x")))
