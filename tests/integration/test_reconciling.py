"""What a listing says about images and failures that are known: gone, back, due for another try."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.cache import quarantine
from tasks.errors import AccessDenied
from tasks.storage.base import Blob
from tasks.storage.local import LocalStore
from tasks.window import Window
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

Make = Callable[..., Runner]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def make(tmp_path: Path, folder: Path, home: Path, database_url: str) -> Make:
    """Makes runners over a folder for each day."""
    model = write_small_bundle(tmp_path / "model")

    def runner(**table: Any) -> Runner:
        return Runner(home, database_url, **{"images": f"{folder}/raw/{{{{ ds }}}}/", "model": str(model), **table})

    return runner


def march(first: int, last: int) -> Window:
    """The days from `first` to `last`, both included."""
    return Window(datetime(2026, 3, first, tzinfo=UTC), datetime(2026, 3, last + 1, tzinfo=UTC))


def deleted(runner: Runner) -> list[str]:
    rows = runner.rows("SELECT key FROM v_prediction WHERE deleted_at IS NOT NULL ORDER BY key")
    return [row["key"] for row in rows]


def refuse(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """The store denies access to keys that hold `part`, and a failure is due again at once."""
    read = LocalStore.read

    def guarded(store: LocalStore, key: str, etag: str | None) -> Blob:
        if part in key:
            raise AccessDenied("403. Give these credentials s3:GetObject.")
        return read(store, key, etag)

    monkeypatch.setattr(LocalStore, "read", guarded)
    monkeypatch.setattr(quarantine, "retry_delay", lambda _attempts: timedelta(seconds=-1))


def test_a_scheduled_run_over_a_date_template_tries_failures_of_days_long_past(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(folder / "raw" / "2026-03-01", 3, start=10)
    write_pictures(folder / "raw" / "2026-03-20", 2, start=20)
    with monkeypatch.context() as patched:
        refuse(patched, "00010")
        assert outcomes(make().run(march(1, 1), run_type="scheduled")) == {"predicted": 2, "failed": 1}
        counts = make().run(march(19, 20), run_type="scheduled")
        assert (counts["listed"], outcomes(counts)) == (3, {"predicted": 2, "failed": 1})
        assert make().rows("SELECT attempts FROM v_failure") == [{"attempts": 2}]
    assert outcomes(make().run(march(20, 20), run_type="backfill")) == {"cached": 2}, "a backfill takes its days only"
    counts = make().run(march(21, 21), run_type="scheduled")
    assert outcomes(counts) == {"predicted": 1}
    assert make().rows("SELECT * FROM v_failure") == []
    assert outcomes(make().run(march(22, 22), run_type="scheduled")) == {}


def test_failures_that_are_not_due_or_not_of_this_pipeline_are_left_alone(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(folder / "raw" / "2026-03-01", 2, start=10)
    (folder / "raw" / "2026-03-01" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with monkeypatch.context() as patched:
        refuse(patched, "00010")
        assert outcomes(make().run(march(1, 1), run_type="scheduled"))["failed"] == 2
    assert make(exclude=("*00010*",)).run(march(9, 9), run_type="scheduled")["listed"] == 0
    assert make(images=f"{folder}/raw/x{{{{ ds }}}}/").run(march(9, 9), run_type="scheduled")["listed"] == 0
    monkeypatch.setattr(quarantine, "retry_delay", lambda _attempts: timedelta(hours=1))
    with monkeypatch.context() as patched:
        refuse(patched, "00010")
        patched.setattr(quarantine, "retry_delay", lambda _attempts: timedelta(hours=1))
        make().run(march(9, 9), run_type="scheduled")
    assert make().run(march(10, 10), run_type="scheduled")["listed"] == 0


def test_a_failure_whose_object_is_gone_vanishes(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(folder / "raw" / "2026-03-01", 3, start=10)
    with monkeypatch.context() as patched:
        refuse(patched, "00010")
        make().run(march(1, 1), run_type="scheduled")
    (folder / "raw" / "2026-03-01" / "00010.png").unlink()
    assert outcomes(make().run(march(9, 9), run_type="scheduled")) == {"vanished": 1}
    assert make().rows("SELECT * FROM v_failure") == []


def test_a_scheduled_run_over_a_date_template_marks_what_is_gone_from_its_days_only(make: Make, folder: Path) -> None:
    for day in (1, 2, 3):
        write_pictures(folder / "raw" / f"2026-03-0{day}", 2, start=10 * day)
    make().run(march(1, 3), run_type="scheduled")
    (folder / "raw" / "2026-03-01" / "00010.png").unlink()
    (folder / "raw" / "2026-03-02" / "00020.png").unlink()
    assert outcomes(make().run(march(2, 3), run_type="scheduled")) == {"cached": 3}
    assert [key[-9:] for key in deleted(make())] == ["00020.png"]


def test_an_image_that_is_back_is_seen_by_every_run(make: Make, folder: Path) -> None:
    write_pictures(folder, 3)
    everything = make(images=str(folder))
    everything.run()
    path = folder / "00001.png"
    path.rename(folder.parent / "away.png")
    everything.run()
    assert deleted(everything) == ["00001.png"]
    (folder.parent / "away.png").rename(path)

    assert everything.run(Window(start=datetime(2000, 1, 1, tzinfo=UTC)), dry_run=True)["cached"] == 3
    assert deleted(everything) == ["00001.png"], "a dry run marks nothing"
    assert outcomes(everything.run(Window(start=datetime(2000, 1, 1, tzinfo=UTC)))) == {"cached": 3}
    assert deleted(everything) == []
