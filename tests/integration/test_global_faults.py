"""A fault of the world fails the task in seconds and quarantines nothing; a fault of an image fails nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tasks.cache import commits
from tasks.errors import AccessDenied, DatabaseUnavailable, GlobalFault, ModelError, TransientStorageError
from tasks.inference import reading
from tasks.models.runtimes import Logits, Pixels
from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime
from tasks.storage.base import Blob
from tasks.storage.local import LocalStore
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner, outcomes


@pytest.fixture
def runner(home: Path, tmp_path: Path, database_url: str) -> Runner:
    write_pictures(tmp_path / "images", 60)
    model = write_small_bundle(tmp_path / "model")
    return Runner(home, database_url, images=str(tmp_path / "images"), model=str(model))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FIRST_PAUSE_SECONDS", 0.001)


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception, keys: Callable[[str], bool]) -> None:
    """The store refuses some keys."""
    read = LocalStore.read

    def refusing(self: LocalStore, key: str, etag: str | None) -> Blob:
        if keys(key):
            raise error
        return read(self, key, etag)

    monkeypatch.setattr(LocalStore, "read", refusing)


@pytest.mark.parametrize("error", [AccessDenied("403"), TransientStorageError("503")])
def test_where_nothing_can_be_read_the_task_fails_at_once_and_nothing_is_quarantined(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    refuse(monkeypatch, error, lambda _key: True)
    started = time.monotonic()
    with pytest.raises(GlobalFault, match="Nothing was quarantined"):
        runner.run()
    assert time.monotonic() - started < 10
    assert runner.rows("SELECT * FROM failure") == []
    assert runner.rows("SELECT state, open FROM v_run") == [{"state": "failed", "open": 60}]
    monkeypatch.undo()
    assert outcomes(runner.run()) == {"predicted": 60}


def test_one_key_that_may_not_be_read_is_quarantined_and_tried_again_later(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, AccessDenied("403"), lambda key: key == "00030.png")
    assert outcomes(runner.run()) == {"predicted": 59, "failed": 1}
    failure = runner.rows("SELECT * FROM v_failure")[0]
    assert (failure["reason"], bool(failure["permanent"])) == ("access_denied", False)
    assert failure["next_retry_at"] is not None
    assert outcomes(runner.run()) == {"cached": 59, "known_bad": 1}


def test_many_keys_that_may_not_be_read_are_no_global_fault_while_others_can(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a folder of archived objects in the middle of a bucket."""
    refuse(monkeypatch, AccessDenied("archived"), lambda key: "00010" <= key < "00050")
    assert outcomes(runner.run()) == {"predicted": 20, "failed": 40}


def test_a_retry_that_is_due_is_tried(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, AccessDenied("403"), lambda key: key == "00030.png")
    monkeypatch.setattr("tasks.cache.quarantine.retry_delay", lambda _attempts: timedelta(seconds=-1))
    runner.run()
    monkeypatch.undo()
    assert outcomes(runner.run()) == {"cached": 59, "predicted": 1}
    assert runner.rows("SELECT * FROM failure") == []


def test_a_read_that_fails_twice_is_tried_again(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    read, refused = LocalStore.read, []

    def flaky(self: LocalStore, key: str, etag: str | None) -> Blob:
        if key == "00030.png" and len(refused) < 2:
            refused.append(key)
            raise TransientStorageError("503 SlowDown")
        return read(self, key, etag)

    monkeypatch.setattr(LocalStore, "read", flaky)
    assert outcomes(runner.run()) == {"predicted": 60}
    assert len(refused) == 2


def test_a_model_that_gives_nan_for_everything_blames_no_image(runner: Runner, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "weights.safetensors"
    # Numbers that are finite themselves, and overflow in the first layer.
    save_file({name: np.full_like(value, 3e38) for name, value in load_file(weights).items()}, weights)
    with pytest.raises(GlobalFault, match="blank image"):
        runner.run()
    assert runner.rows("SELECT * FROM failure") == []


def test_an_image_whose_output_is_not_finite_is_quarantined_alone(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = OpenVinoRuntime.predict

    def nan_for_the_last(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        logits = forward(self, pixels)
        if len(pixels) > 1:
            logits[-1] = np.nan
        return logits

    monkeypatch.setattr(OpenVinoRuntime, "predict", nan_for_the_last)
    runner.settings = runner.settings.model_copy(update={"batch_size": 32})
    counts = runner.run()
    assert counts["failed"] == 2  # one in each batch of 32
    assert {row["reason"] for row in runner.rows("SELECT reason FROM v_failure")} == {"nonfinite_output"}


def test_a_label_file_with_a_line_too_few_is_a_model_error(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "model" / "labels.txt").write_text("dark\nred\n")
    with pytest.raises(ModelError, match="Check architecture, labels and weights"):
        runner.run()


def test_a_database_that_goes_away_fails_the_run_and_blames_no_image(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_arguments: object) -> object:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(commits, "commit", gone)
    with pytest.raises(DatabaseUnavailable):
        runner.run()
    monkeypatch.undo()
    assert runner.rows("SELECT * FROM failure") == []
    assert outcomes(runner.run()) == {"predicted": 60}
