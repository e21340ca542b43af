"""A run that is killed with SIGKILL, ten times and in every stage, then ends with the rows of an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.cache.runs import RunKey
from tests.conftest import SEED
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

IMAGES = 60
KILLS = 10
STAGES = ("read", "look_up", "decode", "forward", "in_commit", "after_commit")

# The victim runs the road in a process of its own; the chosen call, counted over all threads, is its last.
VICTIM = """
import os, signal, sys
from itertools import count
from pathlib import Path
from tasks.cache import commits
from tasks.cache.runs import RunKey
from tasks.cache import ledger
from tasks.inference import chain, forward_stage
from tasks.inference.decoding import policies
from tests.runner import Runner

home, url, images, model, run_id, stage, fatal = sys.argv[1:]
calls = count(1)

def deadly(function, after=False):
    def call(*arguments, **named):
        last = next(calls) == int(fatal)
        if last and not after:
            die()
        result = function(*arguments, **named)
        if last:
            die()
        return result
    return call

def die():
    Path(home, "died").write_text(stage)
    os.kill(os.getpid(), signal.SIGKILL)

if stage == "read":
    chain.read_object = deadly(chain.read_object)
if stage == "look_up":
    ledger.predicted_digests = deadly(ledger.predicted_digests)
if stage == "decode":
    policies.Decoder.decode = deadly(policies.Decoder.decode)
if stage == "forward":
    forward_stage.score = deadly(forward_stage.score)
if stage == "in_commit":
    commits._close_rows = deadly(commits._close_rows, after=True)
if stage == "after_commit":
    commits.commit = deadly(commits.commit, after=True)

runner = Runner(Path(home), url, {"batch_size": 4, "readers": 4}, images=images, model=model, commit_images=8)
runner.run(key=RunKey("kill", run_id))
"""

# How many calls of each stage one undisturbed run makes at least, so that a fatal call can be drawn among them.
CALLS = {"read": IMAGES, "look_up": 1, "decode": IMAGES // 2, "forward": 6, "in_commit": 4, "after_commit": 4}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    write_pictures(folder, IMAGES - 12)
    for number in range(8):
        (folder / f"twin-{number}.png").write_bytes(picture(number))
    for number in range(4):
        (folder / f"damaged-{number}.png").write_bytes(picture(number)[: 100 + number])
    return folder


def kill_one(runner: Runner, home: Path, images: Path, model: Path, run_id: str, stage: str, fatal: int) -> bool:
    """Run until the fatal call; True if the process was seen to die of SIGKILL there."""
    died = home / "died"
    died.unlink(missing_ok=True)
    arguments = [str(home), runner.settings.database_url, str(images), str(model), run_id, stage, str(fatal)]
    victim = subprocess.run([sys.executable, "-c", VICTIM, *arguments], capture_output=True, text=True, check=False)
    if victim.returncode == 0:
        return False
    assert victim.returncode == -signal.SIGKILL, victim.stderr
    assert died.read_text() == stage
    return True


def test_ten_kills_leave_the_rows_of_an_undisturbed_run(
    home: Path, tmp_path: Path, images: Path, database_url: str
) -> None:
    draw = random.Random(SEED)
    model = write_small_bundle(tmp_path / "model")
    table = {"images": str(images), "model": str(model)}
    calm = Runner(home, f"sqlite:///{tmp_path / 'calm.db'}", **table)
    undisturbed = calm.run()

    killed = Runner(home, database_url, **table)
    stages = [*STAGES, *draw.choices(STAGES, k=KILLS - len(STAGES))]
    draw.shuffle(stages)
    seen = []
    for number, stage in enumerate(stages):
        # Half of the deaths come early, so that they leave work for the next one; the others anywhere in the run.
        latest = CALLS[stage] if number % 2 else max(1, CALLS[stage] // KILLS)
        fatal = draw.randint(1, latest)
        if kill_one(killed, tmp_path, images, model, "the-run", stage, fatal):
            seen.append(stage)
        else:
            (images / f"more-{number}.png").write_bytes(picture(1000 + number))
            assert kill_one(killed, tmp_path, images, model, "the-run", stage, 1)
            seen.append(stage)
    assert sorted(seen) == sorted(stages)
    assert set(seen) == set(STAGES)

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
    victim = (
        "import json, os, signal, sys\n"
        "from tasks import road\nfrom tasks.cache import commits\nfrom tasks.plan import ShardDescriptor\n"
        "from tasks.settings import load_settings\n"
        "commit, done = commits.commit, []\n"
        "def deadly(*arguments):\n"
        "    done.append(commit(*arguments))\n"
        "    if len(done) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return done[-1]\n"
        "commits.commit = deadly\n"
        "descriptor = ShardDescriptor.from_dict(json.loads(sys.argv[1]))\n"
        "road.predict_shard(descriptor, load_settings(home=sys.argv[2], database=sys.argv[3], batch_size=4))\n"
    )
    arguments = [json.dumps(shard.to_dict()), str(home), runner.settings.database_url]
    killed = subprocess.run([sys.executable, "-c", victim, *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
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
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom tasks.inference import forward_stage\n"
        "from tests.runner import Runner\n"
        "score, calls = forward_stage.score, []\n"
        "def slow(*arguments):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 5: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return score(*arguments)\n"
        "forward_stage.score = slow\n"
        "home, url, images, model = sys.argv[1:]\n"
        "Runner(Path(home), url, {'batch_size': 4, 'readers': 2}, images=images, model=model).run()\n"
    )
    arguments = [str(home), database_url, str(images), str(model)]
    stopped = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert stopped.returncode == 1, stopped.stderr
    assert "Interrupted: SIGTERM" in stopped.stderr
    runner = Runner(home, database_url, images=str(images), model=str(model))
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
