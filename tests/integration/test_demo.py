"""`make demo` from nothing, as a newcomer runs it, and what its rows say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo.bucket import SPECIAL_KEY
from tests.conftest import outer_environment
from tests.runner import Runner

pytestmark = pytest.mark.alone

PIPELINE = '[digits]\nimages = "bucket"\nmodel = "model"\nschedule = "@daily"\n'


def test_the_demo_runs_twice_and_the_second_run_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "pipelines.toml").write_text(PIPELINE)
    environment = outer_environment(
        AIRFLOW_HOME=str(tmp_path / "airflow"),
        AFTERIMAGE_HOME=str(tmp_path / "home"),
        AFTERIMAGE_PIPELINES=str(tmp_path / "pipelines.toml"),
    )
    demo = subprocess.run(
        [sys.executable, "-m", "demo"], env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    out = demo.stdout

    assert "1,804 objects in the demo bucket" in out
    assert "listed 1,804 = cached 0 · reused 3 · predicted 1,798 · failed 3" in out
    assert "reads 1,804 · forward passes 1,798" in out
    assert float(re.search(r"not trained on: ([\d.]+)%", out)[1]) >= 95.0  # type: ignore[index]
    assert "listed 1,804 = cached 1,801 · known_bad 3 · predicted 0" in out
    assert re.search(r"0 reads, 0 forward passes, \d+ times faster", out)
    for step in ("make ui", "./afterimage show", "./afterimage failures", "your own bucket"):
        assert step in out

    runner = Runner(
        tmp_path / "home", f"sqlite:///{tmp_path / 'home' / 'afterimage.db'}", images="unused", model="unused"
    )
    assert sorted(row["reason"] for row in runner.rows("SELECT reason FROM v_failure")) == [
        "not_an_image",
        "truncated",
        "truncated",
    ]
    assert len(runner.rows("SELECT * FROM v_current_prediction WHERE key = :key", key=SPECIAL_KEY)) == 1
