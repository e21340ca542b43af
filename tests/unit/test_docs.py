"""The docs say what the program does: every key, variable, column, command and reason is named where a reader looks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import inspect

from tasks.cache.database import connect, reading
from tasks.cache.migrating import migrate
from tasks.cli import app
from tasks.inference.reading import ACCESS_DENIED, STORAGE_ERROR
from tasks.inference.verdict import NONFINITE_OUTPUT
from tasks.pipelines import Pipeline
from tasks.settings import Settings
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
SQL = (ROOT / "docs" / "sql.md").read_text()


def test_every_key_of_pipelines_toml_is_in_the_readme_with_its_default() -> None:
    for name, field in Pipeline.model_fields.items():
        if name in ("name", "include", "exclude", "schedule"):
            continue
        row = re.search(rf"^\| `{name}` \|\s*([^|]*?)\s*\|", README, re.MULTILINE)
        assert row is not None, name
        if field.default in (None, ()):
            assert row[1] == "none", name
        elif isinstance(field.default, str):
            assert row[1] == field.default, name
        elif not field.is_required():
            assert float(row[1].replace(",", "")) == float(field.default), name


def test_every_variable_is_in_the_readme() -> None:
    for name in Settings.model_fields:
        suffix = name.upper()
        assert f"AFTERIMAGE_{suffix}" in README or f"`_{suffix.removeprefix('S3_')}`" in README, name


def test_every_command_is_in_the_readme() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"./afterimage {command.callback.__name__}" in README


@pytest.mark.parametrize("view", ["v_prediction", "v_current_prediction", "v_failure", "v_run", "v_review"])
def test_every_column_of_a_view_is_in_docs_sql(view: str, tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'cache.db'}")
    migrate(engine)
    with reading(engine) as connection:
        columns = [column["name"] for column in inspect(connection).get_columns(view)]
    for column in columns:
        assert re.search(rf"\b{column}\b", SQL), f"{view}.{column}"


def test_every_reason_is_in_docs_sql() -> None:
    code = "".join(path.read_text() for path in (ROOT / "tasks" / "inference").rglob("*.py"))
    reasons = set(re.findall(r'ImageError\(\s*"(\w+)"', code))
    reasons |= {ACCESS_DENIED, STORAGE_ERROR, NONFINITE_OUTPUT}
    assert {"empty", "truncated", "too_many_pixels"} <= reasons
    for reason in reasons:
        assert f"`{reason}`" in SQL, reason


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_targets_of_the_makefile_are_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "ui", "test", "lint", "types", "format", "lock", "clean"):
        assert re.search(rf"^{target}:.*## \w", makefile, re.MULTILINE), target
