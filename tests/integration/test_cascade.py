"""A cascade on the road, on SQLite and on PostgreSQL: who answers which image, against arithmetic of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import road
from tasks.cache import migrating
from tasks.cache.commits import MEASURED_READS
from tasks.cache.database import connect, is_sqlite, writing
from tasks.cache.runs import RunKey
from tasks.cache.schema import to_single
from tasks.errors import GlobalFault, ModelError
from tasks.inference import batching, reading
from tasks.inference.decoding.policies import decode
from tasks.models.bundle import read_bundle
from tasks.models.cascade import Model
from tasks.models.runtimes import Logits, Pixels
from tasks.models.runtimes.openvino_runtime import OpenVinoRuntime
from tests.database_roles import as_owner
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

IMAGES = 60


@dataclass(frozen=True)
class Answer:
    """What a model says of an image: the best label, its score and its margin."""

    label: str
    score: float
    margin: float


def answers(bundle: Path, images: Path) -> dict[str, Answer]:
    """Each image through Pillow and eager torch, one by one; scores in plain NumPy."""
    import torch

    from tasks.models.loading import load_classifier

    model = read_bundle(bundle)
    network = load_classifier(model)
    found = {}
    for path in sorted(images.iterdir()):
        with torch.inference_mode():
            logits = network(torch.from_numpy(decode(path.read_bytes(), model.spec.preprocessing).copy())[None]).numpy()
        scores = np.exp(logits[0].astype(np.float64))
        scores /= scores.sum()
        second, best = np.sort(scores)[-2:]
        found[path.name] = Answer(model.labels[int(scores.argmax())], float(best), float(best - second))
    return found


def between(answers: dict[str, Answer], share: float) -> float:
    """A margin below which about this share of the images is: in the middle of the widest gap thereabouts."""
    margins = sorted(answer.margin for answer in answers.values())
    near = len(margins) // 10
    middle = max(near, min(len(margins) - near - 1, round(share * len(margins))))
    place = max(range(middle - near + 1, middle + near), key=lambda place: margins[place] - margins[place - 1])
    assert margins[place] - margins[place - 1] > 1e-5, "a rounding could decide who answers"
    return (margins[place - 1] + margins[place]) / 2


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", IMAGES)
    return tmp_path / "images"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """It answers blue or green; the large one red or dark."""
    return write_small_bundle(tmp_path / "small", seed=7)


@pytest.fixture(params=[16, 24], ids=["the same pixels", "other pixels"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_small_bundle(tmp_path / "large", seed=2, crop=request.param, name="large")


def rows(runner: Runner) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in runner.rows("SELECT * FROM v_prediction")}


def stages_of(runner: Runner) -> dict[str, Any]:
    (row,) = runner.rows("SELECT stages FROM v_run ORDER BY started_at DESC LIMIT 1")
    stages: dict[str, Any] = row["stages"] if isinstance(row["stages"], dict) else json.loads(row["stages"])
    return stages


def test_each_image_is_answered_by_the_stage_that_its_margin_says(
    home: Path, database_url: str, images: Path, small: Path, large: Path
) -> None:
    first, second = answers(small, images), answers(large, images)
    margin = between(first, 0.3)
    uris = (str(small), str(large))
    runner = Runner(home, database_url, images=str(images), model=uris, cascade_margin=margin)
    counts = runner.run()
    went_on = {key for key, answer in first.items() if answer.margin < margin}
    assert 0 < len(went_on) < IMAGES
    assert outcomes(counts) == {"predicted": IMAGES}
    assert (counts["reads"], counts["forward_passes"]) == (IMAGES, IMAGES + len(went_on))

    found = rows(runner)
    for key, row in found.items():
        expected = second[key] if key in went_on else first[key]
        assert (row["label"], row["cascade_stage"]) == (expected.label, 2 if key in went_on else 1), key
        assert (row["answered_by"], row["model_name"]) == ("large" if key in went_on else "small", "small+large")
        assert abs(row["score"] - expected.score) < 1e-5
        assert abs(row["margin"] - expected.margin) < 1e-5
    current = runner.rows("SELECT key, cascade_stage, answered_by FROM v_current_prediction WHERE pipeline = 'test'")
    assert {row["key"]: (row["cascade_stage"], row["answered_by"]) for row in current} == {
        key: (row["cascade_stage"], row["answered_by"]) for key, row in found.items()
    }

    stages = stages_of(runner)
    decodes = ["decode", "decode_2"] if read_bundle(large).spec.preprocessing.crop == 24 else ["decode"]
    assert set(stages) == {"read", "look_up", *decodes, "forward", "forward_2", "commit"}
    assert {stage: stages[stage]["items"] for stage in ("decode", "forward", "commit")} == dict.fromkeys(
        ("decode", "forward", "commit"), IMAGES
    )
    later = [stages[stage]["items"] for stage in ("forward_2", *decodes[1:])]
    assert set(later) == {len(went_on)}
    assert "forward_2" in road.format_summary(counts)

    again = runner.run()
    assert outcomes(again) == {"cached": IMAGES}
    assert (again["reads"], again["forward_passes"]) == (0, 0)


def test_a_single_model_has_no_stage_and_answers_by_its_name(
    home: Path, database_url: str, images: Path, small: Path
) -> None:
    runner = Runner(home, database_url, images=str(images), model=str(small))
    runner.run()
    assert {(row["cascade_stage"], row["answered_by"]) for row in rows(runner).values()} == {(None, "small")}
    assert {row["model_id"] for row in rows(runner).values()} == {read_bundle(small).model_id}
    assert set(stages_of(runner)) == {"read", "look_up", "decode", "forward", "commit"}


def test_rows_do_not_depend_on_the_batch_size_the_readers_or_the_queues(
    home: Path, tmp_path: Path, images: Path, small: Path, large: Path
) -> None:
    margin = between(answers(small, images), 0.5)
    seen = []
    for number, settings in enumerate(({"batch_size": 1}, {"batch_size": 3, "readers": 2}, {"queue_mib": 1})):
        url = f"sqlite:///{tmp_path}/{number}.db"
        uris = (str(small), str(large))
        runner = Runner(home, url, settings, images=str(images), model=uris, cascade_margin=margin)
        runner.run()
        seen.append(
            {key: (row["label"], row["answered_by"], round(row["score"], 5)) for key, row in rows(runner).items()}
        )
    assert seen[0] == seen[1] == seen[2]


def test_at_the_margin_itself_the_first_model_answers(
    home: Path, tmp_path: Path, images: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two classes with equal scores the margin is 0; with a score of 1 it is 1, below which nothing is wanted."""
    large = write_small_bundle(tmp_path / "large", seed=2, name="large")
    mark_first_network(monkeypatch, [1000.0, 0.0, 0.0, 0.0])
    uris = (str(small), str(large))
    sure = Runner(home, f"sqlite:///{tmp_path}/sure.db", images=str(images), model=uris, cascade_margin=1.0)
    sure.run()
    assert {(row["answered_by"], row["margin"]) for row in rows(sure).values()} == {("small", 1.0)}
    monkeypatch.undo()
    mark_first_network(monkeypatch, [0.5, 0.5, 0.0, 0.0])
    unsure = Runner(home, f"sqlite:///{tmp_path}/unsure.db", images=str(images), model=uris, cascade_margin=1e-12)
    unsure.run()
    assert {row["answered_by"] for row in rows(unsure).values()} == {"large"}


