"""What is installed is what was locked: each package in one version, by the hashes of its files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOCKS = sorted([*ROOT.glob("requirements*.txt"), *(ROOT / "extras").glob("*.txt")])
RECIPES = [ROOT / "Makefile", ROOT / "Dockerfile"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_package_of_a_lock_is_pinned_by_hashes(lock: Path) -> None:
    joined = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[\w.-]+(\[[\w,.-]+\])?==\S+ ", line), f"{lock.name}: {line[:80]} is no version"
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), f"{lock.name}: {line[:80]} has no hash"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_lock_has_what_it_was_made_from(lock: Path) -> None:
    assert lock.with_suffix(".in").is_file()
    assert "make lock" in lock.read_text(encoding="utf-8").splitlines()[1]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_lock_is_installed_by_its_hashes(recipe: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", recipe.read_text(encoding="utf-8"))
    installs = [line for line in text.splitlines() if re.search(r"pip install .*-r ", line)]
    assert installs
    assert all("--require-hashes" in line for line in installs)


def test_an_audit_that_could_ask_nobody_fails() -> None:
    """Without --strict pip-audit passes over packages of which it learnt nothing, and ends well."""
    assert "pip-audit --strict" in (ROOT / "Makefile").read_text(encoding="utf-8")
