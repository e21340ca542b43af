"""A run writes one small JPEG for each image it decodes, to a folder or to S3; no trouble with them is an image's trouble."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tasks.cache import commits, erasing
from tasks.cache.database import connect
from tasks.cache.erasing import Target
from tasks.cache.runs import RunKey
from tasks.cli import app
from tasks.errors import AccessDenied, ConfigurationError, TransientStorageError
from tasks.inference import thumbnails
from tasks.location import parse_location
from tasks.settings import load_settings
from tasks.storage.s3 import client
from tasks.storage.thumbnails import MOST_BYTES, BucketThumbnails, FolderThumbnails, ThumbnailStore, open_thumbnails
from tests.faults.victim import SIGKILL, Fate, end_victim
from tests.pictures import picture, write_pictures, write_small_bundle
from tests.runner import Runner, outcomes

DIGEST = "ab" + "0" * 62
JPEG = b"\xff\xd8\xff" + b"x" * 20 + b"\xff\xd9"

Place = tuple[str, dict[str, str]]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """URI of an empty place for thumbnails, and the settings that reach it."""
    if request.param == "folder":
        return str(tmp_path / "thumbnails"), {}
    bucket = request.getfixturevalue("bucket")
    return f"s3://{bucket}/small", request.getfixturevalue("s3_settings")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight pictures, a twin of the first one, and a file that is none."""
    write_pictures(tmp_path / "images", 8)
    (tmp_path / "images" / "twin.png").write_bytes(picture(0))
    (tmp_path / "images" / "broken.png").write_bytes(picture(9)[:60])
    return tmp_path / "images"


@pytest.fixture
def make(tmp_path: Path, home: Path, images: Path) -> Callable[..., Runner]:
    model = write_small_bundle(tmp_path / "model")
    url = f"sqlite:///{tmp_path / 'cache.db'}"

    def runner(settings: dict[str, str] | None = None, **table: Any) -> Runner:
        return Runner(home, url, settings, **{"images": str(images), "model": str(model), **table})

    return runner


def store_of(place: Place) -> ThumbnailStore:
    return open_thumbnails(parse_location(place[0]), load_settings(**place[1]))


def names_in(place: Place) -> list[str]:
    """Everything that lies in a place, below it."""
    uri, settings = place
    if not settings:
        return sorted(str(path.relative_to(uri)) for path in Path(uri).rglob("*") if path.is_file())
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    found = client(load_settings(**settings)).list_objects_v2(Bucket=bucket)
    return sorted(entry["Key"].removeprefix(f"{prefix}/") for entry in found.get("Contents", []))


def expected(seeds: range) -> list[str]:
    digests = sorted(hashlib.sha256(picture(seed)).hexdigest() for seed in seeds)
    return [f"{digest[:2]}/{digest}.jpg" for digest in digests]


def test_a_run_writes_one_for_each_digest_and_nothing_else(place: Place, make: Callable[..., Runner]) -> None:
    runner = make(place[1], thumbnails=place[0])
    assert outcomes(runner.run()) == {"predicted": 8, "reused": 1, "failed": 1}
    assert names_in(place) == expected(range(8))
    data = store_of(place).get(hashlib.sha256(picture(3)).hexdigest())
    assert data is not None
    with Image.open(io.BytesIO(data)) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (16, 16))
    if place[1]:
        bucket, _, prefix = place[0].removeprefix("s3://").partition("/")
        answer = client(load_settings(**place[1])).head_object(Bucket=bucket, Key=f"{prefix}/{expected(range(1))[0]}")
        assert answer["ContentType"] == "image/jpeg"


def test_a_place_gives_back_what_it_was_given(place: Place) -> None:
    store = store_of(place)
    assert (store.get(DIGEST), store.has(DIGEST), store.delete(DIGEST)) == (None, False, False)
    store.put(DIGEST, b"older")
    store.put(DIGEST, JPEG)
    assert (store.get(DIGEST), store.has(DIGEST)) == (JPEG, True)
    assert names_in(place) == [f"ab/{DIGEST}.jpg"]
    assert store.delete(DIGEST)
    assert names_in(place) == []


def test_what_is_no_small_jpeg_is_not_given_out(place: Place) -> None:
    store = store_of(place)
    for data in (b"", b"<html>", JPEG[:-1], b"\xff\xd8\xff" + b"x" * MOST_BYTES + b"\xff\xd9"):
        store.put(DIGEST, data)
        assert store.get(DIGEST) is None


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", DIGEST.upper(), DIGEST[:-1], DIGEST + "\n", "g" * 64])
def test_only_a_digest_names_a_thumbnail(tmp_path: Path, digest: str) -> None:
    for store in (FolderThumbnails(str(tmp_path)), BucketThumbnails("bucket", "small", load_settings())):
        refuse_all(store, digest)


def refuse_all(store: ThumbnailStore, digest: str) -> None:
    for call in (store.get, store.has, store.delete, lambda name: store.put(name, JPEG)):
        with pytest.raises(ConfigurationError, match="is no digest"):
            call(digest)


