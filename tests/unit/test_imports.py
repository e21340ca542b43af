"""Light DAG files, and arrows between modules that run in one direction only."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

HEAVY = ("torch", "torchvision", "PIL", "numpy", "boto3", "obstore", "openvino", "kubernetes")

LIGHT_FILES = sorted(path.relative_to(ROOT) for folder in ("dags", "plugins") for path in (ROOT / folder).rglob("*.py"))

LOADER = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2])
print(sorted(name for name in sys.argv[3:] if name in sys.modules))
"""


def module_of(path: Path) -> str:
    """The name under which Python imports a file of the project, from the folder above `parts`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", LIGHT_FILES, ids=str)
def test_airflow_imports_nothing_heavy(path: Path, tmp_path: Path) -> None:
    folder, module = path.parts[0], module_of(path.relative_to(path.parts[0]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": str(tmp_path)}
    command = [sys.executable, "-c", LOADER, str(ROOT / folder), module, *HEAVY]

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_there_are_light_files_to_look_at() -> None:
    assert {"dags/predict_images.py", "plugins/afterimage_plugin.py"} <= set(map(str, LIGHT_FILES))


MODULES = {module_of(path.relative_to(ROOT)): path for path in sorted((ROOT / "tasks").rglob("*.py"))}
SCRIPTS = "tasks.cache.migrations"


def imports(path: Path) -> Iterator[str]:
    """Everything that a file imports, at module level and inside functions, as dotted names with the names taken."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(name: str) -> str:
    """The part of the program that a dotted name belongs to: tasks.cache.schema.run -> cache."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def own_imports(path: Path) -> set[str]:
    """The rooms of the program that a file uses; `from tasks import road` is the room road."""
    return {room(name) for name in imports(path) if name.startswith("tasks.")}


# An arrow runs from a room to one on an earlier line; rooms on one line may use each other unless they are steps.
ORDER = (
    {"drift", "errors", "extras", "private", "processors", "stage_times", "stopping", "uris", "whole"},
    {"window", "observation", "notifications"},
    {"location", "notifiers"},
    {"settings", "pipelines"},
    {"cache", "models", "storage"},
    {"plan"},
    {"listing", "deduplication", "inference", "reporting"},
    {"optimisation"},
    {"range_listing"},
    {"announcements", "worker", "sources"},
    {"engines"},
    {"road"},
    {"progress", "tables"},
    {"exporting", "archives"},
    {"doctor"},
    {"cli"},
    {"__main__"},
)
STEPS = next(line for line in ORDER if "listing" in line)
LEVEL = {name: number for number, line in enumerate(ORDER) for name in line}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "tasks"])
def test_an_arrow_runs_in_one_direction_only(module: str) -> None:
    mine = room(module)
    used = own_imports(MODULES[module]) - {mine}

    assert {name for name in used if LEVEL[name] > LEVEL[mine]} == set()
    if mine in STEPS:
        assert used & STEPS == set(), "no step imports another step"


@pytest.mark.parametrize("module", MODULES)
def test_the_program_knows_no_airflow(module: str) -> None:
    assert [name for name in imports(MODULES[module]) if name.split(".")[0] == "airflow"] == []


def test_errors_imports_nothing() -> None:
    assert set(imports(MODULES["tasks.errors"])) == {"__future__.annotations"}


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) != "cache"])
def test_only_the_cache_speaks_sql(module: str) -> None:
    """Others may hold an engine and catch its errors; statements, tables and migrations stay in one room."""
    used = {name for name in imports(MODULES[module]) if name.split(".")[0] in ("sqlalchemy", "alembic", "psycopg")}

    assert {name for name in used if name != "sqlalchemy.Engine" and not name.startswith("sqlalchemy.exc.")} == set()
    assert not any(name.startswith("tasks.cache.schema") for name in imports(MODULES[module]))


@pytest.mark.parametrize("path", LIGHT_FILES, ids=str)
def test_airflows_side_reaches_no_further_than_the_program(path: Path) -> None:
    """Airflow calls the program; it does not build statements over the program's tables."""
    assert not any(name.startswith("tasks.cache.schema") for name in imports(ROOT / path))
