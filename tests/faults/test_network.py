"""A network that raises, runs out of memory or gives no numbers: on one image, or on all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import GlobalFault
from tasks.models.runtimes import Logits, Pixels
from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime
from tests.faults.scene import GOOD, reasons, survive
from tests.runner import Runner, outcomes


def test_an_image_on_which_the_network_raises_costs_no_other(
    runner: Runner, calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = pixels_of(runner, "00013.png")
    predict, raised = OpenVinoRuntime.predict, []

    def failing(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        if (pixels == bad).all(axis=(1, 2, 3)).any():
            raised.append(len(pixels))
            raise RuntimeError("a kernel refused")
        return predict(self, pixels)

    monkeypatch.setattr(OpenVinoRuntime, "predict", failing)
    counts = runner.run()
    assert outcomes(counts) == {"predicted": GOOD - 1, "failed": 1}
    assert 1 in raised
    assert reasons(runner) == {"00013.png": ("compute_error", False)}
    assert "a kernel refused" in runner.rows("SELECT message FROM v_failure")[0]["message"]
    monkeypatch.undo()
    counts = survive(
        runner,
        calm,
        "model",
        "the network raises on one image of a batch",
        injected=len(raised),
        answer="the batch is bisected to the image; quarantined as compute_error, tried again later",
    )
    assert outcomes(counts) == {"cached": GOOD - 1, "predicted": 1}


def test_a_network_that_raises_on_everything_blames_no_image(
    runner: Runner, calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, raised = OpenVinoRuntime.predict, []

    def failing(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        if raised or not (pixels == 127).all():
            raised.append(len(pixels))
            raise RuntimeError("the device is lost")
        return predict(self, pixels)

    monkeypatch.setattr(OpenVinoRuntime, "predict", failing)
    with pytest.raises(GlobalFault, match=r"on a blank image (too|already)"):
        runner.run()
    assert reasons(runner) == {}
    monkeypatch.undo()
    survive(
        runner,
        calm,
        "model",
        "the device is lost in the middle of a shard",
        injected=len(raised),
        answer="the task fails at once; nothing is quarantined",
    )


def test_memory_of_the_device_that_runs_out_blames_no_image(
    runner: Runner, calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    predict, raised = OpenVinoRuntime.predict, []

    def failing(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        if not (pixels == 127).all():
            raised.append(len(pixels))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return predict(self, pixels)

    monkeypatch.setattr(OpenVinoRuntime, "predict", failing)
    with pytest.raises(GlobalFault, match="out of memory"):
        runner.run()
    assert reasons(runner) == {}
    monkeypatch.undo()
    survive(
        runner,
        calm,
        "model",
        "memory of the device runs out",
        injected=len(raised),
        answer="smaller batches are tried where the runtime can; then the task fails; nothing is quarantined",
    )


def test_a_model_that_gives_nan_for_everything_blames_no_image(
    runner: Runner, calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was fine when it was tried: the blank image gave numbers."""
    predict, struck = OpenVinoRuntime.predict, []

    def nan(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        logits = predict(self, pixels).copy()
        if not (pixels == 127).all():
            struck.append(len(pixels))
            logits[:] = np.nan
        return logits

    monkeypatch.setattr(OpenVinoRuntime, "predict", nan)
    with pytest.raises(GlobalFault, match="gives nothing that can be used: 20 in a row"):
        runner.run()
    assert reasons(runner) == {}
    monkeypatch.undo()
    survive(
        runner,
        calm,
        "model",
        "the model gives NaN for everything",
        injected=sum(struck),
        answer="the task fails after 20 images in a row; nothing is quarantined",
    )


def test_one_image_with_an_output_that_is_not_finite(
    runner: Runner, calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, struck = pixels_of(runner, "00013.png"), []
    predict = OpenVinoRuntime.predict

    def nan(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        logits, hit = predict(self, pixels).copy(), (pixels == bad).all(axis=(1, 2, 3))
        struck.extend(np.flatnonzero(hit))
        logits[hit] = np.nan
        return logits

    monkeypatch.setattr(OpenVinoRuntime, "predict", nan)
    assert outcomes(runner.run()) == {"predicted": GOOD - 1, "failed": 1}
    assert reasons(runner) == {"00013.png": ("nonfinite_output", False)}
    monkeypatch.undo()
    survive(
        runner,
        calm,
        "model",
        "one image gives NaN",
        injected=len(struck),
        answer="quarantined as nonfinite_output, tried again later",
    )


def pixels_of(runner: Runner, key: str) -> Pixels:
    """What the network of the runner is shown of an image, uint8 [crop, crop, 3]."""
    from tasks.inference.decoding.policies import decode
    from tasks.models.cascade import resolve_models

    model = resolve_models(runner.pipeline.models, (), runner.settings)
    spec = model.stages[0].spec.preprocessing
    return decode((Path(runner.pipeline.images) / key).read_bytes(), spec)
