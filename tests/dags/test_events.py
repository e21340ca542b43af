"""The DAG that announcements start, executed by Airflow itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.dags.test_runs import last_run, states
from tests.pictures import picture


@pytest.fixture
def objects(s3_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Five images in the bucket of the pipeline."""
    from tasks.settings import load_settings
    from tasks.storage.s3 import client

    for name, value in s3_settings.items():
        monkeypatch.setenv(f"AFTERIMAGE_{name.upper()}", value)
    s3, keys = client(load_settings()), [f"raw/{number} +%.png" for number in range(5)]
    s3.create_bucket(Bucket="announced")
    for number, key in enumerate(keys):
        s3.put_object(Bucket="announced", Key=key, Body=picture(number))
    return keys


def test_a_run_looks_at_the_keys_of_its_form(dags: dict[str, Any], objects: list[str]) -> None:
    dag = dags["predict_announced_events"]
    run = dag.test(logical_date=None, run_conf={"keys": [*objects[:2], "raw/gone.png", "other/a.png"]})
    assert str(run.state) == "success"
    assert (last_run()["run_type"], last_run()["listed"], last_run()["predicted"]) == ("events", 2, 2)
    assert last_run()["pipeline"] == "announced"
    assert states(run)["follow_up"] == "skipped"
    run = dags["predict_announced"].test(logical_date=None)
    assert (last_run()["cached"], last_run()["predicted"]) == (2, 3)
    run = dag.test(logical_date=None, run_conf={"keys": []})
    assert (str(run.state), last_run()["listed"]) == ("success", 0)


def test_the_keys_of_all_events_are_taken_and_what_has_none_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """By hand somebody may make an event of the asset, with anything in it."""
    from afterimage_context import announced_keys

    extras = [
        {"from_trigger": True, "payload": {"keys": ["b", "a"]}},
        {"from_trigger": True, "payload": {"keys": ["b", "c", 7]}},
        {"keys": ["d"], "from_rest_api": True},
        {"keys": "abc"},
        {"payload": ["e"]},
        None,
        {"keys": []},
    ]
    events = {"asset": [SimpleNamespace(extra=extra) for extra in extras]}
    context = {"params": {"keys": ["form"]}, "triggering_asset_events": events}
    with caplog.at_level("WARNING"):
        assert announced_keys(context) == ("a", "b", "c", "d", "form")
    assert caplog.text.count("has no list of keys") == 3
    assert announced_keys({"params": {}}) == ()
