"""The cache is kept small: what goes, what stays, that it adds up, and that runs under way lose nothing. On both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from tasks import road
from tasks.cache.database import connect, is_sqlite, reading, writing
from tasks.cache.keeping import pruning
from tasks.cache.keeping.pruning import Pruned
from tasks.cache.keeping.retention import Retention
from tasks.cache.keeping.stats import stats
from tasks.errors import ConfigurationError, DatabaseUnavailable
from tests.database_roles import as_owner, as_reader
from tests.integration.test_erasing import before_commits
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.property import rows
from tests.runner import Runner, outcomes


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", 8)
    return tmp_path / "images"


Make = Callable[..., Runner]


def maker(tmp_path: Path, home: Path, images: Path, database_url: str) -> Make:
    """Makes runners over one folder and one cache; `seed` is another model."""

    def runner(seed: int = 0, **table: Any) -> Runner:
        model = write_small_bundle(tmp_path / f"model-{seed}", seed=seed, name=f"small-{seed}")
        return Runner(home, database_url, **{"images": str(images), "model": str(model), **table})

    return runner


@pytest.fixture
def make(tmp_path: Path, home: Path, images: Path, database_url: str) -> Make:
    """On both databases, one after the other."""
    return maker(tmp_path, home, images, database_url)


@pytest.fixture
def make_here(tmp_path: Path, home: Path, images: Path) -> Make:
    """On SQLite: where both databases run the same statements, once is enough."""
    return maker(tmp_path, home, images, f"sqlite:///{tmp_path / 'cache.db'}")


def owner_of(runner: Runner) -> Engine:
    return connect(as_owner(runner.settings.database_url))


def change(runner: Runner, statement: str) -> None:
    """Change rows behind the program's back."""
    engine = owner_of(runner)
    change_in(engine, statement)
    engine.dispose()


def change_in(engine: Engine, statement: str) -> None:
    with writing(engine) as connection:
        if not is_sqlite(engine):
            connection.execute(text("SET LOCAL search_path TO afterimage"))
        connection.execute(text(statement))


def prune(runner: Runner, **asked: Any) -> Pruned:
    """A dry run, and the same again in earnest: what the one counts is what the other removes."""
    engine = owner_of(runner)
    try:
        looked = pruning.look(engine, Retention(**asked))
        pruned = pruning.prune(engine, Retention(**asked))
    finally:
        engine.dispose()
    assert (looked.dry_run, pruned.dry_run) == (True, False)
    assert [(step.what, step.found) for step in looked.steps] == [(step.what, step.removed) for step in pruned.steps]
    for one in pruned.changes:
        assert one.before - one.removed == one.after
        assert one.others == 0
    return pruned


def removed(pruned: Pruned) -> dict[str, int]:
    return {step.what: step.removed for step in pruned.steps}


def of_model(runner: Runner, name: str) -> list[tuple[Any, ...]]:
    """The predictions of a model, whatever run made them."""
    query = "SELECT key, digest, label, score, margin, entropy FROM v_prediction WHERE model_name = :name ORDER BY key"
    return [tuple(row.values()) for row in runner.rows(query, name=name)]


def counts(runner: Runner) -> dict[str, int]:
    return {
        table: runner.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"]
        for table in ("image", "prediction", "review", "model", "label_count", "run")
    }


def test_images_that_vanished_long_ago_go_and_what_they_leave_goes_as_orphans(make: Make, images: Path) -> None:
    make().run()
    for name in ("00003.png", "00004.png", "00005.png"):
        (images / name).unlink()
    make().run()
    change(make(), "UPDATE image SET deleted_at = '2000-01-01 00:00:00+00' WHERE key IN ('00003.png', '00004.png')")
    looked = pruning.look(owner_of(make()), Retention(vanished_days=30, orphans=True))
    assert [(step.what, step.found) for step in looked.steps] == [(pruning.VANISHED, 2), (pruning.ORPHANS, 2)]
    assert removed(prune(make(), vanished_days=30)) == {pruning.VANISHED: 2}
    assert (counts(make())["image"], counts(make())["prediction"]) == (6, 8)
    assert removed(prune(make(), vanished_days=30, orphans=True)) == {pruning.VANISHED: 0, pruning.ORPHANS: 2}
    assert (counts(make())["image"], counts(make())["prediction"]) == (6, 6)
    (images / "00003.png").write_bytes(picture(3))
    assert outcomes(make().run()) == {"cached": 5, "predicted": 1}, "what comes back is predicted anew"


