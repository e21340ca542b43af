"""What benchmarks/orchestration.py makes of a run's times."""

from __future__ import annotations

import pytest

from benchmarks import orchestration


def moment(second: int) -> str:
    return f"2026-03-01T06:00:{second:02d}Z"


def test_all_worker_seconds_that_are_no_work_are_orchestration() -> None:
    run = {"queued_at": moment(0), "end_date": moment(30)}
    shards = [
        {"start_date": moment(12), "end_date": moment(25)},
        {"start_date": moment(5), "end_date": moment(27)},
    ]
    found = orchestration.times(run, shards, work=45.0, workers=2)

    assert (found.before, found.shards, found.after, found.run) == (5, 22, 3, 30)
    assert found.orchestration == pytest.approx(0.25)
    assert "25.0 %" in orchestration.report(found)