def test_links_lead_nowhere(tmp_path: Path) -> None:
    """A link in the folder, to a file or to a folder, is neither read nor written through."""
    store, outside = FolderThumbnails(str(tmp_path / "place")), tmp_path / "outside"
    outside.mkdir()
    (outside / f"{DIGEST}.jpg").write_bytes(JPEG)
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "ab").symlink_to(outside)
    assert (store.get(DIGEST), store.has(DIGEST)) == (None, False)
    with pytest.raises(TransientStorageError, match="links in it are not followed"):
        store.put(DIGEST, JPEG + b"other")
    assert (outside / f"{DIGEST}.jpg").read_bytes() == JPEG
    (tmp_path / "place" / "ab").unlink()
    (tmp_path / "place" / "ab").mkdir()
    (tmp_path / "place" / "ab" / f"{DIGEST}.jpg").symlink_to(outside / f"{DIGEST}.jpg")
    assert store.get(DIGEST) is None
    store.put(DIGEST, JPEG)
    assert not (tmp_path / "place" / "ab" / f"{DIGEST}.jpg").is_symlink()
    assert (tmp_path / "place" / "ab" / f"{DIGEST}.jpg").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_writer_left_goes_with_the_thumbnail(tmp_path: Path) -> None:
    store = FolderThumbnails(str(tmp_path))
    store.put(DIGEST, JPEG)
    (tmp_path / "ab" / f".{DIGEST}.0123").write_bytes(JPEG[:9])
    assert store.delete(DIGEST)
    assert list((tmp_path / "ab").iterdir()) == []


def test_force_writes_them_again(place: Place, make: Callable[..., Runner]) -> None:
    make(place[1]).run()
    runner = make(place[1], thumbnails=place[0])
    runner.run()
    assert names_in(place) == [], "nothing is decoded where all is cached"
    runner.run(force=True)
    assert names_in(place) == expected(range(8))


def test_a_cascade_writes_the_pixels_of_its_first_model(tmp_path: Path, make: Callable[..., Runner]) -> None:
    """The second model wants others, and decodes once more."""
    models = [str(tmp_path / "model"), str(write_small_bundle(tmp_path / "large", 1, crop=24))]
    make(model=models, cascade_margin=1.0, thumbnails=str(tmp_path / "small")).run()
    sizes = {Image.open(path).size for path in (tmp_path / "small").rglob("*.jpg")}
    assert (len(list((tmp_path / "small").rglob("*.jpg"))), sizes) == (8, {(16, 16)})


