"""A run that is killed with SIGKILL, ten times and in every stage, then ends with the rows of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.cache.runs import RunKey
from tests.conftest import SEED
from tests.faults.victim import SIGKILL, SIGTERM, Fate, end_victim
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

IMAGES = 60
KILLS = 10
# How many calls of each point one undisturbed run makes at least, so that a fatal call can be drawn among them.
CALLS = {
    "before the read": IMAGES,
    "in the look-up": 1,
    "in the decoder": IMAGES // 8,
    "in the forward pass": 6,
    "after the upsert, inside the transaction": 4,
    "after the commit": 4,
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write_pictures(folder, IMAGES - 12)
    for number in range(8):
        (folder / f"twin-{number}.png").write_bytes(picture(number))
    for number in range(4):
        (folder / f"damaged-{number}.png").write_bytes(picture(number)[: 100 + number])
    return folder


def kill_one(runner: Runner, folder: Path, point: str, fatal: int) -> bool:
    """Run until the fatal call; True if the process was seen to die of SIGKILL there."""
    ended = end_victim(runner, folder, Fate(SIGKILL, point, fatal), RunKey("kill", "the-run"))
    if ended.code == 0:
        return False
    assert ended.code == -signal.SIGKILL, ended.error
    return ended.struck


def test_ten_kills_leave_the_rows_of_an_undisturbed_run(
    home: Path, tmp_path: Path, images: Path, database_url: str
) -> None:
    draw = random.Random(SEED)
    model = write_small_bundle(tmp_path / "model")
    table = {"images": str(images), "model": str(model)}
    calm = Runner(home, f"sqlite:///{tmp_path / 'calm.db'}", **table)
    undisturbed = calm.run()

    killed = Runner(home, database_url, {"batch_size": 4, "readers": 4}, **table, commit_images=8)
    stages = [*CALLS, *draw.choices(list(CALLS), k=KILLS - len(CALLS))]
    draw.shuffle(stages)
    seen = []
    for number, stage in enumerate(stages):
        # Half of the deaths come early, so that they leave work for the next one; the others anywhere in the run.
        latest = CALLS[stage] if number % 2 else max(1, CALLS[stage] // KILLS)
        fatal = draw.randint(1, latest)
        if kill_one(killed, tmp_path, stage, fatal):
            seen.append(stage)
        else:
            (images / f"more-{number}.png").write_bytes(picture(1000 + number))
            assert kill_one(killed, tmp_path, stage, 1)
            seen.append(stage)
    assert sorted(seen) == sorted(stages)
    assert set(seen) == set(CALLS)

    killed.run(key=RunKey("kill", "the-run"))
    calm.run()
    assert killed.predictions() == calm.predictions()
    failures = "SELECT key, etag, reason FROM v_failure ORDER BY key"
    assert killed.rows(failures) == calm.rows(failures)
    assert undisturbed["failed"] == 4
    assert killed.rows("SELECT * FROM work_item WHERE outcome IS NULL") == []
    third = killed.run()
    assert (third["reads"], third["forward_passes"]) == (0, 0)
    assert outcomes(third)["known_bad"] == 4


def test_a_killed_shard_goes_on_after_its_last_commit(
    home: Path, tmp_path: Path, images: Path, database_url: str
) -> None:
    """As Airflow retries it: the same shard again, without a new listing."""
    from tasks import road

    model = write_small_bundle(tmp_path / "model")
    runner = Runner(home, database_url, images=str(images), model=str(model), commit_images=8)
    request = runner.request()
    road.list_images(request, runner.settings)
    shard = road.deduplicate(request, runner.settings)[0]
    victim = Runner(home, database_url, {"batch_size": 4}, images=str(images), model=str(model), commit_images=8)
    killed = end_victim(victim, tmp_path, Fate(SIGKILL, "after the commit", 3), shard)
    assert killed.code == -signal.SIGKILL, killed.error
    committed = len(runner.rows("SELECT key FROM work_item WHERE outcome IS NOT NULL"))
    assert committed >= 3
    assert committed < IMAGES
    before = runner.rows("SELECT digest, predicted_at FROM prediction")

    assert sum(road.predict_shard(shard, runner.settings).values()) == IMAGES
    counts = road.publish_run(request, runner.settings)
    assert counts["open"] == 0
    # What the victim had read ahead of its last commit was read twice, and is counted as it happened.
    assert IMAGES <= counts["reads"] <= 2 * IMAGES
    kept = runner.rows("SELECT digest, predicted_at FROM prediction")
    assert all(row in kept for row in before)


def test_sigterm_commits_what_is_finished_and_raises(home: Path, tmp_path: Path, database_url: str) -> None:
    images = tmp_path / "many"
    write_pictures(images, 300)
    model = write_small_bundle(tmp_path / "model")
    runner = Runner(home, database_url, {"batch_size": 4, "readers": 2}, images=str(images), model=str(model))
    stopped = end_victim(runner, tmp_path, Fate(SIGTERM, "in the forward pass", 5), RunKey("kill", "stopped"))
    assert stopped.code == 1, stopped.error
    assert "Interrupted: SIGTERM" in stopped.error
    run = runner.rows("SELECT state, open, predicted FROM v_run")[0]
    assert run["state"] == "failed"
    assert 0 < run["predicted"] < 300
    assert run["open"] == 300 - run["predicted"]
    again = runner.run()
    assert outcomes(again) == {"cached": run["predicted"], "predicted": 300 - run["predicted"]}


def test_sigterm_is_answered_within_seconds_however_slow_the_store(home: Path, tmp_path: Path) -> None:
    """Airflow kills a task five seconds after it was told to end."""
    images = tmp_path / "many"
    write_pictures(images, 100)
    model = write_small_bundle(tmp_path / "model")
    script = (
        "import os, signal, sys, threading, time\nfrom pathlib import Path\nfrom tasks.storage.local import LocalStore\n"
        "from tests.runner import Runner\n"
        "read = LocalStore.read\n"
        "told = []\n"
        "def end():\n"
        "    told.append(time.monotonic())\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "def slow(*arguments):\n"
        "    if arguments[1] > '00040':\n"
        "        if arguments[1] == '00041.png':\n"
        "            threading.Timer(2, end).start()\n"  # what was read before has gone through by then
        "        time.sleep(30)\n"
        "    return read(*arguments)\n"
        "LocalStore.read = slow\n"
        "home, url, images, model = sys.argv[1:]\n"
        "try:\n"
        "    Runner(Path(home), url, {'batch_size': 4, 'readers': 4}, images=images, model=model).run()\n"
        "finally:\n"
        "    print('ended after', time.monotonic() - told[0], flush=True)\n"
        "    os._exit(7)\n"
    )
    url = f"sqlite:///{tmp_path / 'cache.db'}"
    arguments = [str(home), url, str(images), str(model)]
    stopped = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert stopped.returncode == 7, stopped.stderr
    assert float(stopped.stdout.split()[-1]) < 5, stopped.stdout
    runner = Runner(home, url, images=str(images), model=str(model))
    assert runner.rows("SELECT predicted FROM v_run")[0]["predicted"] >= 30
