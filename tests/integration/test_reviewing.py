"""Reviews, and what is to be reviewed next, against all rows of the cache: on both databases."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from tasks.cache.database import connect
from tasks.cache.pages import reviewing, walking
from tasks.cache.pages.scope import PipelineScope, pipeline_scope
from tasks.cache.pages.uncertain import Uncertain, uncertain
from tasks.cache.pages.walking import Position
from tasks.optimisation.truth import read_truth
from tests.command_line import exit_code
from tests.pictures import tinted_picture, write_small_bundle
from tests.runner import Runner

IMAGES = 90


class Scene:
    """A pipeline `photos` over `some/`, and another one over all of the folder, with the same model."""

    def __init__(self, folder: Path, home: Path, url: str) -> None:
        self.folder = folder / "images"
        for number in range(IMAGES):
            path = self.folder / ("other" if number % 9 == 0 else "some") / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tinted_picture(number))
        (self.folder / "some" / "000-twin.png").write_bytes(tinted_picture(7))
        self.model = write_small_bundle(folder / "model", seed=7)
        self.runner = Runner(home, url, name="photos", images=str(self.folder / "some"), model=str(self.model))
        self.runner.run()
        Runner(home, url, name="all", images=str(self.folder), model=str(self.model)).run()
        self.engine = connect(self.runner.settings.database_url)

    @property
    def scope(self) -> PipelineScope:
        scope = pipeline_scope(self.engine, "photos")
        assert scope is not None
        return scope

    def digest(self, number: int) -> bytes:
        return hashlib.sha256(tinted_picture(number)).digest()

    def expected(self, label: str | None = None) -> list[tuple[str, str]]:
        """(digest, first key) of what is to be reviewed, in order, found in all rows."""
        rows = self.runner.rows("SELECT * FROM v_current_prediction WHERE pipeline = 'photos' AND deleted_at IS NULL")
        reviewed = {row["digest"] for row in self.runner.rows("SELECT digest FROM v_review WHERE pipeline = 'photos'")}
        keys: dict[tuple[float, str], str] = {}
        for row in sorted(rows, key=lambda row: row["key"]):
            if row["digest"] not in reviewed and label in (None, row["label"]):
                keys.setdefault((row["margin"], row["digest"]), row["key"])
        return [(digest, key) for (_, digest), key in sorted(keys.items())]


@pytest.fixture
def scene(tmp_path: Path, home: Path, database_url: str) -> Scene:
    return Scene(tmp_path, home, database_url)


def all_pages(scene: Scene, limit: int, **asked: Any) -> list[Uncertain]:
    """Every page, one after the other."""
    found: list[Uncertain] = []
    after: Position | None = None
    while True:
        page = uncertain(scene.engine, scene.scope, scene.scope.current, after=after, limit=limit, **asked)
        assert len(page.rows) <= limit
        found += page.rows
        if page.after is None:
            return found
        after = Position.parse(str(page.after))


def seen(rows: list[Uncertain]) -> list[tuple[str, str]]:
    return [(row.digest, row.key) for row in rows]


def labels(engine: Engine, scope: PipelineScope) -> list[str]:
    return reviewing.labels_of(engine, scope.current.model_no)


def test_the_least_certain_come_first_once_each_and_only_this_pipelines(scene: Scene) -> None:
    expected = scene.expected()
    assert len(expected) == 80, "the twin is one of the others"
    assert seen(all_pages(scene, 200)) == expected
    assert seen(all_pages(scene, 7)) == expected
    first = all_pages(scene, 200)[0]
    assert first.top_k[0]["label"] == first.label
    assert first.top_k[0]["score"] - first.top_k[1]["score"] == pytest.approx(first.margin, abs=1e-6)


def test_of_one_label_and_up_to_a_margin(scene: Scene) -> None:
    by_label = {label: scene.expected(label) for label in labels(scene.engine, scene.scope)}
    assert sum(bool(rows) for rows in by_label.values()) > 1, "or it would show nothing"
    for label, expected in by_label.items():
        assert seen(all_pages(scene, 5, label=label)) == expected
    rows = all_pages(scene, 200)
    middle = rows[len(rows) // 2].margin
    assert seen(all_pages(scene, 7, margin_to=middle)) == seen([row for row in rows if row.margin <= middle])
    assert all_pages(scene, 5, label="a label that it has not") == []


def test_small_steps_and_no_time_lose_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scene.expected()
    for name, value in (("FIRST_GROUP", 9), ("LATER_GROUP", 5), ("OF_EACH_LABEL", 2), ("CANDIDATES", 4)):
        monkeypatch.setattr(walking, name, value)
    assert seen(all_pages(scene, 7)) == expected
    monkeypatch.setattr(walking, "BUDGET_SECONDS", 0.0)
    assert seen(all_pages(scene, 200)) == expected


def test_what_was_reviewed_or_is_gone_is_passed_over(scene: Scene) -> None:
    one, other, *rest = scene.expected()
    model_no = scene.scope.current.model_no
    reviewing.save_review(scene.engine, "photos", bytes.fromhex(one[0]), "red", model_no, "uma")
    reviewing.save_review(scene.engine, "all", bytes.fromhex(other[0]), "red", model_no, "uma")
    (scene.folder / "some" / rest[-1][1].rpartition("/")[2]).unlink()
    scene.runner.run()
    assert seen(all_pages(scene, 7)) == [other, *rest[:-1]]


def test_a_review_is_replaced_and_taken_back(scene: Scene) -> None:
    digest, model_no = scene.digest(1), scene.scope.current.model_no
    for label, reviewer in (("red", "uma"), ("blue", "admin")):
        reviewing.save_review(scene.engine, "photos", digest, label, model_no, reviewer)
    (row,) = scene.runner.rows("SELECT * FROM v_review")
    assert (row["digest"], row["label"], row["reviewer"]) == (digest.hex(), "blue", "admin")
    assert row["model_id"] == scene.scope.current.model_id
    assert not reviewing.remove_review(scene.engine, "all", digest)
    assert reviewing.remove_review(scene.engine, "photos", digest)
    assert not reviewing.remove_review(scene.engine, "photos", digest)
    assert scene.runner.rows("SELECT * FROM v_review") == []


def test_which_images_and_labels_there_are(scene: Scene) -> None:
    model_no = scene.scope.current.model_no
    assert labels(scene.engine, scene.scope) == ["dark", "red", "green", "blue"]
    assert reviewing.has_label(scene.engine, model_no, "green")
    assert not reviewing.has_label(scene.engine, model_no, "gree")
    assert not reviewing.has_label(scene.engine, model_no + 1, "green")
    assert reviewing.is_of_pipeline(scene.engine, scene.scope, scene.digest(1))
    assert not reviewing.is_of_pipeline(scene.engine, scene.scope, scene.digest(0)), "it is in the other folder"
    assert not reviewing.is_of_pipeline(scene.engine, scene.scope, b"none")


def test_how_often_the_model_was_right(scene: Scene) -> None:
    model_no = scene.scope.current.model_no
    rows = {row.digest: row.label for row in all_pages(scene, 200)}
    for number, (digest, label) in enumerate(sorted(rows.items())[:10]):
        said = label if number % 5 else {"red": "blue"}.get(label, "red")
        reviewing.save_review(scene.engine, "photos", bytes.fromhex(digest), said, model_no, "uma")
    found = reviewing.judged(scene.engine, "photos")
    assert found == reviewing.Judged(10, 8, False)
    assert found == reviewing.judged(scene.engine, "photos", model_no)
    assert reviewing.judged(scene.engine, "photos", most=5) == reviewing.Judged(5, 4, True)
    assert reviewing.judged(scene.engine, "photos", model_no + 1) == reviewing.Judged(0, 0, False)
    assert reviewing.judged(scene.engine, "all").share is None


def reviewed(scene: Scene) -> dict[str, str]:
    """Two reviews, one of them of twins; {key: label}."""
    model_no = scene.scope.current.model_no
    for number, label in ((7, "red"), (8, "blue")):
        reviewing.save_review(scene.engine, "photos", scene.digest(number), label, model_no, "uma")
    reviewing.save_review(scene.engine, "all", scene.digest(10), "dark", model_no, "uma")
    return {"000-twin.png": "red", "007.png": "red", "008.png": "blue"}


def command(scene: Scene, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setenv("AFTERIMAGE_DATABASE", scene.runner.settings.database_url)
    assert exit_code(monkeypatch, ["reviews", "photos", *options]) == 0


def test_the_command_line_writes_reviews(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = reviewed(scene)
    command(scene, monkeypatch)
    told = capsys.readouterr()
    assert told.err == "3 reviewed images of photos.\n"
    rows = list(csv.DictReader(io.StringIO(told.out)))
    assert list(rows[0]) == ["source", "key", "digest", "label", "predicted_label", "reviewer", "reviewed_at"]
    assert {row["key"]: row["label"] for row in rows} == expected
    said = scene.runner.predictions()
    assert all(row["predicted_label"] == said[row["key"]][3] and row["reviewer"] == "uma" for row in rows)
    assert rows[1]["digest"] == scene.digest(7).hex()

    command(scene, monkeypatch, "--format", "jsonl")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["key"] for line in lines] == sorted(expected)
    assert [list(line) for line in lines] == [list(rows[0])] * 3


def test_the_labels_are_those_that_models_are_judged_by(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Keys as they are, in the order of nothing: what `--labels` reads gives the same labels."""
    odd = '=a, "b"\nc.png'
    (scene.folder / "some" / odd).write_bytes(tinted_picture(8))
    scene.runner.run()
    expected = reviewed(scene) | {odd: "blue"}
    command(scene, monkeypatch, "--format", "labels", "--output", str(tmp_path / "labels.csv"))
    names = labels(scene.engine, scene.scope)
    truth = read_truth(tmp_path / "labels.csv", names, scene.runner.predictions())
    assert {key: names[index] for key, index in truth.items()} == expected
    assert exit_code(monkeypatch, ["reviews", "photos", "--output", str(tmp_path / "no" / "file")]) == 2


@pytest.mark.parametrize(
    ("right", "reviews", "low", "high"),
    # As R's binom::binom.wilson gives them.
    [
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (950, 1000, 0.9346921, 0.9618776),
    ],
)
def test_wilsons_interval(right: int, reviews: int, low: float, high: float) -> None:
    assert reviewing.Judged(reviews, right, False).interval == pytest.approx((low, high), abs=1e-4)