def refuse(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    def put(_store: FolderThumbnails, digest: str, _jpeg: bytes) -> None:
        calls.append(digest)
        raise AccessDenied("The bucket says no.")

    monkeypatch.setattr(FolderThumbnails, "put", put)


def test_a_place_that_refuses_fails_nothing(
    tmp_path: Path, make: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(monkeypatch, calls := [])
    counts = make(thumbnails=str(tmp_path / "small")).run()
    assert (counts["state"], outcomes(counts)) == ("success", {"predicted": 8, "reused": 1, "failed": 1})
    assert len(calls) == 8
    (told,) = [record.getMessage() for record in caplog.records if "thumbnails" in record.getMessage()]
    assert "8 thumbnails could not be written, 0 were" in told
    assert "The bucket says no." in told


def test_a_place_that_is_a_file_or_no_bucket_fails_nothing(
    tmp_path: Path, make: Callable[..., Runner], s3_settings: dict[str, str]
) -> None:
    (tmp_path / "file").write_text("")
    assert make(thumbnails=str(tmp_path / "file")).run()["predicted"] == 8
    assert make(s3_settings, thumbnails="s3://no-such-bucket-at-all/").run(force=True)["predicted"] == 8


def test_after_twenty_failures_in_a_row_a_shard_tries_no_more(
    tmp_path: Path,
    images: Path,
    make: Callable[..., Runner],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_pictures(images, 60, start=8)
    refuse(monkeypatch, calls := [])
    assert make(thumbnails=str(tmp_path / "small")).run()["predicted"] == 68
    assert 20 <= len(calls) < 20 + FolderThumbnails.writers
    told = [record.getMessage() for record in caplog.records if "thumbnails" in record.getMessage()]
    assert "20 thumbnails in a row could not be written, so no more are tried here" in told[0]
    assert "68 thumbnails could not be written, 0 were" in told[1]


def test_a_slow_place_keeps_no_decoder_waiting_and_a_commit_waits_for_it(
    tmp_path: Path, make: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No write ends before everything was through the forward pass; each has ended before the commit."""
    put, commit = FolderThumbnails.put, commits.commit
    scored, at_commit = threading.Event(), list[int]()
    from tasks.inference import forward_stage

    score = forward_stage.score

    def late(store: FolderThumbnails, digest: str, jpeg: bytes) -> None:
        assert scored.wait(20)
        put(store, digest, jpeg)

    def seen(*arguments: Any) -> Any:
        found = score(*arguments)
        scored.set()
        return found

    def counted(*arguments: Any) -> Any:
        at_commit.append(len(list((tmp_path / "small").rglob("*.jpg"))))
        return commit(*arguments)

    monkeypatch.setattr(FolderThumbnails, "put", late)
    monkeypatch.setattr(forward_stage, "score", seen)
    monkeypatch.setattr(commits, "commit", counted)
    make(thumbnails=str(tmp_path / "small")).run()
    assert at_commit[0] == 8


def test_a_place_that_hangs_holds_a_commit_up_for_a_while_and_no_longer(
    tmp_path: Path, make: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(FolderThumbnails, "put", lambda *_: let_go.wait(60))
    monkeypatch.setattr(thumbnails, "SETTLE_SECONDS", 0.2)
    try:
        assert make(thumbnails=str(tmp_path / "small")).run()["predicted"] == 8
    finally:
        let_go.set()


@pytest.mark.parametrize("point", ["in the forward pass", "after the upsert, inside the transaction"])
def test_a_run_that_is_killed_and_goes_on_has_them_all(
    tmp_path: Path, make: Callable[..., Runner], images: Path, point: str
) -> None:
    write_pictures(images, 20, start=8)
    runner = make({"batch_size": "4"}, thumbnails=str(tmp_path / "small"), commit_images=8)
    ended = end_victim(runner, tmp_path, Fate(SIGKILL, point, 2), RunKey("kill", "the-run"))
    assert (ended.struck, ended.code) == (True, -signal.SIGKILL)
    assert runner.run(key=RunKey("kill", "the-run"))["state"] == "success"
    whole = [path.name for path in (tmp_path / "small").rglob("*.jpg")]
    assert sorted(whole) == sorted(name[3:] for name in expected(range(28)))


def erase(runner: Runner, environment: dict[str, str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """./afterimage erase, in this process."""
    environment = {"AFTERIMAGE_DATABASE": runner.settings.database_url, **environment}
    done = CliRunner().invoke(app, ["erase", "--json", *arguments], env=environment)
    assert done.exit_code == code, done.output
    return {**json.loads(done.stdout), "told": done.stderr}


def test_erasing_removes_them_from_the_places_of_all_pipelines(
    tmp_path: Path, place: Place, make: Callable[..., Runner]
) -> None:
    runner = make(place[1], thumbnails=place[0])
    runner.run()
    other = FolderThumbnails(str(tmp_path / "other"))
    digests = {seed: hashlib.sha256(picture(seed)).hexdigest() for seed in range(8)}
    for digest in digests.values():
        other.put(digest, JPEG)
    table = '[{}]\nimages = "images"\nmodel = "model"\nthumbnails = "{}"\n'
    file = tmp_path / "pipelines.toml"
    file.write_text(table.format("a", place[0]) + table.format("b", "other") + table.format("c", "other"))
    environment = {"AFTERIMAGE_PIPELINES": str(file)}
    environment |= {f"AFTERIMAGE_{name.upper()}": value for name, value in place[1].items()}

    assert erase(runner, environment, "--key", "00003.png", "--dry-run")["thumbnails"] == 2
    assert len(names_in(place)) == 8
    assert erase(runner, environment, "--key", "00003.png")["thumbnails"] == 2
    assert (store_of(place).has(digests[3]), other.has(digests[3])) == (False, False)
    assert erase(runner, environment, "--key", "twin.png")["thumbnails"] == 0, "another image has its bytes"
    assert erase(runner, environment, "--digest", digests[0])["thumbnails"] == 2
    assert erase(runner, environment, "--digest", digests[0])["thumbnails"] == 0
    assert len(names_in(place)) == 6


def test_erasing_says_what_it_could_not_remove(tmp_path: Path, make: Callable[..., Runner]) -> None:
    runner = make()
    runner.run()
    file = tmp_path / "pipelines.toml"
    file.write_text('[a]\nimages = "images"\nmodel = "model"\nthumbnails = "small"\n[b]\nimages = "images"\n')
    digest = hashlib.sha256(picture(1)).hexdigest()
    (tmp_path / "small" / digest[:2] / f"{digest}.jpg").mkdir(parents=True)  # rather than a file
    told = erase(runner, {"AFTERIMAGE_PIPELINES": str(file)}, "--key", "00001.png", code=1)
    assert told["removed"]["prediction"] == 1
    assert f"./afterimage erase --digest {digest}" in told["told"]
    assert "[b] lacks the key 'model'" in told["told"]


@pytest.mark.parametrize("block", [False, True])
def test_an_image_that_is_erased_while_it_is_in_hand_leaves_none(
    tmp_path: Path, make: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, block: bool
) -> None:
    commit, struck = commits.commit, list[int]()

    def late(*arguments: Any) -> Any:
        if not struck:
            struck.append(len(list((tmp_path / "small").rglob("*.jpg"))))
            engine = connect(runner.settings.database_url)
            erasing.erase(engine, Target(key="00003.png"), block=block, dry_run=False)
            engine.dispose()
        return commit(*arguments)

    runner = make(thumbnails=str(tmp_path / "small"))
    monkeypatch.setattr(commits, "commit", late)
    runner.run()
    assert struck == [8]
    assert names_in((str(tmp_path / "small"), {})) == sorted(set(expected(range(8))) - set(expected(range(3, 4))))
