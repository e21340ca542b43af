"""Values that would be SQL, commands or paths if anybody let them, through every option of the command line that takes text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import exit_code
from tests.pictures import write_pictures, write_small_bundle
from tests.runner import Runner

HOSTILE = (
    "'; DROP TABLE image; --",
    '"; DROP TABLE prediction; --',
    "' OR '1'='1",
    "%' OR 1=1 --",
    ":key",
    "{view}",
    "$(id)",
)

LOOKING: tuple[Callable[[str], list[str]], ...] = (
    lambda value: ["show", "--", value],
    lambda value: ["show", "--json", "--", value],
    lambda value: ["status", "--", value],
    lambda value: ["failures", "--reason", value],
    lambda value: ["failures", "--limit", value],
)

# Each costs a second: it loads what it needs before it looks at the value.
WORKING: tuple[Callable[[str], list[str]], ...] = (
    lambda value: ["predict", "--", value],
    lambda value: ["predict", "photos", "--since", value],
    lambda value: ["predict", "photos", "--until", value],
    lambda value: ["predict", "photos", "--model", value],
    lambda value: ["predict", "--images", value, "--model", "model"],
    lambda value: ["doctor", "--", value],
)


@pytest.fixture
def cache(home: Path, tmp_path: Path, database_url: str) -> Runner:
    """Three images, predicted, in a cache that the command line looks at."""
    write_pictures(tmp_path / "images", 3)
    runner = Runner(
        home, database_url, images=str(tmp_path / "images"), model=str(write_small_bundle(tmp_path / "model"))
    )
    runner.run()
    return runner


def test_no_value_is_taken_for_sql(
    cache: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pipelines.toml").write_text('[photos]\nimages = "images"\nmodel = "model"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AFTERIMAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AFTERIMAGE_PIPELINES", str(tmp_path / "pipelines.toml"))
    monkeypatch.setenv("AFTERIMAGE_DATABASE", cache.settings.database_url)
    before, files = cache.predictions(), sorted(tmp_path.iterdir())
    for number, value in enumerate(HOSTILE):
        for command in LOOKING if number else LOOKING + WORKING:
            code = exit_code(monkeypatch, command(value))
            printed = capsys.readouterr()
            assert code in (0, 1, 2), (command(value), printed.err)
            assert "SyntaxError" not in printed.err
            assert "00000.png" not in printed.out, "no value finds the rows of another"
    assert cache.predictions() == before
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "home"] == files


def test_keys_that_would_be_sql_are_keys(home: Path, tmp_path: Path, database_url: str) -> None:
    from tests.pictures import picture

    (tmp_path / "images").mkdir()
    for number, value in enumerate(HOSTILE):
        (tmp_path / "images" / f"{value}.png").write_bytes(picture(number))
    runner = Runner(
        home, database_url, images=str(tmp_path / "images"), model=str(write_small_bundle(tmp_path / "model"))
    )
    assert runner.run()["predicted"] == len(HOSTILE)
    assert set(runner.predictions()) == {f"{value}.png" for value in HOSTILE}
