"""A run whose predictions have moved too far from the baseline says so, keeps everything, and holds up nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks import road
from tasks.errors import DriftExceeded, InvariantViolation, TooManyFailures
from tests.pictures import picture, write_small_bundle
from tests.runner import Runner

Make = Callable[..., Runner]

LABELS = ("dark", "red", "green", "blue")
QUIET = (date(2026, 10, 1), date(2026, 10, 2))
LIMITED = {"baseline": QUIET, "drift_limit": 0.25}
LATER = 40


def write_images(folder: Path, start: int, count: int, day: int, level: int) -> None:
    """Grey images; the brighter ones get another label than the dark ones."""
    import io

    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    moment = (datetime(2026, 10, 1, 6, tzinfo=UTC) + timedelta(days=day)).timestamp()
    for number in range(start, start + count):
        pixels = np.random.default_rng(number).integers(level, level + 40, (20, 20, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        path = folder / f"{number:04}.png"
        path.write_bytes(out.getvalue())
        os.utime(path, (moment, moment))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two quiet days: dark images and bright ones."""
    write_images(tmp_path / "images", 0, 40, 0, 0)
    write_images(tmp_path / "images", 40, 40, 1, 200)
    return tmp_path / "images"


@pytest.fixture
def make(tmp_path: Path, home: Path, images: Path, database_url: str) -> Make:
    def runner(seed: int = 10, **table: Any) -> Runner:
        model = tmp_path / f"model-{seed}"
        if not model.exists():
            write_small_bundle(model, seed)
        return Runner(home, database_url, **{"images": str(images), "model": str(model), **table})

    return runner


def newest(runner: Runner) -> dict[str, Any]:
    return runner.rows(
        "SELECT state, message, drift, drift_message, predicted FROM v_run ORDER BY started_at DESC LIMIT 1"
    )[0]


def predict_again(runner: Runner, images: Path, count: int = 60) -> None:
    write_images(images, 1000, count, LATER, 200)
    runner.run()


def test_a_run_beyond_the_limit_fails_after_everything_is_committed(make: Make, images: Path) -> None:
    one = make(**LIMITED)
    first = one.run()
    assert first["state"] == "success"
    assert newest(one)["drift"] == pytest.approx(0, abs=1e-9), "the baseline is this run's own"
    with pytest.raises(DriftExceeded) as error:
        predict_again(one, images)
    run = newest(one)
    assert (run["state"], run["predicted"]) == ("failed", 60)
    assert run["drift"] > 0.25
    assert run["message"] == str(error.value)
    for part in (
        "2026-10-01 to 2026-10-02",
        f"PSI {run['drift']:.3g}",
        "drift_limit 0.25",
        "Most moved",
        "raise drift_limit",
    ):
        assert part in str(error.value)
    assert any(f"{label!r} from " in str(error.value) for label in LABELS)
    assert len(one.predictions()) == 140
    assert one.run()["state"] == "success", "tomorrow is not held up"
    assert newest(one)["drift"] is None, "nothing came with it"


def test_with_notify_the_run_is_a_success_and_its_log_warns(
    make: Make, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = make(**LIMITED, drift_action="notify")
    one.run()
    predict_again(one, images)
    assert newest(one)["state"] == "success"
    assert newest(one)["drift"] > 0.25
    assert "have moved from the baseline" in newest(one)["drift_message"]
    assert "have moved from the baseline" in caplog.text


def test_what_has_not_moved_is_judged_and_passes(make: Make, images: Path) -> None:
    one = make(**LIMITED)
    one.run()
    write_images(images, 2000, 30, LATER, 0)
    write_images(images, 3000, 30, LATER, 200)
    assert one.run()["state"] == "success"
    assert newest(one)["drift"] < 0.25


def test_too_few_images_and_an_empty_baseline_are_not_judged(make: Make, images: Path) -> None:
    one = make(**LIMITED)
    one.run()
    predict_again(one, images, 49)
    assert newest(one)["drift"] is None
    elsewhere = make(**{**LIMITED, "baseline": (date(2020, 1, 1), date(2020, 1, 2))})
    write_images(images, 4000, 60, LATER, 200)
    elsewhere.run()
    assert newest(elsewhere)["drift"] is None


def test_a_model_is_compared_with_its_own_baseline(make: Make, images: Path) -> None:
    make(**LIMITED).run()
    for path in images.iterdir():
        path.unlink()
    other = make(1, **LIMITED)
    predict_again(other, images)
    assert newest(other)["drift"] is None


def test_without_a_limit_nothing_is_judged(make: Make, images: Path) -> None:
    one = make(baseline=QUIET)
    one.run()
    predict_again(one, images)
    assert newest(one)["drift"] is None


def test_a_raised_limit_lets_the_cleared_run_pass(make: Make, images: Path) -> None:
    one = make(**LIMITED)
    one.run()
    write_images(images, 1000, 60, LATER, 200)
    request = one.request()
    with pytest.raises(DriftExceeded):
        road.run(request, one.settings)
    with pytest.raises(DriftExceeded):
        road.publish_run(request, one.settings)
    table = request.pipeline.model_copy(update={"drift_limit": 50.0})
    assert road.publish_run(replace(request, pipeline=table), one.settings)["state"] == "success"
    assert newest(one)["message"] is None


def test_failures_are_judged_first(make: Make, images: Path) -> None:
    one = make(**LIMITED, max_failure_rate=0.01)
    one.run()
    for number in range(5):
        (images / f"bad-{number}.png").write_bytes(picture(number)[:60])
    with pytest.raises(TooManyFailures):
        predict_again(one, images)
    assert newest(one)["drift"] > 0.25, "and the number is there all the same"


def test_open_rows_are_judged_first(make: Make, images: Path) -> None:
    one = make(**LIMITED)
    one.run()
    write_images(images, 1000, 140, LATER, 200)
    request, shards = make(**LIMITED, workers=2).plan()
    road.predict_shard(shards[0], one.settings)
    with pytest.raises(InvariantViolation):
        road.publish_run(request, one.settings)
