"""Known images are dropped while a large source is listed: everybody sees the same rows and counts as if all were staged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from tasks import range_listing, road
from tasks.cache import quarantine
from tasks.cache.database import connect, is_sqlite, writing
from tasks.cache.erasing import Target, erase
from tasks.cache.runs import RunKey
from tasks.cache.schema import failure
from tasks.errors import StagingLost
from tasks.settings import load_settings
from tasks.storage import s3
from tasks.storage.s3 import S3Store, client
from tasks.window import Window
from tests.database_roles import as_owner
from tests.pictures import picture, write_small_bundle
from tests.runner import Runner, outcomes

ROWS = {
    "prediction": "SELECT digest, label_index FROM prediction ORDER BY digest",
    "image": "SELECT key, etag, digest, deleted_at IS NOT NULL AS gone FROM image ORDER BY key",
    "failure": "SELECT key, etag, reason, attempts FROM failure ORDER BY key, etag",
}
BROKEN = b"no image"


class Bucket:
    """A bucket on a real S3 server."""

    def __init__(self, name: str, settings: dict[str, str]) -> None:
        self.name = name
        self._client = client(load_settings(**settings))

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)


@pytest.fixture
def filled(bucket: str, s3_settings: dict[str, str]) -> Bucket:
    found = Bucket(bucket, s3_settings)
    for number in range(12):
        found.put(f"raw/{number:03}.png", picture(number))
    return found


Make = Callable[..., Runner]


@pytest.fixture
def make(home: Path, tmp_path: Path, database_url: str, filled: Bucket, s3_settings: dict[str, str]) -> Make:
    model = write_small_bundle(tmp_path / "model")

    def runner(url: str = database_url, **table: Any) -> Runner:
        return Runner(
            home, url, dict(s3_settings), **{"images": f"s3://{filled.name}/raw/", "model": str(model), **table}
        )

    return runner


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any source is large once it was listed, and pages are small."""
    monkeypatch.setattr(range_listing, "SPLIT_OBJECTS", 1)
    monkeypatch.setattr(range_listing, "GROUP_OBJECTS", 4)
    monkeypatch.setattr(s3, "PAGE_OBJECTS", 3)


def staged(runner: Runner) -> list[str]:
    query = "SELECT key FROM work_item WHERE run_no = (SELECT max(run_no) FROM run) ORDER BY key"
    return [row["key"] for row in runner.rows(query)]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("workers", [1, 5])
