"""`./afterimage retry`: what is in quarantine is tried again when somebody asks, and nothing else is touched."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tasks import road
from tasks.cache.database import connect
from tasks.cache.quarantine import count_due, mark_due
from tasks.window import RETRY
from tests.integration.test_cli import Cli
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

KINDS = {
    "empty": b"",
    "truncated": picture(3)[:200],
    "not_an_image": b"<html>404</html>",
}


@pytest.fixture
def cli(home: Path, tmp_path: Path) -> Cli:
    """Three good images and one of each kind of bad ones, after a first run."""
    write_pictures(tmp_path / "images", 3)
    for reason, data in KINDS.items():
        (tmp_path / "images" / f"{reason}.png").write_bytes(data)
    write_small_bundle(tmp_path / "model")
    found = Cli(home, tmp_path, f"sqlite:///{tmp_path / 'cache.db'}")
    found.json("predict", "photos", code=1)  # Half of them failed, which is more than max_failure_rate.
    return found


def attempts(cli: Cli) -> dict[str, int]:
    return {row["reason"]: row["attempts"] for row in cli.json("failures")}


def test_what_lies_in_the_bytes_is_not_tried_unless_it_is_named(cli: Cli) -> None:
    assert cli.json("retry") == {"marked": 0, "runs": []}
    assert attempts(cli) == dict.fromkeys(KINDS, 1)


def test_a_reason_is_tried_again_and_its_run_says_what_became_of_it(cli: Cli) -> None:
    told = cli.json("retry", "--reason", "truncated", code=1)
    assert told["marked"] == 1
    (counts,) = told["runs"]
    assert (counts["pipeline"], counts["listed"], counts["failed"], counts["reads"]) == ("photos", 1, 1, 1)
    assert attempts(cli) == {"empty": 1, "truncated": 2, "not_an_image": 1}
    (row,) = [row for row in cli.json("failures") if row["reason"] == "truncated"]
    assert row["permanent"] is True, "until somebody asks again"


def test_a_key_that_has_been_mended_is_predicted_and_leaves_the_quarantine(cli: Cli) -> None:
    (cli.folder / "images" / "empty.png").write_bytes(picture(8))
    done = cli.run("retry", "--key", "empty.png")
    assert "1 images in quarantine are due." in done.stdout
    assert "photos: listed 1 = cached 0 · predicted 1" in done.stdout
    assert attempts(cli) == {"truncated": 1, "not_an_image": 1}
    assert cli.json("predict", "photos")["cached"] == 4


def test_a_mark_alone_waits_for_the_next_run(cli: Cli) -> None:
    assert cli.json("retry", "--reason", "empty", "--mark-only") == {"marked": 1, "runs": []}
    assert attempts(cli)["empty"] == 1
    counts = cli.json("predict", "photos", code=1)
    assert (counts["cached"], counts["known_bad"], counts["failed"]) == (3, 2, 1)
    assert attempts(cli)["empty"] == 2


def test_a_retry_changes_neither_the_current_model_nor_other_pipelines(cli: Cli) -> None:
    table = (cli.folder / "pipelines.toml").read_text()
    write_small_bundle(cli.folder / "other", seed=1, name="other")
    (cli.folder / "pipelines.toml").write_text(
        table + '[elsewhere]\nimages = "elsewhere"\nmodel = "model"\n[other]\nimages = "images"\nmodel = "other"\n'
    )
    told = cli.json("retry", "--reason", "empty", code=1)
    assert [counts["pipeline"] for counts in told["runs"]] == ["photos"], "no failure of the others' models"
    assert cli.json("retry", "elsewhere", "--reason", "empty") == {"marked": 0, "runs": []}
    runs = [(row["pipeline"], row["run_type"], row["state"]) for row in cli.json("status")]
    assert runs == [("photos", "retry", "success"), ("photos", "cli", "failed")], "runs without an image are not kept"
    with sqlite3.connect(cli.folder / "cache.db") as cache:
        assert cache.execute("SELECT * FROM pipeline").fetchall() == [], "no run over everything has succeeded"


def test_an_unknown_pipeline_is_told_of(cli: Cli) -> None:
    assert "has no pipeline 'none'" in cli.run("retry", "none", code=2).stderr


def test_marks_and_retries_are_the_same_on_both_databases(home: Path, tmp_path: Path, database_url: str) -> None:
    write_pictures(tmp_path / "images", 3)
    for reason, data in KINDS.items():
        (tmp_path / "images" / f"{reason}.png").write_bytes(data)
    model = write_small_bundle(tmp_path / "model")
    runner = Runner(home, database_url, images=str(tmp_path / "images"), model=str(model))
    runner.run()
    engine, source = connect(database_url), f"file://{tmp_path / 'images'}"
    assert road.retry(runner.request(run_type=RETRY, retry=True), runner.settings) is None
    assert mark_due(engine, "empty", None, "file:///elsewhere") == 0
    assert (mark_due(engine, None, None), mark_due(engine, "empty", "truncated.png")) == (0, 0)
    assert (mark_due(engine, "empty", None, source), count_due(engine, source)) == (1, 1)
    counts = road.retry(runner.request(run_type=RETRY, retry=True), runner.settings)
    assert counts is not None
    assert outcomes(counts) == {"failed": 1}
    assert count_due(engine, source) == 0
    engine.dispose()
