"""S3 Inventory in place of a listing: the same rows, and never a word about what is gone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks import range_listing, road, sources
from tasks.cache import runs
from tasks.doctor import Finding, examine
from tasks.errors import TooManyFailures
from tasks.settings import load_settings
from tasks.storage.s3 import S3Store, client
from tasks.window import Window
from tests.inventories import Entry, Inventories
from tests.pictures import picture, write_small_bundle
from tests.runner import Runner, outcomes

KEYS = ("raw/plain.png", "raw/a b+c%20d.png", 'raw/"quoted", and,comma.png', "raw/twice//x.png")
NOW = datetime.now(UTC)
YESTERDAY = NOW - timedelta(days=1)

Make = Callable[..., Runner]


@pytest.fixture
def inventories(bucket: str, s3_settings: dict[str, str]) -> Inventories:
    """Inventories of a bucket with some images under odd keys, and things beside them."""
    s3 = client(load_settings(**s3_settings))
    for number, key in enumerate(KEYS):
        s3.put_object(Bucket=bucket, Key=key, Body=picture(number))
    for key in ("raw/notes.txt", "raw/", "other/a.png"):
        s3.put_object(Bucket=bucket, Key=key, Body=picture(50))
    destination = f"lists-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=destination)
    return Inventories(s3, bucket, destination, "CSV")


@pytest.fixture
def make(
    tmp_path: Path, home: Path, database_url: str, s3_settings: dict[str, str], bucket: str, inventories: Inventories
) -> Make:
    """Makes runners over the bucket through its inventory."""
    model = write_small_bundle(tmp_path / "model")

    def runner(url: str = database_url, **table: Any) -> Runner:
        values = {"images": f"s3://{bucket}/raw/", "model": str(model), "inventory": inventories.uri}
        return Runner(home, url, s3_settings, **values | table)

    return runner


def listing(runner: Runner) -> dict[str, Any]:
    """How the newest run found its objects."""
    return json.loads(runner.rows("SELECT listing FROM run ORDER BY run_no DESC LIMIT 1")[0]["listing"])  # type: ignore[no-any-return]


def deleted(runner: Runner) -> list[str]:
    return [row["key"] for row in runner.rows("SELECT key FROM image WHERE deleted_at IS NOT NULL ORDER BY key")]


def never_lists(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    pages = S3Store.pages

    def guarded(store: S3Store, prefix: str, after: str | None = None) -> Any:
        assert store.bucket != bucket, "the bucket itself was listed"
        return pages(store, prefix, after)

    monkeypatch.setattr(S3Store, "pages", guarded)


def test_an_inventory_gives_the_rows_that_a_listing_gives(
    make: Make, inventories: Inventories, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = inventories.write(YESTERDAY)
    listed = make(url=f"sqlite:///{tmp_path / 'listed.db'}", inventory=None)
    by_listing = listed.run()
    never_lists(monkeypatch, bucket)
    counts = make().run()
    assert outcomes(counts) == outcomes(by_listing) == {"predicted": len(KEYS)}
    assert (counts["listed"], counts["ignored"]) == (by_listing["listed"], by_listing["ignored"]) == (len(KEYS), 2)
    assert make().predictions() == listed.predictions()
    created = YESTERDAY.replace(microsecond=YESTERDAY.microsecond // 1000 * 1000).isoformat()
    assert listing(make())["inventory"] == {"manifest": key, "created": created}
    assert "inventory" not in listing(listed)
    again = make().run()
    assert (outcomes(again), again["reads"]) == ({"cached": len(KEYS)}, 0)


def test_a_stale_inventory(make: Make, inventories: Inventories, bucket: str) -> None:
    """New since: not seen. Overwritten since: the present bytes, under their ETag. Deleted since: vanished."""
    s3, entries = inventories.client, inventories.entries()
    inventories.write(YESTERDAY, entries)
    s3.put_object(Bucket=bucket, Key="raw/new.png", Body=picture(100))
    etag = s3.put_object(Bucket=bucket, Key=KEYS[0], Body=picture(101))["ETag"].strip('"')
    s3.delete_object(Bucket=bucket, Key=KEYS[1])
    assert outcomes(make().run()) == {"predicted": len(KEYS) - 1, "vanished": 1}
    assert make().predictions().keys() == set(KEYS) - {KEYS[1]}
    assert make().predictions()[KEYS[0]][0] == etag
    counts = make(inventory=None).run()
    assert outcomes(counts) == {"cached": len(KEYS) - 1, "predicted": 1}


def test_an_inventory_marks_nothing_as_deleted_and_forgets_no_failure(
    make: Make, inventories: Inventories, bucket: str
) -> None:
    s3 = inventories.client
    s3.put_object(Bucket=bucket, Key="raw/bad.png", Body=b"no image")
    assert outcomes(make(inventory=None).run()) == {"predicted": len(KEYS), "failed": 1}
    inventories.write(NOW + timedelta(minutes=1), [entry for entry in inventories.entries() if entry.key == KEYS[0]])
    assert outcomes(make().run()) == {"cached": 1}
    assert deleted(make()) == []
    assert [row["key"] for row in make().rows("SELECT key FROM failure")] == ["raw/bad.png"]


def test_a_failure_that_is_newer_than_the_inventory_is_kept(make: Make, inventories: Inventories, bucket: str) -> None:
    """The image was fine, an upload broke it, and the inventory still tells of the fine one."""
    assert outcomes(make(inventory=None).run()) == {"predicted": len(KEYS)}
    inventories.write(YESTERDAY)
    inventories.client.put_object(Bucket=bucket, Key=KEYS[0], Body=b"no image")
    assert outcomes(make(inventory=None).run()) == {"cached": len(KEYS) - 1, "failed": 1}
    assert outcomes(make().run()) == {"cached": len(KEYS)}
    assert [row["key"] for row in make().rows("SELECT key FROM failure")] == [KEYS[0]]


def test_what_was_found_gone_after_an_inventory_was_made_stays_gone(
    make: Make, inventories: Inventories, bucket: str
) -> None:
    make(inventory=None).run()
    old = inventories.entries()
    inventories.client.delete_object(Bucket=bucket, Key=KEYS[0])
    make(inventory=None).run()
    assert deleted(make()) == [KEYS[0]]
    inventories.write(YESTERDAY, old)
    assert outcomes(make().run()) == {"cached": len(KEYS)}
    assert deleted(make()) == [KEYS[0]]
    inventories.write(datetime.now(UTC) + timedelta(minutes=1), old)
    make().run()
    assert deleted(make()) == [], "an inventory that was made later has seen it again"


def test_the_bucket_itself_is_listed_when_reconcile_days_have_passed(
    make: Make, inventories: Inventories, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run takes the inventory, however large the bucket; a listing follows by itself, and then another one."""
    clock = [datetime.now(UTC)]
    for module in (sources, runs):
        monkeypatch.setattr(module, "now", lambda: clock[0])
    inventories.write(YESTERDAY)

    def lists(**asked: Any) -> bool:
        counts = make(reconcile_days=7).run(**asked)
        assert counts["state"] == "success"
        return "inventory" not in listing(make())

    assert lists() is False
    inventories.client.delete_object(Bucket=bucket, Key=KEYS[0])
    clock[0] += timedelta(days=6.9)
    assert (lists(), deleted(make())) == (False, [])
    clock[0] += timedelta(days=0.2)
    assert lists(window=Window(start=YESTERDAY)) is False, "a run with a window could not reconcile"
    make(inventory=None, include=("*.jpg",)).run()  # Another filter sees other objects.
    assert (lists(), deleted(make())) == (True, [KEYS[0]])
    clock[0] += timedelta(days=6.9)
    assert lists() is False
    clock[0] += timedelta(days=0.2)
    assert lists() is True


