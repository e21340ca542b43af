"""An image leaves every table, nothing else does, and what is blocked does not come back: on both databases."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks import reporting, road
from tasks.cache import blocking, commits, erasing, quarantine
from tasks.cache.database import connect, is_sqlite, reading, writing
from tasks.cache.erasing import Erased, Target
from tasks.cache.pages import reviewing
from tasks.errors import ConfigurationError
from tasks.storage.base import Blob
from tasks.storage.local import LocalStore
from tasks.window import Window
from tests.conftest import ROOT, outer_environment
from tests.database_roles import as_owner
from tests.faults.oracle import settle
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

TABLES = (
    "image",
    "prediction",
    "failure",
    "work_item",
    "shard",
    "run",
    "source",
    "model",
    "pipeline",
    "block",
    "review",
)
KEY = "00003.png"
NUMBER = 3

Make = Callable[..., Runner]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", 8)
    return tmp_path / "images"


def maker(tmp_path: Path, home: Path, images: Path, database_url: str) -> Make:
    """Makes runners over one folder, one model and one cache."""
    model = write_small_bundle(tmp_path / "model")

    def runner(**table: Any) -> Runner:
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


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def erase(runner: Runner, *, block: bool = False, dry_run: bool = False, **target: Any) -> Erased:
    engine = connect(as_owner(runner.settings.database_url))
    try:
        return erasing.erase(engine, Target(**target), block=block, dry_run=dry_run)
    finally:
        engine.dispose()


def lift(runner: Runner, **target: Any) -> int:
    engine = connect(as_owner(runner.settings.database_url))
    try:
        return erasing.unblock(engine, Target(**target))
    finally:
        engine.dispose()


def removed(erased: Erased) -> dict[str, int]:
    return {table: count for table, count in erased.removed.items() if count}


def everything(runner: Runner) -> dict[str, list[tuple[Any, ...]]]:
    found = {table: runner.rows(f"SELECT * FROM {table}") for table in TABLES}
    return {table: sorted(tuple(map(str, row.values())) for row in rows) for table, rows in found.items()}


def mentions(runner: Runner, key: str, digest: bytes) -> dict[str, int]:
    """{table: rows} in which a key or a digest stands anywhere."""
    found = {}
    for table in TABLES:
        rows = runner.rows(f"SELECT * FROM {table}")
        hit = [row for row in rows if any(_holds(value, key, digest) for value in row.values())]
        found |= {table: len(hit)} if hit else {}
    return found


def _holds(value: object, key: str, digest: bytes) -> bool:
    if isinstance(value, bytes | memoryview):
        return bytes(value) == digest
    return isinstance(value, str) and (key in value or digest.hex() in value)


@contextmanager
def at_read(monkeypatch: pytest.MonkeyPatch, key: str, happen: Callable[[], object]) -> Iterator[list[str]]:
    """While a key is in the reader's hands, before its bytes are handed on, something happens, once."""
    read, struck, lock = LocalStore.read, list[str](), threading.Lock()

    def held(store: LocalStore, wanted: str, etag: str | None) -> Blob:
        blob = read(store, wanted, etag)
        with lock:
            if wanted == key and not struck:
                struck.append(key)
                happen()
        return blob

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "read", held)
        yield struck
    assert struck == [key], "it was in hand when it happened"


def before_commits(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], object]) -> list[int]:
    """Before the first commit, when every image of a small run is in hand and scored, something happens."""
    commit, struck = commits.commit, list[int]()

    def late(*arguments: Any) -> Any:
        if not struck:
            struck.append(len(arguments[2]))
            happen()
        return commit(*arguments)

    monkeypatch.setattr(commits, "commit", late)
    return struck


def test_a_key_leaves_every_table_and_nothing_else_changes(make: Make) -> None:
    make().run()
    before = everything(make())
    erased = erase(make(), key=KEY)
    assert (removed(erased), erased.kept) == ({"image": 1, "prediction": 1, "work_item": 1}, 0)
    assert mentions(make(), KEY, sha(picture(NUMBER))) == {}
    after = everything(make())
    for table in ("run", "source", "model", "pipeline", "block"):
        assert after[table] == before[table], table
    for table in ("image", "prediction", "work_item"):
        assert set(after[table]) < set(before[table])
        assert len(before[table]) - len(after[table]) == 1
    assert removed(erase(make(), key=KEY)) == {}, "twice is once"
    assert everything(make()) == after
    assert outcomes(make().run()) == {"cached": 7, "predicted": 1}, "it is still there, so it is predicted anew"


