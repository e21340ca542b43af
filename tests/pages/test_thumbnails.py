"""The small pictures on the pages: those of a pipeline's own images, to those who may read it, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.pages.conftest import IMAGES
from tests.pictures import picture, tinted_picture, write_pictures, write_small_bundle
from tests.runner import Runner
from tests.site import serving_site


def address(pipeline: str, digest: str) -> str:
    return f"/afterimage/pipelines/{pipeline}/thumbnails/{digest}"


def of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folder(seeded: dict[str, str]) -> Path:
    return Path(seeded["AFTERIMAGE_PIPELINES"]).parent


def test_an_image_has_its_thumbnail(viewer: httpx.Client) -> None:
    for seed in (0, 1, IMAGES - 1):
        answer = viewer.get(address("photos", of(tinted_picture(seed))))
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        assert Image.open(io.BytesIO(answer.content)).format == "JPEG"


def test_a_browser_keeps_it_for_a_day_and_nobody_else_does(admin: httpx.Client) -> None:
    answer = admin.get(address("photos", of(tinted_picture(2))))
    assert answer.headers["cache-control"] == "private, max-age=86400"
    again = admin.get(address("photos", of(tinted_picture(2))), headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_bytes_that_no_image_of_the_pipeline_has_are_not_shown(admin: httpx.Client, folder: Path) -> None:
    """Also where a picture lies in the place: several pipelines may share one."""
    foreign = of(b"of another source")
    place = folder / "thumbnails" / foreign[:2] / f"{foreign}.jpg"
    place.parent.mkdir(exist_ok=True)
    own = of(tinted_picture(0))
    place.write_bytes((folder / "thumbnails" / own[:2] / f"{own}.jpg").read_bytes())
    assert admin.get(address("photos", foreign)).status_code == 404


def test_a_pipeline_without_thumbnails_has_none(admin: httpx.Client) -> None:
    """`others` has predicted the same images; `secret` has twins of some."""
    for name in ("others", "secret", "no-such-pipeline"):
        assert admin.get(address(name, of(tinted_picture(0)))).status_code == 404


def test_who_may_not_read_the_pipeline_sees_none(narrow: httpx.Client, anonymous: httpx.Client) -> None:
    assert narrow.get(address("secret", of(tinted_picture(0)))).status_code == 403
    assert narrow.get(address("photos", of(tinted_picture(0)))).status_code == 200
    assert anonymous.get(address("photos", of(tinted_picture(0)))).status_code == 401


def test_what_was_never_decoded_has_none(admin: httpx.Client) -> None:
    broken = of(picture(0)[:60])
    answer = admin.get(address("photos", broken), params={"key": "dogs/broken-0.png"})
    assert answer.status_code == 404


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "A" * 64, "0" * 63, "%00", "0" * 64 + "%0A"])
def test_what_is_no_digest_is_not_found(admin: httpx.Client, name: str) -> None:
    assert admin.get(address("photos", name)).status_code == 404


def test_what_is_no_jpeg_is_not_given_out(admin: httpx.Client, folder: Path) -> None:
    """Whoever may write into the place cannot have the site give out a page of theirs."""
    digest = of(tinted_picture(5))
    place = folder / "thumbnails" / digest[:2] / f"{digest}.jpg"
    kept = place.read_bytes()
    try:
        place.write_bytes(b"<html><script>alert(1)</script>")
        assert admin.get(address("photos", digest)).status_code == 404
    finally:
        place.write_bytes(kept)


def test_a_bucket_is_read_with_the_connection_that_the_dags_use(
    tmp_path: Path, home: Path, bucket: str, s3_settings: dict[str, str]
) -> None:
    """The API server's environment knows neither the store nor its keys."""
    write_pictures(tmp_path / "images", 2)
    model = write_small_bundle(tmp_path / "model")
    place = f"s3://{bucket}/small"
    table = {"images": str(tmp_path / "images"), "model": str(model), "thumbnails": place}
    Runner(home, f"sqlite:///{tmp_path / 'cache.db'}", s3_settings, name="photos", **table).run()
    file = tmp_path / "pipelines.toml"
    file.write_text("[photos]\n" + "".join(f'{key} = "{value}"\n' for key, value in table.items()))
    environment = {"AFTERIMAGE_DATABASE": f"sqlite:///{tmp_path / 'cache.db'}", "AFTERIMAGE_PIPELINES": str(file)}
    with serving_site(tmp_path / "airflow", environment) as site, site.client("admin") as client:
        given = {
            "connection_id": "afterimage_storage",
            "conn_type": "aws",
            "login": s3_settings["s3_access_key"],
            "password": s3_settings["s3_secret_key"],
            "extra": json.dumps({"endpoint_url": s3_settings["s3_endpoint"], "region_name": s3_settings["s3_region"]}),
        }
        assert client.post("/api/v2/connections", json=given).status_code == 201
        shown = client.get(address("photos", of(picture(1))))
        missing = client.get(address("photos", of(picture(2))))
    assert (shown.status_code, missing.status_code) == (200, 404)
    assert Image.open(io.BytesIO(shown.content)).format == "JPEG"
