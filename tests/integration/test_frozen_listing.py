"""What a run has listed stays what it works on, although pipelines.toml or the environment changes under it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks import road
from tasks.errors import ConfigurationError, StagingLost
from tasks.window import Window
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

Make = Callable[..., Runner]


@pytest.fixture
def make(tmp_path: Path, home: Path, database_url: str) -> Make:
    """Makes runners over one cache; two folders hold other bytes under the same keys."""
    for name, start in (("a", 0), ("b", 100)):
        write_pictures(tmp_path / name, 4)
        for number, path in enumerate(sorted((tmp_path / name).iterdir())):
            path.write_bytes(picture(start + number))
    model = write_small_bundle(tmp_path / "model")

    def runner(**table: Any) -> Runner:
        return Runner(home, database_url, **{"images": str(tmp_path / "a"), "model": str(model), **table})

    return runner


@pytest.mark.parametrize("key", ["images", "include", "exclude"])
def test_a_table_that_was_edited_after_the_listing_is_refused(make: Make, tmp_path: Path, key: str) -> None:
    edited = {"images": str(tmp_path / "b"), "include": ("00000*",), "exclude": ("00000*",)}
    request = make().request()
    road.list_images(request, make().settings)
    later = make(**{key: edited[key]}).request(key=request.key)

    with pytest.raises(StagingLost, match=f"{key} was .* and is .*Clear list_images"):
        road.deduplicate(later, make().settings)
    assert make().rows("SELECT * FROM image") == []

    road.list_images(later, make().settings)
    for shard in road.deduplicate(later, make().settings):
        road.predict_shard(shard, make().settings)
    assert road.publish_run(later, make().settings)["state"] == "success"


def test_a_window_that_is_another_after_the_listing_is_refused(make: Make) -> None:
    request = make().request()
    road.list_images(request, make().settings)
    later = replace(request, window=Window(datetime(2026, 3, 1, tzinfo=UTC)))

    with pytest.raises(StagingLost, match="window was"):
        road.deduplicate(later, make().settings)


def test_a_worker_that_would_read_another_store_is_refused(make: Make) -> None:
    request, shards = make().plan()
    with pytest.raises(ConfigurationError, match=r"would read from .*AFTERIMAGE_S3_ENDPOINT"):
        road.predict_shard(replace(shards[0], source="s3://bucket@http://elsewhere"), make().settings)
    assert outcomes(road.summary_of(request, make().settings)) == {"open": 4}
