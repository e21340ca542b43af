"""`./afterimage cache`: what it prints, when it refuses, and that nothing goes without --yes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import exit_code
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner

Command = Callable[..., tuple[object, str, str]]


@pytest.fixture
def runner(home: Path, tmp_path: Path) -> Runner:
    """Six images, predicted by two models, and one of them overwritten; over SQLite."""
    images = tmp_path / "images"
    write_pictures(images, 6)
    database = f"sqlite:///{tmp_path / 'cache.db'}"
    runners = [
        Runner(home, database, images=str(images), model=str(write_small_bundle(tmp_path / name, seed=seed, name=name)))
        for seed, name in enumerate(("before", "now"))
    ]
    for one in runners:
        one.run()
    (images / "00003.png").write_bytes(picture(99))
    runners[1].run()
    return runners[1]


@pytest.fixture
def command(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Runs `./afterimage cache`; its exit code, standard output and standard error."""
    monkeypatch.setenv("AFTERIMAGE_DATABASE", runner.settings.database_url)
    monkeypatch.setenv("AFTERIMAGE_PIPELINES", str(tmp_path / "pipelines.toml"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[object, str, str]:
        code = exit_code(monkeypatch, ["cache", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_stats_print_a_table_and_json(command: Command) -> None:
    code, out, _ = command("stats")
    words = " ".join(out.split())
    assert code == 0
    assert "prediction 13" in words
    assert "now 1" in words
    assert "Images: 6 there, 0 deleted. Orphans, predictions whose digest no image has: 2." in words
    facts = json.loads(command("stats", "--json")[1])
    assert facts["orphans"] == {"rows": 2, "exact": True}
    assert [(one["name"], one["rows"], one["pipelines"]) for one in facts["models"]] == [
        ("before", 6, []),
        ("now", 7, ["test"]),
    ]
    assert {one["table"]: one["rows"] for one in facts["tables"]}["prediction"] == 13


def test_nothing_goes_without_yes(command: Command, runner: Runner) -> None:
    code, out, _ = command("prune", "--orphans", "--older-than-days", "0")
    assert code == 0
    words = " ".join(out.split())
    assert "old predictions 6 0 orphaned predictions 1 0" in words
    assert "prediction 13 7 6" in words
    assert "dry run" in words
    assert len(runner.rows("SELECT * FROM prediction")) == 13
    code, out, _ = command("prune", "--orphans", "--older-than-days", "0", "--yes")
    assert code == 0
    assert "prediction 13 - 7 +0 = 6" in " ".join(out.split())
    assert len(runner.rows("SELECT * FROM prediction")) == 6
    facts = json.loads(command("prune", "--orphans", "--json", "--yes")[1])
    assert facts["steps"] == [{"what": "orphaned predictions", "table": "prediction", "found": 0, "removed": 0}]
    assert facts["tables"][1] == {"table": "prediction", "before": 6, "removed": 0, "others": 0, "after": 6}


def test_thumbnails_of_orphans_go_where_they_are_asked_for(
    command: Command, tmp_path: Path, runner: Runner, home: Path
) -> None:
    table = {
        "images": str(tmp_path / "images"),
        "model": str(tmp_path / "now"),
        "thumbnails": str(tmp_path / "thumbnails"),
    }
    lines = "\n".join(f'{key} = "{value}"' for key, value in table.items())
    (tmp_path / "pipelines.toml").write_text(f"[photos]\n{lines}\n")
    Runner(home, runner.settings.database_url, **table).run(force=True)
    before = {path.name for path in (tmp_path / "thumbnails").rglob("*.jpg")}
    (tmp_path / "images" / "00004.png").write_bytes(picture(98))
    Runner(home, runner.settings.database_url, **table).run()
    assert "belongs to --orphans" in command("prune", "--older-than-days", "9", "--thumbnails")[2]
    assert json.loads(command("prune", "--orphans", "--thumbnails", "--json")[1])["thumbnails"] == 0
    facts = json.loads(command("prune", "--orphans", "--thumbnails", "--yes", "--json")[1])
    assert facts["thumbnails"] == 1
    after = {path.name for path in (tmp_path / "thumbnails").rglob("*.jpg")}
    assert (len(before), len(before - after), len(after)) == (6, 1, 6)


def test_what_is_refused(command: Command, runner: Runner) -> None:
    refused = [
        ((), "say what is to go"),
        (("--yes",), "say what is to go"),
        (("--vanished-days", "-1"), "Invalid value for '--vanished-days'"),
        (("--older-than-days", "nan"), "Invalid value for '--older-than-days'"),
        (("--model", "now@1", "--yes"), "current one of test"),
        (("--model", "a\0b", "--yes"), "no text in UTF-8"),
        (("--model", "'; DROP TABLE prediction; --", "--yes"), "knows no model"),
    ]
    for arguments, told in refused:
        code, _, err = command("prune", *arguments)
        assert code == 2
        assert told in " ".join(err.replace("│", "").split())
    assert len(runner.rows("SELECT * FROM prediction")) == 13


def test_a_span_of_more_days_than_there_are_names_nothing(command: Command) -> None:
    assert "would go" in command("prune", "--vanished-days", "9" * 30)[1]


def test_predictions_go_out_and_come_in(command: Command, runner: Runner, tmp_path: Path) -> None:
    code, out, _ = command("export", "all.parquet", "--model", "before@1")
    assert (code, out.startswith("6 predictions of 1 models in all.parquet")) == (0, True)
    facts = json.loads(command("export", "all.parquet", "--json")[1])
    assert facts == {"rows": 13, "models": 2, "bytes": (tmp_path / "all.parquet").stat().st_size}
    assert command("import", "all.parquet")[1] == "13 read = 0 inserted + 13 already there, of 2 models.\n"
    other = f"sqlite:///{tmp_path / 'other.db'}"
    facts = json.loads(command("import", "all.parquet", "--database", other, "--json")[1])
    assert facts == {"read": 13, "inserted": 13, "there": 0, "blocked": 0, "models": 2}
    refused = [
        (("export", "some.parquet", "--since", "yesterday"), "yesterday"),
        (("export", "some.parquet", "--pipeline", "a\0b"), "no text in UTF-8"),
        (("export", "some.parquet", "--pipeline", "'; DROP TABLE image; --"), "knows no pipeline"),
        (("export", "nowhere/some.parquet"), "cannot be written"),
        (("import", "nothing.parquet"), "cannot be read as an export"),
        (("import", "cache.db"), "cannot be read as an export"),
    ]
    for arguments, told in refused:
        code, _, err = command(*arguments)
        assert (code, told in " ".join(err.replace("│", "").split())) == (2, True), err
    assert not (tmp_path / "some.parquet").exists()