def test_an_image_whose_row_went_is_read_once_more_and_found_by_its_digest(make_here: Make) -> None:
    make_here().run()
    change(make_here(), "UPDATE image SET deleted_at = '2000-01-01 00:00:00+00' WHERE key = '00003.png'")
    assert removed(prune(make_here(), vanished_days=30)) == {pruning.VANISHED: 1}
    counted = make_here().run()
    assert (outcomes(counted), counted["reads"], counted["forward_passes"]) == ({"cached": 7, "reused": 1}, 1, 0)


def test_old_predictions_go_unless_their_model_is_a_current_one(make: Make) -> None:
    make(0).run()
    make(1).run()
    assert removed(prune(make(), older_than_days=30)) == {pruning.OLD: 0}, "they are young"
    change(make(), "UPDATE prediction SET predicted_at = '2000-01-01 00:00:00+00'")
    before = of_model(make(), "small-1")
    assert removed(prune(make(), older_than_days=30)) == {pruning.OLD: 8}
    assert (of_model(make(), "small-0"), of_model(make(), "small-1")) == ([], before)
    assert removed(prune(make(), older_than_days=30)) == {pruning.OLD: 0}
    assert outcomes(make(0).run()) == {"predicted": 8}, "no image remembers that it had a prediction"


def test_a_model_goes_as_a_whole_its_history_stays_and_it_may_come_back(make: Make) -> None:
    make(1).run()
    make(0).run()
    before, first = counts(make()), of_model(make(), "small-0")
    with pytest.raises(ConfigurationError, match="current one of test"):
        prune(make(), model="small-0@1")
    change(make(), "UPDATE pipeline SET model_no = 1")
    assert removed(prune(make(), model="small-0@1")) == {pruning.DROPPED: 8}
    assert counts(make()) == {**before, "prediction": 8}, "model, runs and sums stay"
    assert of_model(make(), "small-0") == []
    if not make().settings.database_url.startswith("sqlite"):
        query = "SELECT to_regclass('prediction_1') IS NULL AS one, to_regclass('prediction_2') IS NULL AS two"
        assert make().rows(query) == [{"one": False, "two": True}]
    assert len(stats(owner_of(make())).models) == 2
    assert outcomes(make(0).run()) == {"predicted": 8}, "no image remembers that it had a prediction"
    assert of_model(make(), "small-0") == first
    assert outcomes(make(0).run()) == {"cached": 8}


def test_a_model_of_a_run_that_is_under_way_stays(make: Make) -> None:
    make(0).run()
    make(1).run()
    request, shards = make(0).plan(force=True)
    with pytest.raises(ConfigurationError, match="is under way with this model"):
        prune(make(), model="small-0@1")
    assert removed(prune(make(), older_than_days=0)) == {pruning.OLD: 0}
    road.predict_shard(shards[0], make(0).settings)
    road.publish_run(request, make(0).settings)


def test_a_model_is_named_by_name_and_version_or_by_its_id(make_here: Make) -> None:
    make_here(0).run()
    for named in ("nothing@1", "small-0", "@", "%", "0", "'; DROP TABLE model; --", "small-0@1@1"):
        with pytest.raises(ConfigurationError, match=r"knows no model .* knows: small-0@1 \(") as raised:
            prune(make_here(), model=named)
        assert repr(named) in str(raised.value)
    model_id = stats(owner_of(make_here())).models[0].model_id
    change(make_here(), "DELETE FROM pipeline")
    for named in (model_id[:12], model_id, "small-0@1"):
        assert removed(prune(make_here(), model=named)).keys() == {pruning.DROPPED}
    change(
        make_here(),
        "INSERT INTO model (model_id, name, version, spec, created_at) "
        "SELECT 'another', name, version, spec, created_at FROM model",
    )
    with pytest.raises(ConfigurationError, match=rf"the name of 2 models: {model_id[:12]}, another"):
        prune(make_here(), model="small-0@1")


