"""The benchmark's own logic: what it would be easy to get wrong, and hard to notice in a table of figures."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sqlite3
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import meter, photographs
from benchmarks.gate import EXACT, INT8, Agreement, Answer, Disagreement, agreement, demand, read_answers
from benchmarks.meter import CommandFailed, Usage
from benchmarks.peers import contract
from benchmarks.report import contestants_table
from benchmarks.rounds import best, in_turn, ratio
from benchmarks.verdict import Finding, Target
from benchmarks.workplace import Workplace
from tests.conftest import ROOT

MIB = 2**20


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A workplace with three small photographs."""
    folder = tmp_path / "data" / "imagenet-sample"
    folder.mkdir(parents=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    return Workplace(tmp_path / "data", tmp_path / "work", 8, 1, (2, 4), 1, 4, None)


def run(script: str, tmp_path: Path, timeout: float = 60.0) -> Usage:
    """A Python script under the meter."""
    return meter.run([sys.executable, "-c", textwrap.dedent(script)], dict(os.environ), tmp_path / "log", timeout)


def is_alive(pid: int) -> bool:
    return meter._stat(pid) is not None


# Rounds


def test_contestants_take_turns() -> None:
    order: list[str] = []
    found = in_turn({name: lambda name=name: order.append(name) for name in "AB"}, 3, lambda _line: None)  # type: ignore[misc]
    assert "".join(order) == "ABABAB"
    assert {name: len(results) for name, results in found.items()} == {"A": 3, "B": 3}


def test_a_ratio_is_taken_within_rounds() -> None:
    # The machine was ten times slower in the last two rounds; each round says 2, and so must the result.
    assert ratio([2.0, 20.0, 20.0], [1.0, 10.0, 10.0]) == 2.0
    # One odd round does not decide. The ratio of the medians would be 3 / 1.
    assert ratio([2.0, 3.0, 8.0], [1.0, 1.0, 4.0]) == 2.0


def test_rounds_that_do_not_pair_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_the_best_peer_is_the_one_with_the_least_median() -> None:
    assert best({"steady": [5.0, 5.0, 5.0], "lucky once": [1.0, 9.0, 9.0]}) == "steady"


# Verdicts


@pytest.mark.parametrize(
    ("target", "found", "verdict"),
    [
        (Target(2.0, 3.0), 1.99, "MISSED"),
        (Target(2.0, 3.0), 2.0, "must"),
        (Target(2.0, 3.0), 3.0, "aim"),
        (Target(3.0, 1.0, "at most"), 3.01, "MISSED"),
        (Target(3.0, 1.0, "at most"), 2.0, "must"),
        (Target(3.0, 1.0, "at most"), 1.0, "aim"),
        (Target(aim=0.25, direction="at most"), 0.3, "below aim"),
        (Target(2.0), 100.0, "must"),
        (Target(), 0.1, "no bar"),
        (Target(2.0, 3.0), float("nan"), "MISSED"),
    ],
)
def test_a_verdict_names_the_highest_bar_that_was_reached(target: Target, found: float, verdict: str) -> None:
    assert Finding("something", found, target).verdict == verdict


# The gate

RIGHT = {"a.jpg": Answer(1, (0.7, 0.2)), "b.jpg": Answer(2, (0.6, 0.3))}


@pytest.mark.parametrize(
    "wrong",
    [
        Answer(3, (0.6, 0.3)),
        Answer(2, (0.602, 0.3)),
        Answer(2, (0.6, 0.302)),
        Answer(2, (float("nan"), 0.3)),
        Answer(2, ()),
    ],
    ids=["another label", "another score", "another second score", "not a number", "no scores"],
)
def test_the_gate_refuses_a_wrong_answer(wrong: Answer) -> None:
    with pytest.raises(Disagreement, match="No time is taken"):
        demand("somebody", agreement({**RIGHT, "b.jpg": wrong}, RIGHT), EXACT)


def test_the_gate_refuses_missing_and_surplus_rows() -> None:
    with pytest.raises(Disagreement, match="1 photographs have no row"):
        agreement({"a.jpg": RIGHT["a.jpg"]}, RIGHT)
    with pytest.raises(Disagreement, match="1 rows no photograph"):
        agreement({**RIGHT, "c.jpg": RIGHT["a.jpg"]}, RIGHT)


def test_the_gate_lets_an_equal_answer_pass() -> None:
    demand("somebody", agreement({**RIGHT, "b.jpg": Answer(2, (0.6005, 0.3))}, RIGHT), EXACT)


def test_int8_is_judged_by_photographs_that_calibration_did_not_see() -> None:
    found = {**RIGHT, "a.jpg": Answer(9, (0.7, 0.2))}
    demand("int8", agreement(found, RIGHT, only={"b.jpg"}), INT8)
    with pytest.raises(Disagreement):
        demand("int8", agreement(found, RIGHT, only={"a.jpg"}), INT8)
    with pytest.raises(Disagreement, match="nothing to compare"):
        agreement(found, RIGHT, only=set())


def test_rows_of_a_peer_come_back_as_answers(tmp_path: Path) -> None:
    job = contract.Job(tmp_path, "net", tmp_path, tmp_path / "peer.db", "documented", 0, tmp_path)
    logits = np.array([[0.0, 3.0, 1.0, 2.0, -1.0, -2.0], [5.0, 0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    contract.store(job, contract.rows(["/x/a.jpg", "/x/b.jpg"], logits))
    found = read_answers(job.database)
    assert {key: answer.label for key, answer in found.items()} == {"a.jpg": 1, "b.jpg": 0}
    shifted = np.exp(logits[0] - 3.0)
    assert found["a.jpg"].scores == pytest.approx(sorted(shifted / shifted.sum(), reverse=True)[:5])


def test_our_rows_come_back_as_answers(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ours.db") as connection:
        connection.execute("CREATE TABLE somewhere (key TEXT, label_index INT, top_k TEXT)")
        connection.execute("""INSERT INTO somewhere VALUES ('a.jpg', 7, '[{"label": "cat", "score": 0.5}]')""")
        connection.execute("CREATE VIEW v_prediction AS SELECT * FROM somewhere")
    assert read_answers(tmp_path / "ours.db") == {"a.jpg": Answer(7, (0.5,))}


# What is the same for all


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (301, 257), (257, 640), (1024, 225)])
def test_pixels_without_torch_are_the_references(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = contract.reference_transforms()(Image.open(tmp_path / "a.png")).numpy()
    found = contract.crop_pixels(str(tmp_path / "a.png")).transpose(2, 0, 1) / 255
    mean, std = (np.array(values)[:, None, None] for values in (contract.MEAN, contract.STD))
    assert np.abs((found - mean) / std - expected).max() < 1e-5


def test_copies_differ_in_their_digest_and_not_in_their_pixels(place: Workplace) -> None:
    files = sorted(photographs.many(place, 8).iterdir())
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in files}) == 8
    assert np.array_equal(Image.open(files[1]), Image.open(files[4]))
    assert np.array_equal(Image.open(files[1]), Image.open(photographs.originals(place)[1]))


def test_calibration_and_held_out_photographs_are_the_two_halves(place: Workplace) -> None:
    seen = {path.name for path in photographs.calibration(place).iterdir()}
    assert seen.isdisjoint(photographs.held_out(place))
    assert seen | photographs.held_out(place) == {path.name for path in photographs.originals(place)}


def test_without_photographs_it_says_what_to_do(place: Workplace) -> None:
    with pytest.raises(SystemExit, match="AFTERIMAGE_TEST_DATA"):
        photographs.many(replace(place, data=place.work), 8)


def test_both_environments_have_the_same_libraries() -> None:
    def pinned(name: str, package: str) -> str:
        found = re.search(rf"^{package}==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
        assert found is not None, (name, package)
        return found[1]

    for package in ("torch", "torchvision", "openvino", "pillow", "safetensors"):
        assert pinned("requirements.txt", package) == pinned("requirements-bench.txt", package), package


# The meter


def test_the_clock_stops_at_the_result(tmp_path: Path) -> None:
    usage = run("import time; print('{\"rows\": 3}', flush=True); time.sleep(1.5)", tmp_path)
    assert usage.result == {"rows": 3}
    assert usage.seconds < 1.4
    assert usage.seconds_to_exit > 1.5


def test_a_command_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"ended with 1[\s\S]*no such photograph"):
        run("raise SystemExit('no such photograph')", tmp_path)
    with pytest.raises(CommandFailed, match="gave no result"):
        run("pass", tmp_path)


DAEMON = """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        # A grandchild whose parent is gone, in a process group of its own, works when its grandparent has ended.
        if "clean" in {mode!r}:
            time.sleep(0.5)  # seen once, it then becomes another program without the mark in its environment
            os.execve(sys.executable, [sys.executable, "-c", {work!r}], {{}})
        exec({work!r})
        os._exit(0)
    os.wait()
    time.sleep(0.8)
    print('{{"daemon": 1}}', flush=True)
"""
WORK = f"""
import time
block = bytearray(b"x") * {64 * MIB}
end = time.process_time() + 0.7
while time.process_time() < end:
    pass
time.sleep(0.5)
"""


@pytest.mark.parametrize("mode", ["marked", "clean"])
def test_a_daemon_of_a_child_belongs_to_the_run(mode: str, tmp_path: Path) -> None:
    usage = run(DAEMON.format(mode=mode, work=WORK), tmp_path)
    assert usage.processes >= 2
    assert usage.cpu_seconds >= 0.7
    assert usage.peak_bytes >= 64 * MIB


def test_what_children_share_counts_once(tmp_path: Path) -> None:
    script = f"""
        import os, time
        block = bytearray(b"x") * {96 * MIB}
        for _ in range(3):
            if os.fork() == 0:
                time.sleep(1.5)
                os._exit(0)
        for _ in range(3):
            os.wait()
        print("{{}}", flush=True)
    """
    usage = run(script, tmp_path)
    assert usage.processes == 4
    assert 96 * MIB <= usage.peak_bytes < 2 * 96 * MIB


def test_nothing_of_a_run_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "LINGER_SECONDS", 0.3)
    pid_file = tmp_path / "pid"
    script = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        open({str(pid_file)!r}, "w").write(str(child.pid))
        time.sleep(0.5)
        print("{{}}", flush=True)
    """
    run(script, tmp_path)
    deadline = time.monotonic() + 5
    while is_alive(int(pid_file.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(pid_file.read_text()))


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="did not end in 1 s"):
        run("import time; time.sleep(60)", tmp_path, timeout=1.0)


def test_processes_of_others_do_not_count(tmp_path: Path) -> None:
    other = os.posix_spawn(sys.executable, [sys.executable, "-c", "while True: pass"], dict(os.environ))
    try:
        usage = run("import time; time.sleep(1); print('{}')", tmp_path)
        assert usage.processes == 1
        assert usage.cpu_seconds < 0.7
        assert is_alive(other)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


# The report


def test_the_table_of_contestants_compares_with_ours() -> None:
    runs = {"ours": [Usage(2.0, 2.0, 3.0, MIB, 1, {})] * 3, "peer": [Usage(5.0, 6.0, 7.0, 2 * MIB, 4, {})] * 3}
    table = contestants_table(100, runs, dict.fromkeys(runs, Agreement(10, 10, 0.0)), "ours")
    assert "| peer | 5.00 (5.00 to 5.00) | 20 | 7.0 | 2 | 4 | 2.50 |" in table


def test_every_measurement_is_in_the_readme_of_the_benchmark() -> None:
    from benchmarks.measurements import MEASUREMENTS

    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for name in MEASUREMENTS:
        assert f"| `{name}` |" in readme
