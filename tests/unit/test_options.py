"""What `erase`, `failures` and `status` refuse before they look at anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tasks.cli import app
from tasks.errors import ConfigurationError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("erase",), "give --key or --digest"),
        (("erase", "--key", "a", "--digest", "b"), "one of them only"),
        (("erase", "--digest", "abc"), "is no sha256: give 64 hex digits"),
        (("erase", "--digest", "a" * 65), "is no sha256"),
        (("erase", "--digest", "a" * 64, "--source", "s3://b"), "--source belongs to --key"),
        (("erase", "--key", "a", "--unblock", "--block"), "--unblock stands alone"),
        (("erase", "--key", "a", "--unblock", "--dry-run"), "--unblock stands alone"),
        (("erase", "--key", "\udcff.png"), "is no text in UTF-8"),
        (("erase", "--key", "a\0b"), "is no text in UTF-8"),
        (("failures", "--csv", "--json"), "--json or --csv, not both"),
        (("status", "--csv", "--json"), "--json or --csv, not both"),
    ],
)
def test_a_wrong_option_is_a_usage_error(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


def test_a_source_that_is_not_known_is_named_with_those_that_are(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'cache.db'}"
    done = CliRunner().invoke(app, ["erase", "--key", "a", "--source", "s3://b", "--database", database])
    assert isinstance(done.exception, ConfigurationError)
    assert str(done.exception) == "The cache knows no source 's3://b'. It knows: none. Name one of them."
