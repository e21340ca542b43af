"""Two models side by side, against a count of every image: on both databases."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import select

from tasks.cache.database import connect, writing
from tasks.cache.pages import reviewing, walking
from tasks.cache.pages.comparison import Agreement, Difference, Pair, agreement, confusion, differing
from tasks.cache.pages.scope import ModelName, PipelineScope, pipeline_scope
from tasks.cache.pages.walking import Position
from tasks.cache.schema import pair_count
from tests.pairs import labels_by_key
from tests.pictures import LABELS, tinted_picture, write_small_bundle
from tests.runner import Runner

# The second has the labels of the first at other places, and one that the first has not.
OTHER_LABELS = ("blue", "dark", "green", "violet")


class Scene:
    """Two models of `photos`: they came in turn, and the last five images have one prediction."""

    def __init__(self, folder: Path, home: Path, url: str) -> None:
        self.folder, self.home, self.url = folder, home, url
        models = {"one": (1, LABELS), "two": (7, OTHER_LABELS)}
        self.models = {name: write_small_bundle(folder / name, seed, labels=of) for name, (seed, of) in models.items()}
        (folder / "images").mkdir()
        (folder / "images" / "twin.png").write_bytes(tinted_picture(3))
        seen = 0
        for model, until in (("one", 40), ("two", 50), ("one", 55), ("two", 60)):
            for image in range(seen, until):
                (folder / "images" / f"{image:03}.png").write_bytes(tinted_picture(image))
            self.run(model)
            seen = until
        self.engine = connect(url)

    def run(self, model: str) -> None:
        table = {"name": "photos", "images": str(self.folder / "images"), "model": str(self.models[model])}
        Runner(self.home, self.url, **table).run()

    @property
    def scope(self) -> PipelineScope:
        scope = pipeline_scope(self.engine, "photos")
        assert scope is not None
        return scope

    @property
    def pair(self) -> tuple[ModelName, ModelName]:
        """The model before, and the current one."""
        return self.scope.models[1], self.scope.current

    def answers(self) -> dict[str, tuple[str, str]]:
        """{key: what the two models say}, for images that have both."""
        one, two = (labels_by_key(self.engine, self.scope, model.model_no) for model in self.pair)
        return {key: (one[key][1], two[key][1]) for key in one.keys() & two.keys()}


@pytest.fixture
def scene(tmp_path: Path, home: Path, database_url: str) -> Scene:
    return Scene(tmp_path, home, database_url)


def all_pages(scene: Scene, limit: int, label: str | None = None, other_label: str | None = None) -> list[Difference]:
    found: list[Difference] = []
    after: Position | None = None
    while True:
        page = differing(scene.engine, scene.scope, *scene.pair, label, other_label, after, limit)
        found += page.rows
        if page.after is None:
            return found
        after = page.after


def test_sums_agree_with_a_count_of_every_image(scene: Scene) -> None:
    answers = scene.answers().values()
    assert len(answers) == 56, "55 and the twin"
    differ = Counter((one, two) for one, two in answers if one != two)
    assert len(differ) > 1, "or it would show nothing"

    found = agreement(scene.engine, "photos", *scene.pair)

    assert (found.both, found.agreed) == (56, 56 - differ.total())
    assert found.share == pytest.approx(1 - differ.total() / 56)
    assert {(pair.label, pair.other): pair.images for pair in found.pairs} == differ
    assert [pair.images for pair in found.pairs] == sorted(differ.values(), reverse=True)

    turned = agreement(scene.engine, "photos", *reversed(scene.pair))
    assert {(pair.other, pair.label): pair.images for pair in turned.pairs} == differ
    assert agreement(scene.engine, "others", *scene.pair) == Agreement(0, 0, [])


def test_both_directions_of_a_pair_are_added(scene: Scene) -> None:
    """Whichever model came later wrote the row: turn some of them round, as if they had come in turn."""
    before = agreement(scene.engine, "photos", *scene.pair)
    names = {"model_no": "other_model_no", "label_index": "other_label_index"}
    with writing(scene.engine) as connection:
        for row in connection.execute(select(pair_count)).mappings().all():
            swapped = {name: row[other] for name, other in (names | {b: a for a, b in names.items()}).items()}
            connection.execute(pair_count.insert().values({**row, **swapped, "images": 2 * row["images"]}))
    after = agreement(scene.engine, "photos", *scene.pair)
    assert (after.both, after.agreed) == (3 * before.both, 3 * before.agreed)
    assert after.pairs == [Pair(pair.label, pair.other, 3 * pair.images) for pair in before.pairs]


def test_the_images_on_which_they_differ(scene: Scene) -> None:
    answers = scene.answers()
    one, two = (labels_by_key(scene.engine, scene.scope, model.model_no) for model in scene.pair)
    differ = {key for key, (label, other) in answers.items() if label != other}
    if {"003.png", "twin.png"} <= differ:
        differ.remove("twin.png")  # The same bytes: the first key stands for both.
    rows = all_pages(scene, 7)
    assert sorted(row.key for row in rows) == sorted(differ)
    for row in rows:
        assert (row.label, row.score) == one[row.key][1:]
        assert (row.other_label, row.other_score) == two[row.key][1:]
    for label in {label for label, _ in answers.values()}:
        wanted = {key for key in differ if answers[key][0] == label}
        assert {row.key for row in all_pages(scene, 5, label)} == wanted
        for other in {other for _, other in answers.values()}:
            wanted = {key for key in differ if answers[key] == (label, other)}
            assert {row.key for row in all_pages(scene, 5, label, other)} == wanted
            if label != other:
                assert {row.key for row in all_pages(scene, 5, None, other)} >= wanted


def test_a_search_that_takes_too_long_says_where_it_goes_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = all_pages(scene, 100)
    for name, value in (("FIRST_GROUP", 5), ("LATER_GROUP", 5), ("BUDGET_SECONDS", 0.0)):
        monkeypatch.setattr(walking, name, value)
    first = differing(scene.engine, scene.scope, *scene.pair)
    assert first.after is not None
    assert 1 <= first.looked <= 5
    assert all_pages(scene, 100) == rows


def test_how_often_each_model_was_right(scene: Scene) -> None:
    models = scene.pair
    rows = all_pages(scene, 100)[:6]
    for number, row in enumerate(rows):
        said = row.other_label if number < 4 else row.label
        reviewing.save_review(scene.engine, "photos", bytes.fromhex(row.digest), said, models[1].model_no, "uma")
    right = [reviewing.judged(scene.engine, "photos", model.model_no) for model in models]
    assert right == [reviewing.Judged(6, 2, False), reviewing.Judged(6, 4, False)]


def test_what_is_not_shown_is_folded_and_nothing_is_lost() -> None:
    pairs = [Pair(f"label {number}", f"label {number + 1}", 100 - number) for number in range(30)]
    agreed = 1_000
    total = agreed + sum(pair.images for pair in pairs) + 17  # 17 of pairs so rare that they are not listed.
    found = confusion(Agreement(total, agreed, pairs), most=12)
    assert sum(found.images.values()) == total - agreed
    assert len(found.labels) == len(found.others) == 13
    assert found.labels[-1] is None
    assert found.others[-1] is None
    assert found.images["label 1", "label 2"] == 99
    assert None not in confusion(Agreement(3, 1, [Pair("red", "blue", 2)])).labels