def test_a_dry_run_counts_and_changes_nothing(make_here: Make) -> None:
    make_here().run()
    before = everything(make_here())
    assert removed(erase(make_here(), key=KEY, block=True, dry_run=True)) == {
        "image": 1,
        "prediction": 1,
        "work_item": 1,
    }
    assert everything(make_here()) == before


def test_predictions_stay_while_another_image_has_the_bytes(make_here: Make, images: Path) -> None:
    (images / "twin.png").write_bytes(picture(NUMBER))
    make_here().run()
    before = make_here().predictions()
    erased = erase(make_here(), key=KEY)
    assert (removed(erased), erased.kept) == ({"image": 1, "work_item": 1}, 1)
    assert make_here().predictions() == {key: row for key, row in before.items() if key != KEY}
    (images / "twin.png").unlink()
    make_here().run()
    assert erase(make_here(), key=KEY).kept == 1, "a deleted image counts as well"
    erased = erase(make_here(), digest=sha(picture(NUMBER)))
    assert erased.removed["prediction"] == 1
    assert make_here().rows("SELECT * FROM image WHERE key = 'twin.png'") == []


def test_a_digest_leaves_under_all_its_keys_and_for_all_models(
    make: Make, images: Path, tmp_path: Path, home: Path, database_url: str
) -> None:
    other = tmp_path / "other"
    write_pictures(other, 5)
    (images / "twin.png").write_bytes(picture(NUMBER))
    make().run()
    make(images=str(other)).run()
    second = str(write_small_bundle(tmp_path / "second", seed=1))
    make(model=second).run()
    erased = erase(make(), digest=sha(picture(NUMBER)))
    assert removed(erased) == {"image": 3, "prediction": 2, "work_item": 5}
    assert mentions(make(), "twin.png", sha(picture(NUMBER))) == {}
    assert len(make().rows("SELECT * FROM image")) == 7 + 4
    assert len(make().rows("SELECT * FROM prediction")) == 2 * 7


def test_one_source_or_all(make_here: Make, tmp_path: Path, images: Path) -> None:
    other = tmp_path / "other"
    write_pictures(other, 5)
    make_here().run()
    make_here(images=str(other)).run()
    erased = erase(make_here(), key=KEY, source=f"file://{images}")
    assert (removed(erased), erased.kept) == ({"image": 1, "work_item": 1}, 1)
    with pytest.raises(ConfigurationError, match=r"knows no source 's3://nowhere'\. It knows: file://"):
        erase(make_here(), key=KEY, source="s3://nowhere")
    assert removed(erase(make_here(), key=KEY)) == {"image": 1, "prediction": 1, "work_item": 1}


def test_failures_leave_with_their_key_and_with_their_digest(make_here: Make, images: Path) -> None:
    damaged = picture(NUMBER)[:200]
    for name in ("bad-1.png", "bad-2.png", "bad-3.png"):
        (images / name).write_bytes(damaged)
    make_here().run()
    assert {row["digest"] for row in make_here().rows("SELECT digest FROM v_failure")} == {sha(damaged).hex()}
    assert removed(erase(make_here(), key="bad-1.png")) == {"failure": 1, "work_item": 1}
    assert len(make_here().rows("SELECT * FROM failure")) == 2
    assert removed(erase(make_here(), digest=sha(damaged))) == {"failure": 2, "work_item": 2}
    assert mentions(make_here(), "bad-", sha(damaged)) == {}


@pytest.mark.parametrize("force", [False, True])
def test_a_blocked_key_is_passed_over_by_every_later_run(make: Make, images: Path, force: bool) -> None:
    make().run()
    erase(make(), key=KEY, block=True)
    erase(make(), key=KEY, block=True)
    assert len(make().rows("SELECT * FROM block")) == 1
    (images / KEY).write_bytes(picture(99))  # Whatever lies there by now.
    counts = make().run(force=force)
    assert outcomes(counts) == {"known_bad": 1, ("predicted" if force else "cached"): 7}
    assert counts["reads"] == (7 if force else 0)
    assert make().rows("SELECT * FROM image WHERE key = :key", key=KEY) == []
    assert lift(make(), key=KEY) == 1
    assert outcomes(make().run()) == {"cached": 7, "predicted": 1}