def mark_first_network(monkeypatch: pytest.MonkeyPatch, logits: list[float]) -> None:
    """The network that is opened first gives these logits for every image."""
    opened: list[OpenVinoRuntime] = []
    init, forward = OpenVinoRuntime.__init__, OpenVinoRuntime.predict

    def remember(self: OpenVinoRuntime, *arguments: Any) -> None:
        opened.append(self)
        init(self, *arguments)

    def say(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        if self is opened[0]:
            return np.tile(np.array(logits, np.float32), (len(pixels), 1))
        return forward(self, pixels)

    monkeypatch.setattr(OpenVinoRuntime, "__init__", remember)
    monkeypatch.setattr(OpenVinoRuntime, "predict", say)


def test_three_models_with_margins_of_their_own(
    home: Path, tmp_path: Path, database_url: str, images: Path, small: Path
) -> None:
    """The third one wants the pixels of neither: the file is kept for it past two networks."""
    middle = write_small_bundle(tmp_path / "middle", seed=1, name="middle")
    last = write_small_bundle(tmp_path / "last", seed=0, crop=20, name="last")
    first, second, third = (answers(bundle, images) for bundle in (small, middle, last))
    margins = (between(first, 0.6), between(second, 0.5))
    uris = (str(small), str(middle), str(last))
    runner = Runner(home, database_url, images=str(images), model=uris, cascade_margin=margins)
    counts = runner.run()
    stage = {
        key: 1 if first[key].margin >= margins[0] else 2 if second[key].margin >= margins[1] else 3 for key in first
    }
    assert set(stage.values()) == {1, 2, 3}
    for key, row in rows(runner).items():
        expected = (first, second, third)[stage[key] - 1][key]
        assert (row["cascade_stage"], row["label"]) == (stage[key], expected.label)
        assert row["answered_by"] == ("small", "middle", "last")[stage[key] - 1]
        assert abs(row["score"] - expected.score) < 1e-5
    assert counts["forward_passes"] == sum(stage.values())
    assert stages_of(runner)["decode_3"]["items"] == sum(number == 3 for number in stage.values())


def test_later_batches_are_full(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    """Few images go on; they are collected until a batch is full, whatever goes past meanwhile."""
    images = tmp_path / "many"
    write_pictures(images, 400)
    large = write_small_bundle(tmp_path / "large", seed=2, name="large")
    margin = between(answers(small, images), 0.2)
    monkeypatch.setattr(batching, "IDLE_SECONDS", 60)  # Nothing but a full batch, or the end, sends one on its way.
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 60)
    sizes: dict[int, list[int]] = {}
    forward = OpenVinoRuntime.predict

    def counted(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        sizes.setdefault(id(self), []).append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(OpenVinoRuntime, "predict", counted)
    uris = (str(small), str(large))
    runner = Runner(home, f"sqlite:///{tmp_path}/cache.db", images=str(images), model=uris, cascade_margin=margin)
    runner.run()
    first, second = sizes.values()
    went_on = sum(second) - 1  # without the blank image
    assert sum(first) - 1 == 400
    assert 40 <= went_on <= 120
    # The last one, and the blank image. All others are full.
    assert sum(size < 8 for size in second) <= 2


def test_a_second_run_with_another_margin_is_another_model(
    home: Path, database_url: str, images: Path, small: Path
) -> None:
    large = write_small_bundle(small.parent / "large", seed=2, name="large")
    uris = (str(small), str(large))
    one, two = (
        Runner(home, database_url, images=str(images), model=uris, cascade_margin=margin) for margin in (0.002, 0.003)
    )
    assert outcomes(one.run()) == {"predicted": IMAGES}
    assert outcomes(two.run()) == {"predicted": IMAGES}
    assert outcomes(one.run()) == {"cached": IMAGES}
    assert len(two.rows("SELECT DISTINCT model_id FROM v_prediction")) == 2


def test_damaged_files_and_twins_go_past_both_models(
    home: Path, database_url: str, images: Path, small: Path, large: Path
) -> None:
    for number in range(8):
        (images / f"twin-{number}.png").write_bytes(picture(number))
    for number in range(4):
        (images / f"damaged-{number}.png").write_bytes(picture(number)[: 100 + number])
    uris = (str(small), str(large))
    runner = Runner(home, database_url, images=str(images), model=uris, cascade_margin=0.003, commit_images=7)
    counts = runner.run()
    assert outcomes(counts) == {"predicted": IMAGES, "reused": 8, "failed": 4}
    assert counts["forward_passes"] == IMAGES + stages_of(runner)["forward_2"]["items"]
    assert stages_of(runner)["forward"]["items"] == IMAGES + 4


def nan_for(monkeypatch: pytest.MonkeyPatch, is_it: Callable[[Pixels], bool], network: int) -> None:
    """One of the networks, numbered as they are opened, has no finite output for some pictures."""
    opened: list[OpenVinoRuntime] = []
    init, forward = OpenVinoRuntime.__init__, OpenVinoRuntime.predict

    def remember(self: OpenVinoRuntime, *arguments: Any) -> None:
        opened.append(self)
        init(self, *arguments)

    def predict(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        logits = forward(self, pixels)
        if self is opened[network]:
            logits[[is_it(image) for image in pixels]] = np.nan
        return logits

    monkeypatch.setattr(OpenVinoRuntime, "__init__", remember)
    monkeypatch.setattr(OpenVinoRuntime, "predict", predict)


@pytest.mark.parametrize("network", [0, 1])
def test_an_image_without_a_finite_output_is_quarantined_by_the_model_that_gave_it(
    home: Path, database_url: str, images: Path, small: Path, monkeypatch: pytest.MonkeyPatch, network: int
) -> None:
    large = write_small_bundle(small.parent / "large", seed=2, name="large")
    bundle = read_bundle(small)
    wrong = decode((images / "00007.png").read_bytes(), bundle.spec.preprocessing)
    nan_for(monkeypatch, lambda pixels: bool((pixels == wrong).all()), network)
    uris = (str(small), str(large))
    runner = Runner(home, database_url, images=str(images), model=uris, cascade_margin=1.0)
    counts = runner.run()
    assert outcomes(counts) == {"predicted": IMAGES - 1, "failed": 1}
    (failure,) = runner.rows("SELECT key, reason, message, model_name FROM v_failure")
    assert (failure["key"], failure["reason"]) == ("00007.png", "nonfinite_output")
    assert failure["message"].startswith(("small", "large")[network])
    assert failure["model_name"] == "small+large"
    assert stages_of(runner)["forward_2"]["items"] == IMAGES - (network == 0)


def test_a_broken_second_model_blames_no_image(
    home: Path, database_url: str, images: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = write_small_bundle(small.parent / "large", seed=2, name="large")
    nan_for(monkeypatch, lambda _pixels: True, 1)
    uris = (str(small), str(large))
    runner = Runner(home, database_url, images=str(images), model=uris, cascade_margin=1e-9)
    with pytest.raises(GlobalFault, match="model large is not finite even for a blank image"):
        runner.run()
    assert runner.rows("SELECT * FROM failure") == []


def test_models_of_other_labels_are_refused_before_anything_is_read(
    home: Path, tmp_path: Path, images: Path, small: Path
) -> None:
    other = write_small_bundle(tmp_path / "other", labels=("a", "b", "c", "d"), name="other")
    uris = (str(small), str(other))
    runner = Runner(home, f"sqlite:///{tmp_path}/cache.db", images=str(images), model=uris, cascade_margin=0.4)
    with pytest.raises(ModelError, match="output 0 is 'dark' in small"):
        runner.run()
    assert runner.rows("SELECT reads FROM v_run") == [{"reads": 0}]


def test_runtimes_are_closed_when_a_shard_ends_and_when_it_fails(
    home: Path, tmp_path: Path, images: Path, small: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[OpenVinoRuntime] = []
    close = OpenVinoRuntime.close

    def noted(self: OpenVinoRuntime) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(OpenVinoRuntime, "close", noted)
    uris = (str(small), str(large))
    runner = Runner(home, f"sqlite:///{tmp_path}/cache.db", images=str(images), model=uris, cascade_margin=0.003)
    runner.run()
    assert len(set(map(id, closed))) == 2
    for runtime in closed:
        with pytest.raises(RuntimeError, match="closed"):
            runtime.predict(runtime.buffer())
    closed.clear()
    monkeypatch.setattr("tasks.cache.commits.commit", lambda *_arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.run(force=True)
    assert len(set(map(id, closed))) == 2


def test_files_that_are_kept_for_another_crop_stay_within_the_queues(
    home: Path, tmp_path: Path, images: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of a megabyte, all of which are decoded twice, and slow networks: most of them must wait in the store."""
    for number in range(120):
        (images / f"big-{number:03}.png").write_bytes(picture(1000 + number) + b"\0" * 2**20)
    large = write_small_bundle(tmp_path / "large", seed=2, crop=24, name="large")
    alive, most = alive_files(monkeypatch)
    forward = OpenVinoRuntime.predict

    def slow(self: OpenVinoRuntime, pixels: Pixels) -> Logits:
        time.sleep(0.03)
        return forward(self, pixels)

    monkeypatch.setattr(OpenVinoRuntime, "predict", slow)
    uris = (str(small), str(large))
    settings = {"queue_mib": 20, "batch_size": 2}
    url = f"sqlite:///{tmp_path}/cache.db"
    runner = Runner(home, url, settings, images=str(images), model=uris, cascade_margin=1.0, include=("big-*",))
    counts = runner.run()
    assert (counts["predicted"], counts["forward_passes"]) == (120, 240)
    assert alive() == 0
    # One file or one group in each of ten queues, and another in the hand of each of the threads between them.
    assert most() <= 50


def alive_files(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[], int], Callable[[], int]]:
    """How many files are in memory now, and how many were at most."""
    read, lock, alive = reading.read_object, threading.RLock(), [0, 0]

    class Data(bytes):
        """The bytes of a file, until nobody holds them any more."""

        def __del__(self) -> None:
            with lock:
                alive[0] -= 1

    def counted(*arguments: Any) -> Any:
        work = read(*arguments)
        with lock:
            work.data = Data(work.data or b"")
            alive[:] = alive[0] + 1, max(alive[1], alive[0] + 1)
        return work

    monkeypatch.setattr("tasks.inference.chain.read_object", counted)
    return lambda: alive[0], lambda: alive[1]


VICTIM = """
import os, signal, sys
from itertools import count
from pathlib import Path
from tasks.cache.database import connect, is_sqlite, writing
from tasks.cache.runs import RunKey
from tasks.inference import forward_stage
from tests.runner import Runner

home, url, images, small, large, margin, fatal = sys.argv[1:]
calls, score = count(1), forward_stage.score

def deadly(*arguments):
    if next(calls) == int(fatal):
        os.kill(os.getpid(), signal.SIGKILL)
    return score(*arguments)

forward_stage.score = deadly
table = {"images": images, "model": (small, large), "cascade_margin": float(margin), "commit_images": 8}
Runner(Path(home), url, {"batch_size": 4, "readers": 4}, **table).run(key=RunKey("kill", "the-run"))
"""


def test_kills_leave_the_rows_of_an_undisturbed_run(
    home: Path, tmp_path: Path, database_url: str, images: Path, small: Path, large: Path
) -> None:
    margin = between(answers(small, images), 0.5)
    table = {"images": str(images), "model": (str(small), str(large)), "cascade_margin": margin}
    calm = Runner(home, f"sqlite:///{tmp_path}/calm.db", **table)
    calm.run()
    killed = Runner(home, database_url, **table)
    arguments = [str(home), database_url, str(images), str(small), str(large), str(margin)]
    for fatal in (2, 12):
        victim = subprocess.run(
            [sys.executable, "-c", VICTIM, *arguments, str(fatal)], capture_output=True, text=True, check=False
        )
        assert victim.returncode == -signal.SIGKILL, victim.stderr
    assert len(killed.rows("SELECT key FROM work_item WHERE outcome IS NULL")) > 0
    killed.run(key=RunKey("kill", "the-run"))
    compared = ("key", "digest", "label", "cascade_stage", "answered_by")
    assert sorted(tuple(row[name] for name in compared) for row in rows(killed).values()) == sorted(
        tuple(row[name] for name in compared) for row in rows(calm).values()
    )
    assert killed.rows("SELECT * FROM work_item WHERE outcome IS NULL") == []


def test_a_shard_measures_the_rate_of_the_cascade_and_freezes_it(
    home: Path, database_url: str, images: Path, small: Path
) -> None:
    large = write_small_bundle(small.parent / "large", seed=2, name="large")
    write_pictures(images, MEASURED_READS, start=IMAGES)
    uris = (str(small), str(large))
    runner = Runner(home, database_url, images=str(images), model=uris, cascade_margin=0.003)
    _, shards = runner.plan()
    expected = Model((read_bundle(small), read_bundle(large)), (0.003,)).model_id
    assert (shards[0].model_id, shards[0].models, shards[0].margins) == (expected, uris, (0.003,))
    runner.run()
    (rate,) = runner.rows("SELECT m.model_id FROM rate JOIN model m USING (model_no)")
    assert rate["model_id"] == expected


def without_stage(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers as they are in single precision, which looks otherwise where a column has double."""
    top_k = row["top_k"] if isinstance(row["top_k"], list) else json.loads(row["top_k"])
    best = [(entry["label"], to_single(entry["score"])) for entry in top_k]
    numbers = {name: to_single(row[name]) for name in ("score", "margin", "entropy")}
    return {**row, **numbers, "top_k": best, "cascade_stage": None, "answered_by": None}


def test_the_views_lose_and_regain_who_answered_with_the_migration(
    home: Path, database_url: str, images: Path, small: Path
) -> None:
    large = write_small_bundle(small.parent / "large", seed=2, name="large")
    uris = (str(small), str(large))
    runner = Runner(home, database_url, images=str(images), model=uris, cascade_margin=0.003)
    runner.run()
    before = rows(runner)
    engine = connect(as_owner(database_url))
    migrating.downgrade(engine, "0002")
    older = rows(runner)
    assert {key: without_stage(row) for key, row in older.items()} == {
        key: without_stage(row) for key, row in before.items()
    }
    assert "cascade_stage" not in next(iter(older.values()))
    with writing(engine) as connection:
        if not is_sqlite(engine):
            connection.exec_driver_sql("GRANT SELECT ON afterimage.v_prediction TO pg_monitor")
    migrating.migrate(engine)
    # Which model answered is gone; whatever is predicted from here on has it.
    assert {(row["cascade_stage"], row["answered_by"]) for row in rows(runner).values()} == {(None, "small+large")}
    runner.run(force=True)
    assert {key: row["answered_by"] for key, row in rows(runner).items()} == {
        key: row["answered_by"] for key, row in before.items()
    }
    if not is_sqlite(engine):
        (granted,) = runner.rows("SELECT has_table_privilege('pg_monitor', 'afterimage.v_prediction', 'SELECT') AS may")
        assert granted["may"], "what was granted on the view before the migration"
