"""A process that dies at each point of a shard, in each way: afterwards nobody is quarantined, and one clean run settles.

What Linux does when a machine is out of memory is SIGKILL. `out of memory` here is the other way: a limit (ulimit -v), under
which allocations fail in the process itself.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.oracle import settle
from tests.faults.record import record
from tests.faults.victim import MEMORY, POINTS, SIGKILL, SIGTERM, Ended, Fate, end_victim
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner

IMAGES = 600
# Late enough for all threads to run: a thread that finds no memory to begin with leaves whoever starts it waiting.
FATAL = {"before the read": 100, "after the read": 100, "in the look-up": 4, "in the decoder": 15}
NEXT = 3
ANSWERS = {
    SIGKILL: "the next attempt goes on after the last commit",
    SIGTERM: "commits what is finished, and ends with Interrupted",
    MEMORY: "the task fails; what was committed stays, nobody is quarantined",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pipeline of all victims."""
    folder = tmp_path_factory.mktemp("crash")
    write_pictures(folder / "images", IMAGES)
    model = write_small_bundle(folder / "model")
    return {"images": str(folder / "images"), "model": str(model), "commit_images": 8}


@pytest.fixture(scope="module")
def calm(home: Path, table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows of a run that nobody disturbs; it also converts the network once for all."""
    runner = Runner(home, f"sqlite:///{tmp_path_factory.mktemp('calm') / 'calm.db'}", **table)
    runner.run()
    return runner.predictions()


def died_as_told(ended: Ended, death: str, point: str) -> None:
    """It died of nothing else."""
    assert ended.struck, (ended, point)
    if death == SIGKILL:
        assert ended.code == -signal.SIGKILL, ended.error
    elif death == SIGTERM:
        assert ended.code == 1, ended.error
        assert "Interrupted: SIGTERM" in ended.error
    else:  # libraries say it in their own words, or abort
        assert ended.code in (1, -signal.SIGABRT), ended.error


@pytest.mark.parametrize("death", [SIGKILL, SIGTERM, MEMORY])
def test_a_death_at_every_point_of_a_shard(
    home: Path, tmp_path: Path, database_url: str, table: dict[str, Any], calm: dict[str, Any], death: str
) -> None:
    """The same shard, as Airflow retries it, dies at one point after the other."""
    runner = Runner(home, database_url, {"batch_size": 4, "readers": 4}, **table)
    _, (shard,) = runner.plan()
    done = 0
    for point in POINTS:
        died_as_told(end_victim(runner, tmp_path, Fate(death, point, FATAL.get(point, NEXT)), shard), death, point)
        assert runner.rows("SELECT * FROM failure") == [], point
        before, done = done, len(runner.rows("SELECT key FROM work_item WHERE outcome IS NOT NULL"))
        assert before <= done < IMAGES, point
    assert done > 0
    settled = settle(runner, calm)
    kind = "memory" if death == MEMORY else "crash"
    for point in POINTS:
        answer = ANSWERS[death]
        record(kind, f"{death} {point}", injected=1, answer=answer, lost=settled.lost, doubled=settled.doubled)
