"""The short form of `make soak`: a round or more for each database, then the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.faults.record import record
from tests.faults.soak import report, soak

pytestmark = pytest.mark.alone


def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    results = soak(tmp_path, 15, SEED)
    print(report(results))
    for done in results.values():
        assert done["runs"] >= 2
        struck = done["rounds"]
        answer = "killed, changed under their hands and cut off from the database: what is left, the clean run does"
        record(
            "crash", "soak: random faults", injected=struck, answer=answer, lost=done["lost"], doubled=done["doubled"]
        )
