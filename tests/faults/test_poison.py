"""Images that kill, stall or starve whoever decodes them, and images on which a network raises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.cache import attempts, commits
from tasks.cache.database import connect
from tasks.errors import DecoderStalled, Interrupted
from tasks.inference import decode_stage, reading
from tasks.inference.decoding import isolated
from tasks.models.spec import Preprocessing
from tasks.worker import Worker
from tests.conftest import outer_environment
from tests.faults.oracle import settle
from tests.faults.record import record
from tests.faults.scene import GOOD, reasons, survive
from tests.pictures import picture
from tests.runner import Runner, outcomes

POISONED = Path(__file__).with_name("poisoned")

WORKER = """
import sys
from pathlib import Path
from tasks.inference.decoding import isolated
from tests.runner import Runner

home, url, images, model = sys.argv[1:]
isolated.Limits.__init__.__defaults__ = (256 * 2**20, 2, 20.0)
Runner(Path(home), url, {"batch_size": 4, "readers": 4, "decoders": 2}, images=images, model=model, commit_images=8).run()
"""


def poison(runner: Runner, key: str, what: str) -> None:
    """An image that can be decoded, and that says after its end what it does."""
    (Path(runner.pipeline.images) / key).write_bytes(picture(77) + f"poison: {what}".encode())


def work(runner: Runner, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, as the command line makes it: each one is a new run."""
    environment = outer_environment(POISON_RECORD=str(tmp_path / "blows"))
    environment["PYTHONPATH"] += os.pathsep + str(POISONED)
    pipeline = runner.pipeline
    arguments = [str(runner.settings.home), runner.settings.database_url, pipeline.images, str(pipeline.model)]
    return subprocess.run(
        [sys.executable, "-c", WORKER, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def blows(tmp_path: Path) -> Counter[str]:
    """How often each poison struck."""
    return Counter(line.rpartition(" ")[0] for line in (tmp_path / "blows").read_text().splitlines())


def test_an_image_that_kills_the_decoder_costs_one_attempt(
    runner: Runner, calm: dict[str, Any], tmp_path: Path
) -> None:
    poison(runner, "00020-poison.png", "segmentation fault")
    died = work(runner, tmp_path)
    assert died.returncode == -signal.SIGSEGV, died.stderr
    assert blows(tmp_path) == {"poison: segmentation fault": 1}

    lived = work(runner, tmp_path)
    assert lived.returncode == 0, lived.stderr
    assert blows(tmp_path) == {"poison: segmentation fault": 2}, "in a child this time"
    assert reasons(runner) == {"00020-poison.png": ("decoder_crash", True)}
    assert "SIGSEGV" in runner.rows("SELECT message FROM v_failure")[0]["message"]
    assert runner.predictions() == calm
    counts = survive(
        runner,
        calm,
        "image",
        "an image that ends the process which decodes it (SIGSEGV)",
        injected=blows(tmp_path).total(),
        answer="the next attempt decodes what was in flight in child processes; quarantined as decoder_crash",
    )
    assert outcomes(counts) == {"cached": GOOD, "known_bad": 1}


def test_what_hangs_or_eats_memory_in_a_child_is_quarantined(
    runner: Runner, calm: dict[str, Any], tmp_path: Path
) -> None:
    """Three poisons at once: whatever the first attempt dies of, the second one gets past all of them."""
    for number, what in enumerate(("segmentation fault", "hang", "memory")):
        poison(runner, f"0002{number}-poison.png", what)
    assert work(runner, tmp_path).returncode == -signal.SIGSEGV
    before = blows(tmp_path)
    lived = work(runner, tmp_path)
    assert lived.returncode == 0, lived.stderr
    struck = blows(tmp_path) - before
    assert struck == dict.fromkeys(("poison: segmentation fault", "poison: hang", "poison: memory"), 1)
    assert reasons(runner) == {
        "00020-poison.png": ("decoder_crash", True),
        "00021-poison.png": ("decode_timeout", False),
        "00022-poison.png": ("decoder_crash", True),
    }
    assert runner.predictions() == calm
    settled = settle(runner, calm)
    for name, answer in {
        "decoding that does not end": "its child is ended; quarantined as decode_timeout, tried again later",
        "an image that eats memory": "its child may have 2 GiB more; quarantined as decoder_crash",
    }.items():
        record("image", name, injected=1, answer=answer, lost=settled.lost, doubled=settled.doubled)


def test_suspects_stay_suspects_until_an_attempt_is_through_with_them(runner: Runner, calm: dict[str, Any]) -> None:
    _, (shard,) = runner.plan()
    scope = commits.Scope(shard.staging, shard.shard, shard.model_no, "any", force=False)
    engine = connect(runner.settings.database_url)

    def is_working() -> bool:
        return bool(runner.rows("SELECT working FROM shard")[0]["working"])

    def interrupted() -> None:
        with Worker(runner.settings, engine) as worker:
            worker.stop()
            with pytest.raises(Interrupted):
                worker.predict(shard)

    interrupted()
    assert not is_working(), "it said that it is over"
    attempts.advance(engine, scope, "00009.png")  # and is killed
    interrupted()
    assert is_working()
    assert attempts.suspects(engine, scope) >= {f"0000{number}.png" for number in range(10)}
    with Worker(runner.settings, engine) as worker:
        worker.predict(shard)
    assert not is_working()
    assert runner.predictions() == calm
    engine.dispose()


def test_a_costly_image_is_decoded_apart_at_once_and_gives_the_same_row(
    runner: Runner, calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = []
    decode = isolated.IsolatedDecoder.decode
    monkeypatch.setattr(
        isolated.IsolatedDecoder, "decode", lambda self, data, out: apart.append(data) or decode(self, data, out)
    )
    costly = (Path(runner.pipeline.images) / "00007.png").read_bytes()
    monkeypatch.setattr(decode_stage, "is_costly", lambda data: data == costly)
    assert outcomes(runner.run()) == {"predicted": GOOD}
    assert apart == [costly]
    assert runner.predictions() == calm


def test_children_are_few_at_a_time_and_end_with_their_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "MOST_CHILDREN", 2)
    half = (0.5, 0.5, 0.5)
    decoder = isolated.IsolatedDecoder(Preprocessing(16, 16, half, half), tmp_path)
    with ThreadPoolExecutor(6) as pool:
        errors = pool.map(lambda seed: decoder.decode(picture(seed), np.empty((16, 16, 3), np.uint8)), range(12))
        assert list(errors) == [None] * 12
    children = [child._process for child in decoder._all]
    assert 1 <= len(children) <= 2
    decoder.close()
    assert all(child.poll() is not None for child in children)


def test_a_decoder_that_stalls_here_fails_the_task_and_is_apart_the_next_time(
    runner: Runner, calm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    gate, stalled = threading.Event(), (Path(runner.pipeline.images) / "00007.png").read_bytes()
    decode = decode_stage.DecodeStage._decode

    def stalling(self: decode_stage.DecodeStage, todo: list[Any], slots: list[Any]) -> Any:
        keys = [one.listed.key for one in todo]
        if any(one.data == stalled for one in todo) and not self.suspects:
            with self._watched(keys):
                gate.wait(60)
        return decode(self, todo, slots)

    monkeypatch.setattr(decode_stage.DecodeStage, "_decode", stalling)
    monkeypatch.setattr(decode_stage, "STALLED_SECONDS", 0.2)
    with pytest.raises(DecoderStalled, match="00007"):
        runner.run()
    gate.set()
    apart = []
    alone = isolated.IsolatedDecoder.decode
    monkeypatch.setattr(
        isolated.IsolatedDecoder, "decode", lambda self, data, out: apart.append(data) or alone(self, data, out)
    )
    settled = settle(runner, calm)
    assert stalled in apart
    record(
        "image",
        "decoding that stalls the worker",
        injected=1,
        answer="the task fails after 5 minutes; the next attempt decodes what was in flight in child processes",
        lost=settled.lost,
        doubled=settled.doubled,
    )


def test_what_is_listed_as_too_large_is_not_read(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(runner.pipeline.images) / "large.png").write_bytes(picture(1) + bytes(2 * 2**20))
    runner.settings = runner.settings.model_copy(update={"max_image_mib": 1})
    counts = runner.run()
    assert outcomes(counts) == {"predicted": GOOD, "failed": 1}
    assert counts["reads"] == GOOD
    assert reasons(runner) == {"large.png": ("too_many_bytes", True)}
    assert "AFTERIMAGE_MAX_IMAGE_MIB" in runner.rows("SELECT message FROM v_failure")[0]["message"]
    record("image", "an object of too many bytes", injected=1, answer="not read; quarantined", lost=0, doubled=0)


def test_what_has_grown_too_large_since_the_listing_is_not_decoded(tmp_path: Path) -> None:
    from tasks.storage.local import LocalStore

    (tmp_path / "a.png").write_bytes(picture(1))
    store = LocalStore(str(tmp_path))
    listed = next(store.pages(""))[0]
    (tmp_path / "a.png").write_bytes(bytes(5000))
    found = reading.read_object(store, listed, most_bytes=4000)
    assert found.finished is not None
    assert found.finished.failed is not None
    assert found.finished.failed.reason == "too_many_bytes"
    assert found.data is None


def test_a_day_with_thirty_per_cent_of_truncated_files_loses_nothing_and_does_not_hold_up_the_next(
    runner: Runner, calm: dict[str, Any]
) -> None:
    from tasks.errors import TooManyFailures

    folder = Path(runner.pipeline.images)
    damaged = [f"damaged-{number:02}.png" for number in range(18)]
    for number, key in enumerate(damaged):
        (folder / key).write_bytes(picture(500 + number)[:300])
    runner.pipeline = runner.pipeline.model_copy(update={"max_failure_rate": 0.05})
    with pytest.raises(TooManyFailures, match="18 of 58 images failed"):
        runner.run()
    run = runner.rows("SELECT state, message, predicted, failed FROM v_run")[0]
    assert (run["state"], run["predicted"], run["failed"]) == ("failed", GOOD, len(damaged))
    assert runner.predictions() == calm, "everything is committed"
    (folder / "tomorrow.png").write_bytes(picture(900))
    tomorrow = runner.run()
    assert outcomes(tomorrow) == {"cached": GOOD, "predicted": 1, "known_bad": len(damaged)}
    (folder / "tomorrow.png").unlink()
    survive(
        runner,
        calm,
        "image",
        "30 % of a day's files are truncated",
        injected=len(damaged),
        answer="all else is committed; the run ends failed with the reason; the next day is not held up",
    )
