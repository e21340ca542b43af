"""What must hold after any fault: one clean run, and the rows are those of a run that nobody disturbed.

The first lesson of fault tests: a fault that never struck makes them pass. So whoever records one counts how often it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.location import parse_location
from tasks.storage import open_store
from tests.runner import Runner

SETTLED = {
    # What a run over settled rows must leave as it is, to the last column.
    "prediction": "SELECT * FROM prediction ORDER BY model_no, digest",
    "image": "SELECT * FROM image ORDER BY source_no, key",
    "failure": "SELECT * FROM failure ORDER BY source_no, key, etag, model_no",
}


@dataclass(frozen=True)
class Settled:
    """Rows that are missing or differ, and rows that are there twice, after the clean run; `counts` are those of that run."""

    lost: int
    doubled: int
    counts: dict[str, Any]


def settle(disturbed: Runner, calm: dict[str, Any]) -> Settled:
    """One clean run after the faults, and all that must be true of its rows; `calm` is `predictions()` of an undisturbed run.

    Failures that may pass are tried again first, as after their time.
    """
    make_due(disturbed)
    counts = disturbed.run()
    found = disturbed.predictions()
    lost = sum(found.get(key) != row for key, row in calm.items())
    doubled = _doubled(disturbed)
    assert (
        disturbed.rows("SELECT * FROM work_item WHERE outcome IS NULL AND run_no = (SELECT max(run_no) FROM run)") == []
    )
    _account(disturbed, found)
    before = {name: disturbed.rows(query) for name, query in SETTLED.items()}
    second = disturbed.run()
    assert (second["reads"], second["forward_passes"]) == (0, 0), "a second run reads nothing"
    assert {name: disturbed.rows(query) for name, query in SETTLED.items()} == before, "a second run changes nothing"
    return Settled(lost, doubled, counts)


def make_due(runner: Runner) -> None:
    """Let the time pass after which failures are tried again."""
    from sqlalchemy import text

    from tasks.cache.database import connect, is_sqlite, writing

    engine = connect(runner.settings.database_url)
    table = "failure" if is_sqlite(engine) else "afterimage.failure"
    with writing(engine) as connection:
        past = "'2000-01-01 00:00:00.000000'" if is_sqlite(engine) else "'2000-01-01 00:00:00+00'"
        connection.execute(text(f"UPDATE {table} SET next_retry_at = {past} WHERE next_retry_at IS NOT NULL"))
    engine.dispose()


def _doubled(runner: Runner) -> int:
    query = "SELECT source, key, model_id, count(*) AS rows FROM v_prediction GROUP BY source, key, model_id"
    return sum(row["rows"] - 1 for row in runner.rows(query))


def _account(runner: Runner, done: dict[str, Any]) -> None:
    """listed = done + quarantined + vanished, by the store itself: what it lists now is done or quarantined, in that state."""
    location = parse_location(runner.pipeline.images)
    listed = {
        image.key: image.etag
        for page in open_store(location, runner.settings).pages(location.prefix)
        for image in page
        if not image.key.endswith("/")
    }
    quarantined = {row["key"]: row["etag"] for row in runner.rows("SELECT key, etag FROM v_failure")}
    current = {key for key in done if done[key][0] == listed.get(key)}
    bad = {key for key in quarantined if quarantined[key] == listed.get(key)}
    assert listed.keys() == current | bad, "every object is done or in quarantine, in its present state"
    assert not current & bad, "no object is both"
    # Who was overwritten with damaged bytes keeps the prediction of the state before, and is in quarantine in this one.
    assert done.keys() - current <= bad, "no prediction is left of what is gone"