@pytest.mark.parametrize("force", [False, True])
def test_blocked_bytes_under_another_key_are_read_once_and_never_decoded(
    make: Make, images: Path, tmp_path: Path, force: bool
) -> None:
    make().run()
    digest = sha(picture(NUMBER))
    erase(make(), digest=digest, block=True)
    (images / KEY).unlink()
    for name in ("back-1.png", "back-2.png"):
        (images / name).write_bytes(picture(NUMBER))
    counts = make().run(force=force)
    assert outcomes(counts) == {"failed": 2, ("predicted" if force else "cached"): 7}
    assert counts["forward_passes"] == (7 if force else 0)
    rows = make().rows("SELECT key, reason, message, permanent, digest FROM v_failure ORDER BY key")
    assert [(row["key"], row["reason"], bool(row["permanent"]), row["digest"]) for row in rows] == [
        ("back-1.png", "blocked", True, None),
        ("back-2.png", "blocked", True, None),
    ]
    assert mentions(make(), "nowhere", digest) == {"block": 1}
    again = make().run(force=force)
    assert (again["known_bad"], again["reads"]) == (2, 7 if force else 0)
    second = make(model=str(write_small_bundle(tmp_path / "second", seed=1))).run()
    assert outcomes(second) == {"known_bad": 2, "predicted": 7}, "another model does not look either"
    assert lift(make(), digest=digest) == 1
    assert outcomes(make().run()) == {"cached": 7, "predicted": 1, "reused": 1}