def test_orphans_go_and_reviews_stay(make: Make, images: Path) -> None:
    make().run()
    digest = make().rows("SELECT digest FROM image WHERE key = '00003.png'")[0]["digest"]
    change(
        make(),
        "INSERT INTO review (pipeline, digest, label, model_no, reviewer, reviewed_at) "
        "SELECT 'test', digest, 'a', 1, 'somebody', '2026-01-01 00:00:00+00' FROM image WHERE key = '00003.png'",
    )
    (images / "00003.png").write_bytes(picture(99))
    (images / "twin.png").write_bytes(picture(4))
    (images / "00004.png").write_bytes(picture(98))
    make().run()
    told: list[tuple[str, list[bytes]]] = []
    engine = owner_of(make())
    pruned = pruning.prune(engine, Retention(orphans=True), lambda what, keys: told.append((what, list(keys))))
    assert removed(pruned) == {pruning.ORPHANS: 1}, "00004's bytes are a twin's"
    assert told == [(pruning.ORPHANS, [bytes(digest)])]
    assert counts(make())["review"] == 1
    assert outcomes(make().run()) == {"cached": 9}


def test_batches_end_where_they_should(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "BATCH", 3)
    monkeypatch.setattr(pruning, "CHUNK", 2)
    make(0).run()
    make(1).run()
    change(make(), "UPDATE image SET deleted_at = '2000-01-01 00:00:00+00'")
    expected = {pruning.VANISHED: 8, pruning.OLD: 8, pruning.ORPHANS: 8}
    assert removed(prune(make(), vanished_days=1, older_than_days=0, orphans=True)) == expected
    assert (counts(make())["image"], counts(make())["prediction"]) == (0, 0)