def test_what_is_known_is_counted_and_not_staged(
    make: Make, filled: Bucket, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(list_workers=2)
    assert outcomes(one.run()) == {"predicted": 12}
    assert len(staged(one)) == 12, "nothing was known to be large"

    one = make(list_workers=max(2, workers))
    if workers == 1:  # Listed page by page, as where threads are of no use.
        monkeypatch.setattr(range_listing, "can_be_split", lambda *_: True)
        monkeypatch.setattr(range_listing, "list_all", lambda source, _workers, *, is_large: flat(source))
    filled.put("raw/005.png", picture(105))
    filled.put("raw/0035.png", picture(106))
    filled.delete("raw/011.png")
    counts = one.run()

    assert outcomes(counts) == {"cached": 10, "predicted": 2}
    assert staged(one) == ["raw/0035.png", "raw/005.png"]
    assert [row["key"] for row in one.rows("SELECT key FROM image WHERE deleted_at IS NOT NULL")] == ["raw/011.png"]
    view = one.rows("SELECT listed, cached, predicted FROM v_run ORDER BY started_at DESC LIMIT 1")
    assert view == [{"listed": 12, "cached": 10, "predicted": 2}]
    assert outcomes(one.run()) == {"cached": 12}
    assert staged(one) == []


def flat(source: range_listing.Source) -> tuple[int, int]:
    assert range_listing._list_flat(source, None) == []
    return range_listing.ranges.listed_so_far(source.engine, source.staging)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("seed", range(2))
def test_any_history_of_a_bucket_leaves_the_same_rows_and_counts(
    make: Make, filled: Bucket, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a run that stages all: new, overwritten, deleted, broken, mended, returned and erased images, filters and limits."""
    monkeypatch.setattr(quarantine, "retry_delay", lambda _attempts: timedelta(seconds=-1))
    draw = random.Random(seed)
    dropping, whole = make(), make(f"sqlite:///{tmp_path / 'whole.db'}")
    dropped = 0
    for _ in range(5):
        asked = {"limit": draw.choice([None, None, 2]), "force": draw.random() < 0.15, "dry_run": draw.random() < 0.15}
        found = []
        for runner, size in ((whole, 10**9), (dropping, 1)):
            monkeypatch.setattr(range_listing, "SPLIT_OBJECTS", size)
            counts = runner.run(**asked)
            found.append((outcomes(counts), counts["listed"], counts["ignored"]))
        assert found[0] == found[1]
        assert {name: dropping.rows(query) for name, query in ROWS.items()} == {
            name: whole.rows(query) for name, query in ROWS.items()
        }
        dropped += dropping.rows("SELECT dropped FROM run ORDER BY run_no DESC LIMIT 1")[0]["dropped"]
        key = change(draw, filled)
        erases, blocks = draw.random() < 0.3, draw.random() < 0.5
        for runner in (dropping, whole) if erases else ():
            engine = connect(as_owner(runner.settings.database_url))
            erase(engine, Target(key=key), block=blocks, dry_run=False)
    assert dropped > 10, "or this test shows nothing"


def change(draw: random.Random, bucket: Bucket) -> str:
    """A few changes; one of the keys that were changed."""
    keys = [f"raw/{number:03}.png" for number in draw.sample(range(16), 5)]
    for key in keys:
        action = draw.choice(["new", "same bytes", "broken", "delete", "delete", "leave out"])
        if action == "delete":
            bucket.delete(key)
        else:
            data = {"new": picture(draw.randrange(1000)), "same bytes": picture(3), "broken": BROKEN}
            bucket.put(key if action in data else "raw/notes.txt", data.get(action, b"text"))
    return keys[0]


@pytest.mark.usefixtures("large")
def test_what_is_gone_is_marked_but_not_by_a_window_and_comes_back(make: Make, filled: Bucket) -> None:
    one = make()
    one.run()
    filled.delete("raw/000.png")
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    assert outcomes(one.run(Window(None, long_ago))) == {}
    assert one.rows("SELECT key FROM image WHERE deleted_at IS NOT NULL") == []
    assert outcomes(one.run()) == {"cached": 11}
    assert one.rows("SELECT key FROM image WHERE deleted_at IS NOT NULL") == [{"key": "raw/000.png"}]
    filled.put("raw/000.png", picture(0))
    assert outcomes(one.run()) == {"cached": 12}
    assert staged(one) == ["raw/000.png"], "what came back is staged, so that its mark is taken away"
    assert one.rows("SELECT key FROM image WHERE deleted_at IS NOT NULL") == []


@pytest.mark.usefixtures("large")
def test_another_model_than_the_one_that_was_compared_with_is_refused(make: Make, tmp_path: Path) -> None:
    one = make()
    one.run()
    request = one.request(key=RunKey("cli", "changed"))
    road.list_images(request, one.settings)
    assert staged(one) == []
    other = write_small_bundle(tmp_path / "other", seed=5)
    changed = replace(request, pipeline=request.pipeline.model_copy(update={"model": str(other)}))
    with pytest.raises(StagingLost, match=r"dropped what the model .* has predicted.* Clear list_images"):
        road.deduplicate(changed, one.settings)
    road.list_images(changed, one.settings)
    assert len(road.deduplicate(changed, one.settings)) == 1
    assert len(staged(one)) == 12, "the other model has predicted none of them"


@pytest.mark.usefixtures("large")
def test_the_first_run_of_a_new_model_marks_what_is_gone_all_the_same(
    make: Make, filled: Bucket, tmp_path: Path
) -> None:
    make().run()
    filled.delete("raw/000.png")
    one = make(model=str(write_small_bundle(tmp_path / "other", seed=5)))
    assert outcomes(one.run()) == {"predicted": 11}
    assert one.rows("SELECT key FROM image WHERE deleted_at IS NOT NULL") == [{"key": "raw/000.png"}]


@pytest.mark.usefixtures("large")
def test_a_store_that_lists_folder_by_folder_is_staged_whole(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    one.run()
    monkeypatch.setattr(S3Store, "begins_after", lambda _store, _prefix: False)
    assert outcomes(one.run()) == {"cached": 12}
    assert len(staged(one)) == 12


@pytest.mark.usefixtures("large")
def test_a_page_costs_a_few_statements_and_not_one_for_each_key(make: Make) -> None:
    one = make(list_workers=2)
    one.run()
    engine = connect(one.settings.database_url)
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, said, *_rest: asked.append(said))
    request = one.request()
    road.list_images(request, one.settings, engine)
    assert len([said for said in asked if "prediction" in said]) <= 4, "12 keys in groups of 4 and more"


def marks(runner: Runner) -> list[int | None]:
    return [row["mark"] for row in runner.rows("SELECT DISTINCT mark FROM image WHERE deleted_at IS NULL ORDER BY 1")]


@pytest.mark.usefixtures("large")
def test_predictions_that_are_deleted_by_hand_are_made_again(make: Make) -> None:
    """Whoever deletes takes the marks as well: a trigger does it."""
    one = make(list_workers=2)
    one.run()
    assert len(marks(one)) == 1
    with writing(connect(as_owner(one.settings.database_url))) as connection:
        table = "prediction" if is_sqlite(connection) else "afterimage.prediction"
        few = f"SELECT digest FROM {table} ORDER BY digest LIMIT 5"
        assert connection.execute(text(f"DELETE FROM {table} WHERE digest IN ({few})")).rowcount == 5
    assert outcomes(one.run()) == {"cached": 7, "predicted": 5}
    assert outcomes(one.run()) == {"cached": 12}


@pytest.mark.usefixtures("large")
def test_images_from_before_there_were_marks_get_one_when_they_are_listed(make: Make) -> None:
    one = make(list_workers=2)
    one.run()
    expected = marks(one)
    with writing(connect(as_owner(one.settings.database_url))) as connection:
        table = "image" if is_sqlite(connection) else "afterimage.image"
        connection.execute(text(f"UPDATE {table} SET mark = NULL"))
    assert outcomes(one.run()) == {"cached": 12}
    assert staged(one) == []
    assert marks(one) == expected


@pytest.mark.usefixtures("large")
def test_two_models_over_one_source_do_not_take_the_marks_from_each_other(make: Make, tmp_path: Path) -> None:
    one, other = make(), make(model=str(write_small_bundle(tmp_path / "other", seed=5)))
    assert [outcomes(runner.run()) for runner in (one, other)] == [{"predicted": 12}, {"predicted": 12}]
    before = one.rows("SELECT * FROM image ORDER BY key")
    assert [outcomes(runner.run()) for runner in (one, other, one)] == [{"cached": 12}] * 3
    assert staged(one) == []
    assert one.rows("SELECT * FROM image ORDER BY key") == before, "a run that finds nothing new changes no row"


@pytest.mark.usefixtures("large")
def test_a_failure_of_an_image_that_is_as_it_was_before_is_forgotten(make: Make, filled: Bucket) -> None:
    """It is known in this state, and all the same deduplication has to see it."""
    one = make(list_workers=2)
    one.run()
    filled.put("raw/004.png", BROKEN)
    assert outcomes(one.run()) == {"cached": 11, "failed": 1}
    filled.put("raw/004.png", picture(4))
    assert outcomes(one.run()) == {"cached": 12}
    assert one.rows("SELECT key FROM v_failure") == []


@pytest.mark.usefixtures("large")
def test_what_another_model_could_not_predict_stays_in_quarantine(make: Make, tmp_path: Path) -> None:
    """A failure whose key is not staged is taken for one of an object that is gone."""
    one, other = make(), make(model=str(write_small_bundle(tmp_path / "other", seed=5)))
    one.run()
    other.run()
    image = one.rows("SELECT * FROM image WHERE key = 'raw/004.png'")[0]
    state = {name: image[name] for name in ("source_no", "key", "etag", "size", "digest")}
    why = {"reason": "truncated", "message": "", "decoder": "d", "attempts": 1, "next_retry_at": None, "run_no": 1}
    moments = dict.fromkeys(("last_modified", "first_failed_at", "last_failed_at"), datetime(2026, 1, 1, tzinfo=UTC))
    with writing(connect(as_owner(one.settings.database_url))) as connection:
        connection.execute(insert(failure), {**state, **why, **moments, "model_no": 2})
    assert outcomes(one.run()) == {"cached": 12}
    assert [row["key"] for row in one.rows("SELECT key FROM v_failure")] == ["raw/004.png"]