def test_what_is_blocked_is_not_staged_as_a_failure_that_is_due(
    make_here: Make, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of the decoder has a word to say about every failure but this."""
    digest = sha(picture(NUMBER))
    write_pictures(images / "raw" / "2026-03-01", 2)
    (images / "raw" / "2026-03-01" / "back.png").write_bytes(picture(NUMBER))
    daily = make_here(images=f"{images}/raw/{{{{ ds }}}}/")
    daily.run()
    erase(daily, digest=digest, block=True)
    assert outcomes(daily.run()) == {"cached": 2, "failed": 1}
    monkeypatch.setattr(road, "decoder_of", lambda _model: "another one")
    assert outcomes(daily.run(run_type="scheduled")) == {"cached": 2, "known_bad": 1}
    other_day = Window(datetime(2026, 3, 9, tzinfo=UTC), datetime(2026, 3, 10, tzinfo=UTC))
    assert daily.run(other_day, run_type="scheduled")["listed"] == 0


def test_a_run_goes_on_and_adds_up_when_images_are_erased_between_its_steps(make: Make) -> None:
    runner = make(workers=2)
    request, shards = runner.plan()
    erase(runner, key="00000.png")
    erase(runner, key="00007.png", block=True)
    assert [(row["expected"]) for row in runner.rows("SELECT expected FROM shard ORDER BY shard")] == [3, 3]
    for shard in shards:
        road.predict_shard(shard, runner.settings)
    counts = road.publish_run(request, runner.settings)
    assert (counts["listed"], outcomes(counts)) == (6, {"predicted": 6})
    erase(runner, key="00001.png")
    assert road.predict_shard(shards[0], runner.settings) == {"predicted": 2}, "clearing a finished shard finds it done"
    again = road.publish_run(request, runner.settings)
    assert (again["listed"], outcomes(again)) == (6, {"predicted": 6}), "the counts of a run that is over are history"
    assert outcomes(runner.run()) == {"cached": 5, "known_bad": 1, "predicted": 2}


def test_a_failed_run_can_be_cleared_after_an_erasure(make_here: Make) -> None:
    runner = make_here(workers=2)
    request, shards = runner.plan()
    road.predict_shard(shards[0], runner.settings)
    road.close_run(request, runner.settings)
    erase(runner, key="00001.png")
    erase(runner, key="00006.png")
    (row,) = runner.rows("SELECT state, listed, predicted, open FROM v_run")
    assert row == {"state": "failed", "listed": 6, "predicted": 3, "open": 3}
    road.predict_shard(shards[1], runner.settings)
    assert outcomes(road.publish_run(request, runner.settings)) == {"predicted": 6}


@pytest.mark.parametrize("block", [False, True])
def test_a_key_that_a_shard_has_in_hand_does_not_come_back(
    make: Make, monkeypatch: pytest.MonkeyPatch, block: bool
) -> None:
    runner = make()
    with at_read(monkeypatch, KEY, lambda: erase(runner, key=KEY, block=block)):
        counts = runner.run()
    assert (counts["listed"], outcomes(counts)) == (7, {"predicted": 7})
    assert mentions(runner, KEY, sha(picture(NUMBER))) == ({"block": 1} if block else {})
    assert outcomes(runner.run()) == {"cached": 7, ("known_bad" if block else "predicted"): 1}


def test_bytes_that_are_blocked_while_they_are_in_hand_are_not_stored(
    make: Make, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row knows the digest yet, so erasing finds nothing: only the commit can tell."""
    (images / "twin.png").write_bytes(picture(NUMBER))
    digest, runner = sha(picture(NUMBER)), make()
    with monkeypatch.context() as patched:
        struck = before_commits(patched, lambda: erase(runner, digest=digest, block=True))
        counts = runner.run()
    assert struck[0] > 0
    assert outcomes(counts) == {"predicted": 7, "failed": 2}
    assert mentions(runner, "nowhere", digest) == {"block": 1}
    assert outcomes(runner.run()) == {"cached": 7, "known_bad": 2}


def test_an_image_that_counted_on_an_erased_prediction_is_predicted(
    make: Make, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy was found in the cache, and before it was committed the original was erased."""
    make().run()
    (images / "copy.png").write_bytes(picture(NUMBER))
    with monkeypatch.context() as patched:
        struck = before_commits(patched, lambda: erase(make(), key=KEY))
        counts = make().run()
    assert struck == [1]
    assert (counts["listed"], outcomes(counts)) == (8, {"cached": 7, "predicted": 1})
    assert len(make().predictions()) == 8


def test_twins_of_an_erased_leader_are_predicted(
    make_here: Make, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("00003-a.png", "00003-b.png"):
        (images / name).write_bytes(picture(NUMBER))
    runner = make_here()
    with monkeypatch.context() as patched:
        struck = before_commits(patched, lambda: erase(runner, key=KEY))
        counts = runner.run()
    assert struck[0] > 0
    assert (counts["listed"], outcomes(counts)) == (9, {"predicted": 8, "reused": 1})
    assert sorted(runner.predictions()) == sorted(path.name for path in images.iterdir() if path.name != KEY)


DIE = """
import sys, time
from tasks.cache import erasing
from tasks.cache.database import connect

def wait(*_):
    print("all is deleted", flush=True)
    time.sleep(600)

erasing._block = wait
erasing.erase(connect(sys.argv[1]), erasing.Target(key=sys.argv[2]), block=True, dry_run=False)
"""


def test_an_erasure_that_is_killed_in_the_middle_leaves_everything(make: Make, database_url: str) -> None:
    make().run()
    before = everything(make())
    command = [sys.executable, "-c", DIE, as_owner(database_url), KEY]
    with subprocess.Popen(command, cwd=ROOT, env=outer_environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"all is deleted\n"
        process.kill()
    assert everything(make()) == before
    assert removed(erase(make(), key=KEY, block=True)) == {"image": 1, "prediction": 1, "work_item": 1}


def test_failures_that_may_pass_are_not_tried_again_for_what_is_blocked(
    make_here: Make, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.errors import AccessDenied

    read = LocalStore.read

    def refuse(store: LocalStore, key: str, etag: str | None) -> Blob:
        if key in (KEY, "00005.png"):
            raise AccessDenied("403. Give these credentials s3:GetObject.")
        return read(store, key, etag)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "read", refuse)
        patched.setattr(quarantine, "retry_delay", lambda _attempts: timedelta(seconds=-1))
        assert outcomes(make_here().run()) == {"predicted": 6, "failed": 2}
    assert removed(erase(make_here(), key=KEY, block=True)) == {"failure": 1, "work_item": 1}
    assert outcomes(make_here().run()) == {"cached": 6, "known_bad": 1, "predicted": 1}


def test_the_frontier_of_a_shard_forgets_the_key(make: Make) -> None:
    runner = make()
    runner.run()
    engine = connect(runner.settings.database_url)
    table = "shard" if is_sqlite(engine) else "afterimage.shard"
    with writing(engine) as connection:
        connection.exec_driver_sql(f"UPDATE {table} SET frontier = '{KEY}'")
    engine.dispose()
    erase(runner, key=KEY)
    assert runner.rows("SELECT frontier FROM shard") == [{"frontier": "00002.png"}]


def test_a_run_after_erasures_settles(make: Make) -> None:
    make().run()
    calm = make().predictions()
    erase(make(), key=KEY)
    erase(make(), digest=sha(picture(5)))
    settled = settle(make(), calm)
    assert (settled.lost, settled.doubled, settled.counts["predicted"]) == (0, 0, 2)


def test_erasing_waits_for_a_commit_that_is_under_way(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit has written the image, nobody can see that yet, and it must not be what erasing overlooks."""
    runner, close_rows, erasers = make(), commits._close_rows, list[threading.Thread]()

    def slow(*arguments: Any) -> None:
        if not erasers:
            erasers.append(threading.Thread(target=erase, args=(runner,), kwargs={"key": KEY, "block": True}))
            erasers[0].start()
            erasers[0].join(0.5)
            assert erasers[0].is_alive(), "it waits"
        close_rows(*arguments)

    monkeypatch.setattr(commits, "_close_rows", slow)
    counts = runner.run()
    erasers[0].join(30)
    assert not erasers[0].is_alive()
    assert counts["listed"] == sum(outcomes(counts).values())
    assert mentions(runner, KEY, sha(picture(NUMBER))) == {"block": 1}


def test_a_block_holds_at_the_commit_whatever_came_before(make_here: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The staged row is still there, as if the run had been divided without a look at the blocks."""
    runner = make_here()

    def block() -> None:
        engine = connect(runner.settings.database_url)
        with writing(engine) as connection:
            blocking.block_keys(connection, [1], KEY)
        engine.dispose()

    with monkeypatch.context() as patched:
        before_commits(patched, block)
        assert outcomes(runner.run()) == {"predicted": 7, "failed": 1}
    assert runner.rows("SELECT * FROM image WHERE key = :key", key=KEY) == []
    assert [row["digest"] for row in runner.rows("SELECT digest FROM v_failure")] == [None]


def test_a_run_is_counted_anew_where_an_image_is_erased_while_it_is_published(
    make_here: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, summary, struck = make_here(), reporting.summary, list[str]()

    def late(*arguments: Any) -> dict[str, Any]:
        counts = summary(*arguments)
        if counts["predicted"] and not struck:
            struck.append(KEY)
            erase(runner, key=KEY)
        return counts

    monkeypatch.setattr(reporting, "summary", late)
    counts = runner.run()
    assert struck == [KEY]
    assert (counts["state"], counts["listed"], outcomes(counts)) == ("success", 7, {"predicted": 7})
    assert runner.rows("SELECT listed, predicted FROM v_run") == [{"listed": 7, "predicted": 7}]


def test_sqlite_keeps_no_byte_of_it(make_here: Make, tmp_path: Path) -> None:
    runner = make_here()
    runner.run()
    engine = connect(runner.settings.database_url)
    with reading(engine) as connection:
        connection.exec_driver_sql("SELECT * FROM image").fetchone()
        erasing.erase(engine, Target(key=KEY), block=False, dry_run=False)
    assert erasing.clear_log(engine)
    engine.dispose()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("cache.db*"))
    assert b"00004.png" in kept, "the others are there"
    assert KEY.encode() not in kept
    assert sha(picture(NUMBER)) not in kept


def test_what_was_said_of_an_image_goes_with_it(make: Make) -> None:
    """In every pipeline, and of that image alone."""
    runner = make()
    runner.run()
    engine = connect(runner.settings.database_url)
    digests = [sha(picture(number)) for number in (NUMBER, NUMBER + 1)]
    for pipeline in ("test", "another"):
        for digest in digests:
            reviewing.save_review(engine, pipeline, digest, "red", 1, "uma")
    assert removed(erase(runner, key=KEY))["review"] == 2
    assert {bytes(row["digest"]) for row in runner.rows("SELECT digest FROM review")} == {digests[1]}
    engine.dispose()