def test_what_a_shard_counts_on_is_predicted_by_its_next_attempt(
    make: Make, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are back while their old prediction is pruned: the shard has seen it, and its commit does not find it."""
    make().run()
    (images / "00003.png").unlink()
    make().run()
    change(make(), "DELETE FROM image WHERE key = '00003.png'")
    (images / "00003.png").write_bytes(picture(3))
    with monkeypatch.context() as patched:
        engine = owner_of(make())
        struck = before_commits(patched, lambda: pruning.prune(engine, Retention(orphans=True)))
        counted = make().run()
    assert struck == [1]
    assert outcomes(counted) == {"cached": 7, "predicted": 1}


def test_a_run_beside_it_ends_as_it_would_alone(make: Make, images: Path) -> None:
    make().run()
    write_pictures(images, 22, start=8)
    stop, engine = threading.Event(), owner_of(make())

    def keep_pruning() -> None:
        while not stop.is_set():
            pruning.prune(engine, Retention(vanished_days=0, older_than_days=0, orphans=True))

    beside = threading.Thread(target=keep_pruning)
    beside.start()
    try:
        counted = make(commit_images=3).run()
    finally:
        stop.set()
        beside.join()
    assert outcomes(counted) == {"cached": 8, "predicted": 22}
    assert outcomes(make().run()) == {"cached": 30}


def test_what_came_back_between_look_and_removal_stays(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make().run()
    gone = "UPDATE image SET deleted_at = '2000-01-01 00:00:00+00'"
    change(make(), gone)
    remove, struck = pruning._remove, list[int]()

    def late(connection: Any, **arguments: Any) -> Any:
        # In the transaction of the removal, as if it were one that was committed before.
        struck.append(len(arguments["keys"]))
        schema = "" if is_sqlite(connection) else "afterimage."
        connection.execute(text(f"UPDATE {schema}image SET deleted_at = NULL WHERE key < '00003.png'"))
        return remove(connection, **arguments)

    with monkeypatch.context() as patched:
        patched.setattr(pruning, "_remove", late)
        pruned = pruning.prune(owner_of(make()), Retention(vanished_days=1, orphans=True))
    assert struck == [8, 5]
    assert removed(pruned) == {pruning.VANISHED: 5, pruning.ORPHANS: 5}
    assert pruned.changes[0] == pruning.Change("image", 8, 5, 0, 3)


def test_a_model_that_comes_to_use_meanwhile_stays(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make(0).run()
    make(1).run()
    with monkeypatch.context() as patched:
        patched.setattr(pruning, "_prune_images", lambda *_: make(0).run()["failed"])
        assert removed(pruning.prune(owner_of(make()), Retention(older_than_days=0))) == {pruning.OLD: 0}
        change(make(), "UPDATE pipeline SET model_no = 2")
        with pytest.raises(ConfigurationError, match="current one of test"):
            pruning.prune(owner_of(make()), Retention(model="small-0@1"))
    assert len(of_model(make(), "small-0")) == len(of_model(make(), "small-1")) == 8


def test_who_waits_for_a_lock_does_so_for_a_while(
    make: Make, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """A division, or anything else that holds erasing off, goes on; its end is waited for, and not for ever."""
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has one writer, and a busy time-out")
    from tasks.cache.blocking import hold_off_erasing

    make(0).run()
    make(1).run()
    change(make(), "UPDATE image SET deleted_at = '2000-01-01 00:00:00+00'")
    monkeypatch.setattr(pruning, "LOCK_SECONDS", 1)
    monkeypatch.setattr(pruning, "PAUSES_SECONDS", (0.1,))
    engine = owner_of(make())
    with reading(connect(database_url)) as connection:
        connection.execute(text("SELECT count(*) FROM afterimage.prediction"))
        with pytest.raises(DatabaseUnavailable, match="somebody who reads for long"):
            pruning.prune(engine, Retention(model="small-0@1"))
    assert removed(prune(make(), model="small-0@1")) == {pruning.DROPPED: 8}
    with writing(connect(database_url)) as connection:
        hold_off_erasing(connection)
        with pytest.raises(DatabaseUnavailable, match="give the command again"):
            pruning.prune(engine, Retention(vanished_days=1))
    assert removed(prune(make(), vanished_days=1)) == {pruning.VANISHED: 8}


def test_only_the_owner_prunes(make: Make, database_url: str) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("SQLite has no roles")
    for url in (database_url, as_reader(database_url)):
        for prunes in (pruning.look, pruning.prune):
            with pytest.raises(ConfigurationError, match=r"may not prune.* as the owner of the cache"):
                prunes(connect(url), Retention(orphans=True))


def test_stats_tell_rows_bytes_models_and_orphans(make: Make, images: Path) -> None:
    make(0).run()
    (images / "00003.png").write_bytes(picture(99))
    (images / "00004.png").unlink()
    (images / "broken.png").write_bytes(b"no image")
    make(1).run()
    found = stats(connect(make().settings.database_url))
    numbers = {one.table: one.number.rows for one in found.tables}
    assert {name: numbers[name] for name in counts(make())} == counts(make())
    assert all(one.number.exact for one in found.tables)
    assert all(one.bytes and one.bytes > 0 for one in found.tables if one.number.rows)
    assert found.bytes >= sum(one.bytes or 0 for one in found.tables) > 0
    assert [(one.name, one.number.rows, one.pipelines) for one in found.models] == [
        ("small-0", 8, ()),
        ("small-1", 7, ("test",)),
    ]
    assert all(one.oldest and one.newest and one.newest - one.oldest < timedelta(hours=1) for one in found.models)
    assert (found.images.rows, found.deleted.rows, found.orphans.rows) == (7, 1, 1)
    assert found.failures == {"not_an_image": 1}


def test_stats_of_a_large_cache_are_estimates_and_say_so(database_url: str) -> None:
    """ "Large" begins at 1,000 rows; a fifth of the predictions are orphans, and a tenth of the images was deleted."""
    engine = connect(as_owner(database_url))
    listed = [rows.listed(f"{number:04d}.png") for number in range(3_000)]
    staging = rows.staged(engine, [listed])
    rows.predicted(engine, staging, rows.model(engine), listed)
    change_in(engine, "DELETE FROM image WHERE key LIKE '%5.png' OR key LIKE '%6.png'")
    change_in(engine, "UPDATE image SET deleted_at = '2026-01-01 00:00:00+00' WHERE key LIKE '%7.png'")
    with reading(engine.execution_options(isolation_level="AUTOCOMMIT")) as connection:
        connection.execute(text("ANALYZE"))
    found = stats(engine, few=1_000)
    numbers = {one.table: one.number for one in found.tables}
    assert numbers["prediction"].exact is is_sqlite(engine)
    assert numbers["prediction"].rows == pytest.approx(3_000, rel=0.02)
    assert (found.orphans.exact, found.deleted.exact) == (False, False)
    assert found.orphans.rows == pytest.approx(600, rel=0.2)
    assert found.deleted.rows == pytest.approx(300, rel=0.25)
