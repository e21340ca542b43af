"""Runs over keys that were announced: each in the state that it has now, and nothing beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import road
from tasks.errors import AccessDenied, ConfigurationError, StagingLost
from tasks.pipelines import load_pipelines, make_pipeline
from tasks.settings import load_settings
from tasks.storage.local import LocalStore
from tasks.storage.s3 import S3Store, client
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

Make = Callable[..., Runner]


@pytest.fixture(params=[("folder", "sqlite"), ("bucket", "postgresql")], ids=str)
def make(request: pytest.FixtureRequest, tmp_path: Path, home: Path, bucket: str, s3_settings: dict[str, str]) -> Make:
    """Makes runners over six images: a folder and SQLite, a bucket and PostgreSQL."""
    model = write_small_bundle(tmp_path / "model")
    keys = write_pictures(tmp_path / "images", 6)
    images = str(tmp_path / "images")
    place, kind = request.param
    url = f"sqlite:///{tmp_path / 'cache.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    if place == "bucket":
        s3 = client(load_settings(**s3_settings))
        for key in keys:
            s3.put_object(Bucket=bucket, Key=f"raw/{key}", Body=(tmp_path / "images" / key).read_bytes())
        images = f"s3://{bucket}/raw/"

    def runner(**table: Any) -> Runner:
        return Runner(home, url, s3_settings, **{"images": images, "model": str(model), **table})

    return runner


def announced(runner: Runner, *names: str, **asked: Any) -> dict[str, Any]:
    prefix = "raw/" if runner.pipeline.images.startswith("s3:") else ""
    return runner.run(keys=tuple(prefix + name for name in names), run_type="events", **asked)


def test_a_run_looks_at_announced_keys_alone(make: Make) -> None:
    counts = announced(make(), "00001.png", "00001.png", "00004.png", "gone.png", "notes.txt")
    assert (outcomes(counts), counts["listed"], counts["ignored"]) == ({"predicted": 2}, 2, 1)
    counts = announced(make(), "00001.png", "00002.png")
    assert (outcomes(counts), counts["reads"]) == ({"cached": 1, "predicted": 1}, 1)
    assert make().rows("SELECT key FROM image WHERE deleted_at IS NOT NULL") == []
    assert outcomes(make().run()) == {"cached": 3, "predicted": 3}
    assert outcomes(announced(make())) == {}


def test_a_run_over_announced_keys_does_not_make_its_model_the_current_one(make: Make, tmp_path: Path) -> None:
    other = str(write_small_bundle(tmp_path / "other", seed=7))
    make().run()
    before = make().rows("SELECT model_no FROM pipeline")
    announced(make(model=other), "00001.png")
    assert make().rows("SELECT model_no FROM pipeline") == before


def test_a_cleared_task_that_sees_other_keys_is_refused(make: Make) -> None:
    """And one that sees none, which would take everything for gone."""
    make().run()
    request = make().request(keys=("00001.png",), run_type="events")
    road.list_images(request, make().settings)
    for keys in (("00002.png",), (), None):
        with pytest.raises(StagingLost, match="announced was"):
            road.deduplicate(make().request(keys=keys, key=request.key), make().settings)
    assert make().rows("SELECT key FROM image WHERE deleted_at IS NOT NULL") == []


HOSTILE = (
    "../x.png",
    "/etc/passwd.png",
    "a//b.png",
    "./00001.png",
    "nul\0.png",
    "\udcff.png",
    "x" * 5_000 + ".png",
    "00001.png/y.png",
)


def test_hostile_keys_name_nothing(make: Make) -> None:
    counts = announced(make(), *HOSTILE, "00001.png")
    assert outcomes(counts) == {"predicted": 1}


def test_a_folder_shows_by_its_key_what_its_listing_shows(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_pictures(root / "deep" / "er", 2)
    (tmp_path / "outside.png").write_bytes(b"secret")
    (root / "out.png").symlink_to(tmp_path / "outside.png")
    (root / "in.png").symlink_to(root / "deep" / "er" / "00000.png")
    (root / "link").symlink_to(root / "deep")
    (root / "loop.png").symlink_to(root / "loop.png")
    store = LocalStore(str(root))
    listed = {image.key: image for page in store.pages("") for image in page}
    asked = ("deep/er/00000.png", "deep/er/00001.png", "in.png", "out.png", "link/er/00000.png", "loop.png", "deep", "")
    found = {key: store.head(key) for key in (*asked, "deep/er/../er/00000.png", *HOSTILE)}
    assert {key: image for key, image in found.items() if image is not None} == listed
    assert sorted(listed) == ["deep/er/00000.png", "deep/er/00001.png", "in.png"]


def test_a_bucket_shows_by_its_key_what_its_listing_shows(bucket: str, s3_settings: dict[str, str]) -> None:
    settings = load_settings(**s3_settings)
    for key in ("a b+c%20.png", "ä.png"):
        client(settings).put_object(Bucket=bucket, Key=key, Body=picture(1))
    store = S3Store(bucket, settings)
    listed = [image for page in store.pages("") for image in page]
    assert [store.head(image.key) for image in listed] == listed
    assert store.head("none.png") is None


def test_access_denied_is_no_word_that_an_object_is_gone(bucket: str, s3_settings: dict[str, str]) -> None:
    store = S3Store(bucket, load_settings(**s3_settings))

    def refused(params: Any, **_others: object) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(status_code=403), {
            "Error": {"Code": "403"},
            "ResponseMetadata": {"HTTPStatusCode": 403},
        }

    store._client.meta.events.register_first("before-call.s3.HeadObject", refused)
    with pytest.raises(AccessDenied):
        store.head("00001.png")


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"events": "queue"}, "expected the URL of a queue"),
        ({"events": "https://user:pw@sqs.eu-west-1.amazonaws.com/1/q"}, "expected the URL of a queue"),
        ({"events": "https://sqs.eu-west-1.amazonaws.com/1/q", "images": "folder"}, "only a bucket announces"),
        (
            {"events": "https://sqs.eu-west-1.amazonaws.com/1/q", "images": "s3://arn:aws:s3:x:1:accesspoint"},
            "access point",
        ),
    ],
)
def test_wrong_keys(table: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make_pipeline({"name": "x", "images": "s3://b/raw/", "model": "m", **table}, "pipelines.toml: [x]")


def test_two_dags_of_one_name_are_refused(tmp_path: Path) -> None:
    table = 'images = "s3://b/"\nmodel = "m"\n'
    file = tmp_path / "pipelines.toml"
    file.write_text(f'[a]\n{table}events = "https://sqs.eu-west-1.amazonaws.com/1/q"\n[a_events]\n{table}')
    with pytest.raises(ConfigurationError, match=r"\[a_events\] has the DAG predict_a_events, and so have the events"):
        load_pipelines(file)


def test_a_key_that_is_announced_while_the_daily_run_works_on_it_is_stored_once(make: Make) -> None:
    runner = make()
    prefix = "raw/" if runner.pipeline.images.startswith("s3:") else ""
    daily, daily_shards = runner.plan()
    events, shards = runner.plan(keys=tuple(f"{prefix}{number:05d}.png" for number in range(4)), run_type="events")
    for shard in (*daily_shards, *shards):
        road.predict_shard(shard, runner.settings)
    counts = [road.publish_run(request, runner.settings) for request in (daily, events)]
    assert [outcomes(one) for one in counts] == [{"predicted": 6}, {"reused": 4}]
    assert sum(one["forward_passes"] for one in counts) == 6
    assert runner.rows("SELECT count(*) AS n FROM prediction") == [{"n": 6}]
