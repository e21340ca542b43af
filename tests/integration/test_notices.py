"""Who tells of a closed run: of all that ask at the same moment, one."""

from __future__ import annotations

from pathlib import Path

from tasks.cache.database import connect
from tasks.cache.notices import claim_notice
from tasks.cache.runs import find_staging
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner


def test_a_notice_is_claimed_once_and_not_before_the_run_has_ended(
    tmp_path: Path, home: Path, database_url: str
) -> None:
    write_pictures(tmp_path / "images", 3)
    model = write_small_bundle(tmp_path / "model")
    runner = Runner(home, database_url, images=str(tmp_path / "images"), model=str(model))
    engine = connect(database_url)
    request, _ = runner.plan()
    assert not claim_notice(engine, find_staging(engine, request.key))
    runner.run(key=request.key)
    staging = find_staging(engine, request.key)
    assert [claim_notice(engine, staging) for _ in range(3)] == [True, False, False]
    engine.dispose()
