"""Keys are other people's text: they forge no line, colour no terminal, turn no text around, and are markup nowhere."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.optimisation.sample import _leave_out
from tests.command_line import exit_code
from tests.pictures import picture, write_small_bundle
from tests.runner import Runner, outcomes
from tests.tab import opened_pages

FORGED = "INFO all is well"
KEYS = (
    f"line\n{FORGED}.png",
    f"return\r{FORGED}.png",
    "colour\x1b[31m.png",
    "title\x1b]0;mine\x07.png",
    "eight-bit\x9b31m.png",
    "turned\u202egnp.exe.png",
    "isolated\u2066png\u2069.png",
    "separated\u2028line.png",
    "unseen\u200b.png",
    "[red]rich[/red].png".replace("/", "\\"),
    "[link=example]rich.png",
    "[bold]]open.png",
    "<img src=x onerror=alert(1)>.png",
    "{{ 7 * 7 }}.png",
    "'; DROP TABLE image; --.png",
    "%s%n%x.png",
    "=cmd|calc.png",
    "deleted\x7f.png",
)
NO_TEXT = os.fsdecode(b"no-text\xff\xfe.png")


@pytest.fixture
def hostile(tmp_path: Path, home: Path, database_url: str) -> Runner:
    """Damaged images under such keys, half of them fit to be read; the model's name is hostile too."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, key in enumerate(KEYS):
        (folder / key).write_bytes(picture(number) if number % 2 else b"no image %d" % number)
    (folder / NO_TEXT).write_bytes(picture(99))
    model = write_small_bundle(tmp_path / "model", name="small\x1b[31m[red]<b>\u202e")
    return Runner(home, database_url, images=str(folder), model=str(model))


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The log as a plain handler writes it, at DEBUG."""
    written: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(self.format(record))

    handler = Lines()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    caplog.set_level(logging.DEBUG, logger="tasks")
    logging.getLogger("tasks").addHandler(handler)
    yield written
    logging.getLogger("tasks").removeHandler(handler)


def check(text: str) -> None:
    """Nothing but printable lines, of which no key has made one."""
    text.encode("utf-8")
    assert [char for char in text if not char.isprintable() and char != "\n"] == []
    assert not [line for line in text.splitlines() if line.lstrip("│ ").startswith(FORGED)]


def test_a_run_over_such_keys(
    hostile: Runner, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = hostile.run()
    assert outcomes(counts) == {"predicted": len(KEYS) // 2, "failed": len(KEYS) // 2}
    assert any("Passed over" in line and "no-text" in line for line in lines), "it is told what was left out"
    for line in lines:
        check(line)
        assert re.match(r"(DEBUG|INFO|WARNING|ERROR) ", line)

    monkeypatch.setenv("AFTERIMAGE_DATABASE", hostile.settings.database_url)
    for command in (["failures"], ["status"], ["failures", "--json"], ["status", "--json"]):
        assert exit_code(monkeypatch, command) == 0
        printed = capsys.readouterr()
        check(printed.out)
        check(printed.err)
        if command == ["failures"]:
            assert "line\\n" in printed.out
            assert "[link=example]rich.png" in printed.out, "markup is text here"
        if command == ["failures", "--json"]:
            assert {row["key"] for row in json.loads(printed.out)} == set(KEYS[::2]), "to a program they are the same"


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_found_and_shown_as_text(
    hostile_cache: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    monkeypatch.setenv("AFTERIMAGE_DATABASE", hostile_cache.settings.database_url)
    for more, code in (([], 0), (["--json"], 0)):
        assert exit_code(monkeypatch, ["show", *more, "--", key]) == code
        printed = capsys.readouterr()
        check(printed.out)
        assert printed.err == ""
    assert exit_code(monkeypatch, ["show", "--", key + "?"]) == 1
    check(capsys.readouterr().err)


@pytest.fixture(scope="module")
def hostile_cache(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Runner:
    """The same after a run, over SQLite, for tests that only look at it."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "images").mkdir()
    for number, key in enumerate(KEYS):
        (folder / "images" / key).write_bytes(picture(number) if number % 2 else b"no image %d" % number)
    model = write_small_bundle(folder / "model")
    runner = Runner(home, f"sqlite:///{folder}/cache.db", images=str(folder / "images"), model=str(model))
    runner.run()
    return runner


@pytest.mark.parametrize(
    "command", [["show", NO_TEXT], ["predict", "--images", NO_TEXT, "--model", "m"], ["status", NO_TEXT]]
)
def test_an_argument_that_is_no_text_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert exit_code(monkeypatch, command) == 2
    error = capsys.readouterr().err
    check(error)
    assert "is not UTF-8" in error


def test_an_error_forges_nothing_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A folder may be called anything as well."""
    nowhere = str(tmp_path / "gone\x1b[31m\u202e")
    assert exit_code(monkeypatch, ["predict", "--images", nowhere, "--model", nowhere]) == 2
    check(capsys.readouterr().err)


def test_what_a_comparison_leaves_out_is_quoted(lines: list[str]) -> None:
    _leave_out(KEYS[0], "it vanished.")
    (line,) = lines
    check(line)


def test_the_tab_in_airflow_shows_text_and_nothing_else(hostile: Runner) -> None:
    hostile.run()
    (run,) = hostile.rows("SELECT dag_id, run_id, model_name FROM v_run")
    with opened_pages(hostile.settings.database_url) as client:
        answer = client.get(f"/runs/{run['dag_id']}/{run['run_id']}")
        unknown = client.get("/runs/%3Cscript%3Ealert(1)%3C%2Fscript%3E/'%3B%20DROP%20TABLE%20run%3B--")
    assert answer.status_code == 200
    assert "<b>" in run["model_name"]
    assert "[red]&lt;b&gt;\\u202e" in answer.text
    check(answer.text)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<script>" not in unknown.text
    assert len(hostile.rows("SELECT * FROM v_run")) == 1
