"""What a run says about its stages, and what holds between them: bounded bytes, and no image lost without a word."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import road
from tasks.errors import InvariantViolation
from tasks.inference.decode_stage import DecodeStage
from tasks.inference.decoding.policies import Decoder
from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime
from tasks.storage.base import Blob
from tasks.storage.local import LocalStore
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner

IMAGES = 60
STAGES = ["read", "look_up", "decode", "forward", "commit"]


@pytest.fixture
def runner(home: Path, tmp_path: Path, database_url: str) -> Runner:
    write_pictures(tmp_path / "images", IMAGES)
    model = write_small_bundle(tmp_path / "model")
    return Runner(home, database_url, images=str(tmp_path / "images"), model=str(model))


def test_a_run_keeps_what_its_stages_did(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "images" / "damaged.png").write_bytes(b"no image")
    counts = runner.run()
    (row,) = runner.rows("SELECT stages, held_back_by, stage_seconds FROM v_run")
    stages: dict[str, Any] = row["stages"] if isinstance(row["stages"], dict) else json.loads(row["stages"])

    assert set(stages) == set(STAGES)
    assert stages == counts["stages"]
    assert {stage: one["items"] for stage, one in stages.items()} == dict.fromkeys(STAGES, IMAGES + 1)
    assert {stage: one["failures"] for stage, one in stages.items() if one["failures"]} == {"decode": 1}
    assert all(0 < one["p50_ms"] <= one["p90_ms"] <= one["p99_ms"] for one in stages.values())
    assert row["held_back_by"] == counts["held_back_by"]
    assert "held back: " in road.format_summary(counts)


def test_slow_storage_is_named(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    read = LocalStore.read

    def slow(self: LocalStore, key: str, etag: str | None) -> Blob:
        time.sleep(0.2)
        return read(self, key, etag)

    monkeypatch.setattr(LocalStore, "read", slow)
    counts = runner.run()
    assert counts["held_back_by"].startswith("storage reads were busy")
    assert "the forward pass waited for its input" in counts["held_back_by"]
    assert counts["stages"]["read"]["p50_ms"] >= 200


def test_a_slow_forward_pass_is_named(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = OpenVinoRuntime.predict

    def slow(self: OpenVinoRuntime, pixels: Any) -> Any:
        time.sleep(0.8)
        return forward(self, pixels)

    monkeypatch.setattr(OpenVinoRuntime, "predict", slow)
    counts = runner.run()
    assert "the forward pass was busy" in counts["held_back_by"]
    assert counts["stages"]["decode"]["output_wait_seconds"] > 0


def test_a_stage_that_loses_an_image_fails_the_shard(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = DecodeStage.decode

    def lossy(self: DecodeStage, group: list[Any]) -> list[Any]:
        return [work for work in decode(self, group) if work.listed.key != "00007.png"]

    monkeypatch.setattr(DecodeStage, "decode", lossy)
    with pytest.raises(InvariantViolation, match="60 images left decode and 59 reached forward"):
        runner.run()
    monkeypatch.undo()
    assert runner.run()["predicted"] == 1


def test_files_in_memory_are_bounded_in_bytes_however_many_and_large_they_are(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three hundred files of a megabyte, and a network that takes its time: most of them must wait in the store."""
    images = tmp_path / "images"
    keys = write_pictures(images, 300)
    for key in keys:
        with (images / key).open("ab") as file:
            file.write(b"\0" * 2**20)
    held, most, lock = 0, 0, threading.Lock()
    read, decode, forward = LocalStore.read, Decoder.decode, OpenVinoRuntime.predict

    def counted(self: LocalStore, key: str, etag: str | None) -> Blob:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return read(self, key, etag)

    def let_go(self: Decoder, data: bytes, out: np.ndarray) -> None:
        nonlocal held
        decode(self, data, out)
        with lock:
            held -= 1

    def slow(self: OpenVinoRuntime, pixels: Any) -> Any:
        time.sleep(0.02)
        return forward(self, pixels)

    monkeypatch.setattr(LocalStore, "read", counted)
    monkeypatch.setattr(Decoder, "decode", let_go)
    monkeypatch.setattr(OpenVinoRuntime, "predict", slow)
    model = write_small_bundle(tmp_path / "model")
    settings = {"queue_mib": 24, "readers": 64}  # four of these files in each queue
    small = Runner(home, f"sqlite:///{tmp_path}/cache.db", settings, images=str(images), model=str(model))
    assert small.run()["predicted"] == 300
    assert held == 0
    # Three queues of files, one more in the hand of each of the threads between them, and a group at the look-up.
    assert most <= 24
