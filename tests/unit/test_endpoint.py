"""Where requests are sent is decided by whoever runs the installation: no run, no pipeline and no library's variable can."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tasks.errors import ConfigurationError
from tasks.pipelines import Pipeline
from tasks.settings import load_settings
from tasks.storage.s3 import client
from tests.conftest import ROOT

KEYS = {"s3_access_key": "a", "s3_secret_key": "b", "s3_region": "eu-central-1"}
AIRFLOWS = sorted(path.relative_to(ROOT) for folder in ("dags", "plugins") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_variable_of_boto3_sets_no_endpoint_and_a_line_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rows would be taken for those of the bucket of the same name at AWS."""
    monkeypatch.setenv(name, "http://elsewhere:9000")

    assert client(load_settings(**KEYS)).meta.endpoint_url == "https://s3.eu-central-1.amazonaws.com"
    assert "AFTERIMAGE_S3_ENDPOINT names the store" in caplog.text
    assert client(load_settings(**KEYS, s3_endpoint="http://here:9000")).meta.endpoint_url == "http://here:9000"


def test_a_profile_of_boto3_sets_no_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[default]\nendpoint_url = http://elsewhere:9000\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))

    assert client(load_settings(**KEYS)).meta.endpoint_url == "https://s3.eu-central-1.amazonaws.com"


def test_a_pipelines_table_has_no_key_for_it() -> None:
    assert [name for name in Pipeline.model_fields if "endpoint" in name or "url" in name] == []
    with pytest.raises(ValueError, match="s3_endpoint"):
        Pipeline(name="a", images="/a", model="b", s3_endpoint="http://elsewhere:9000")


@pytest.mark.parametrize("path", AIRFLOWS, ids=str)
def test_what_a_run_was_asked_for_reaches_no_setting(path: Path) -> None:
    """No file reads a run's conf, and settings are overridden by Connections alone: for tasks, and for pages."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    overridden = [one for one in calls if getattr(one.func, "id", "") in ("load_settings", "Settings") and one.keywords]

    assert not any(isinstance(node, ast.Attribute) and node.attr == "conf" for node in ast.walk(tree))
    # For tasks, for the owner's, for the trigger that waits for events, and for pages.
    expected = {"afterimage_context.py": 2, "afterimage_events.py": 1, "caches.py": 1}
    assert len(overridden) == expected.get(path.name, 0)
    for call in overridden:
        (given,) = call.keywords
        assert given.arg is None
        assert ast.unparse(given.value).startswith("connection_overrides(")


@pytest.mark.parametrize("endpoint", ["http://user:password@host", "file:///etc/passwd", "http://"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="AFTERIMAGE_S3_ENDPOINT"):
        client(load_settings(**KEYS, s3_endpoint=endpoint))