def test_a_failed_listing_reconciles_nothing(
    make: Make, inventories: Inventories, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [datetime.now(UTC)]
    for module in (sources, runs):
        monkeypatch.setattr(module, "now", lambda: clock[0])
    inventories.write(YESTERDAY)
    make().run()
    clock[0] += timedelta(days=7)
    for number in range(4):
        inventories.client.put_object(Bucket=bucket, Key=f"raw/bad-{number}.png", Body=b"no image %d" % number)
    with pytest.raises(TooManyFailures):
        make(max_failure_rate=0.1).run()
    assert "inventory" not in listing(make())
    assert outcomes(make().run())["known_bad"] == 4
    assert "inventory" not in listing(make()), "it was still due"


def test_what_list_images_decided_holds_for_deduplicate(make: Make, inventories: Inventories, bucket: str) -> None:
    """A newer inventory, or a table without one, changes nothing on the way."""
    make(inventory=None).run()
    inventories.write(YESTERDAY, inventories.entries()[:2])
    request = make().request()
    road.list_images(request, make().settings)
    inventories.write(NOW + timedelta(minutes=1))
    later = make(inventory=None).request(key=request.key)
    assert road.deduplicate(later, make().settings) == []
    assert deleted(make()) == []


def test_a_key_that_comes_twice_is_staged_once(make: Make, inventories: Inventories) -> None:
    """An inventory is no snapshot."""
    entries = inventories.entries()
    inventories.write(YESTERDAY, [*entries, *entries, *entries], files=3)
    assert outcomes(make().run()) == {"predicted": len(KEYS)}


def test_the_doctor_tells_of_the_newest_inventory(
    make: Make, inventories: Inventories, tmp_path: Path, s3_settings: dict[str, str]
) -> None:
    table = make().pipeline
    file = tmp_path / "pipelines.toml"
    file.write_text(f'[x]\nimages = "{table.images}"\nmodel = "{table.model}"\ninventory = "{table.inventory}"\n')
    settings = load_settings(pipelines=file, database=make().settings.database_url, device="cpu", **s3_settings)

    def found() -> Finding:
        return next(one for one in examine(settings, None) if one.check == "x: inventory")

    assert (found().ok, "no complete inventory" in found().finding) == (False, True)
    inventories.write(NOW - timedelta(days=10))
    assert (found().ok, "more than 9 days ago" in found().finding) == (False, True)
    inventories.write(YESTERDAY)
    assert (found().ok, "in 2 CSV files" in found().finding) == (True, True)


def test_parquet(make: Make, inventories: Inventories) -> None:
    replace(inventories, form="Parquet").write(YESTERDAY)
    assert outcomes(make().run()) == {"predicted": len(KEYS)}


def test_a_key_that_no_database_can_hold_is_ignored(make: Make, inventories: Inventories, bucket: str) -> None:
    odd = Entry("raw/no-text-\udcff.png", "e" * 32, 1, YESTERDAY)
    inventories.write(YESTERDAY, [odd, *inventories.entries()])
    counts = make().run()
    assert (outcomes(counts), counts["ignored"]) == ({"predicted": len(KEYS)}, 3)


def test_a_window_bounds_an_inventory_too(make: Make, inventories: Inventories) -> None:
    entries = [replace(entry, last_modified=datetime(2026, 3, 1, tzinfo=UTC)) for entry in inventories.entries()[:4]]
    inventories.write(YESTERDAY, entries + inventories.entries()[4:])
    window = Window(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC))
    wanted = [entry for entry in entries if entry.key in KEYS]
    assert outcomes(make().run(window)) == {"predicted": len(wanted)}


