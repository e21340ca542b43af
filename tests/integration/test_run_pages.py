"""The least certain of a run, found by its rows or on a walk over the model's; on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.cache.database import connect
from tasks.cache.pages import doubtful, walking
from tasks.cache.pages.progress import run_progress
from tasks.cache.runs import RunKey
from tasks.cache.schema import to_single
from tests.pictures import tinted_picture, write_small_bundle
from tests.runner import Runner


def test_both_ways_find_the_same(
    home: Path, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    model = write_small_bundle(tmp_path / "model")
    runner = Runner(home, database_url, images=str(tmp_path / "images"), model=str(model))
    for run, numbers in (("first", range(40)), ("second", range(40, 70))):
        for number in numbers:
            (tmp_path / "images" / f"{number:03}.png").write_bytes(tinted_picture(number))
        runner.run(key=RunKey("cli", run))
    engine = connect(database_url)
    found = run_progress(engine, "cli", "second")
    assert found is not None
    joined = doubtful.least_certain(engine, found, 5)
    assert joined.looked is None
    rows = runner.rows("SELECT key, margin FROM v_prediction WHERE key >= '040.png' ORDER BY margin, key LIMIT 5")
    assert [(one.key, one.margin) for one in joined.predictions] == [
        (row["key"], to_single(row["margin"])) for row in rows
    ]
    monkeypatch.setattr(doubtful, "JOINED", -1)
    walked = doubtful.least_certain(engine, found, 5)
    assert list(walked.predictions) == list(joined.predictions)
    assert walked.looked is None
    assert len(doubtful.least_certain(engine, found, 31).predictions) == 30, "the way is over: these are all"
    monkeypatch.setattr(walking, "BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(walking, "FIRST_GROUP", 8)
    hurried = doubtful.least_certain(engine, found, 30)
    assert hurried.looked == 8
    assert (
        list(hurried.predictions)
        == list(doubtful.least_certain(engine, found, 30).predictions)[: len(hurried.predictions)]
    )
    assert run_progress(engine, "cli", "third") is None
    engine.dispose()