def test_days_of_a_template_are_listed_and_its_stem_is_not(
    make: Make, inventories: Inventories, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventories.client.put_object(Bucket=bucket, Key="raw/2026-03-01/a.png", Body=picture(7))
    inventories.write(YESTERDAY)
    runner = make(images=f"s3://{bucket}/raw/{{{{ ds }}}}/")
    day = Window(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC))
    assert runner.run(day)["listed"] == 1
    assert "inventory" not in listing(runner)
    never_lists(monkeypatch, bucket)
    assert runner.run()["listed"] == 1
    assert "inventory" in listing(runner)


def test_what_is_known_of_a_large_inventory_is_not_staged(
    make: Make, inventories: Inventories, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys come in no order, so each page is looked up by its keys, and nothing is gone by its word."""
    monkeypatch.setattr(range_listing, "SPLIT_OBJECTS", 1)
    inventories.write(YESTERDAY)
    one = make()
    assert outcomes(one.run()) == {"predicted": len(KEYS)}
    etag = inventories.client.put_object(Bucket=bucket, Key=KEYS[0], Body=picture(101))["ETag"].strip('"')
    entries = inventories.entries()
    inventories.write(NOW, [entry for entry in reversed(entries) if entry.key != KEYS[1]])

    assert outcomes(one.run()) == {"cached": len(KEYS) - 2, "predicted": 1}

    staged = "SELECT key, etag FROM work_item WHERE run_no = (SELECT max(run_no) FROM run)"
    assert one.rows(staged) == [{"key": KEYS[0], "etag": etag}]
    assert deleted(one) == []
