"""Listings that go wrong: none runs for ever, none ends early, and what comes late is found by the next run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import boto3
import pytest

from tasks.errors import TransientStorageError
from tasks.settings import load_settings
from tasks.storage import s3
from tasks.storage.s3 import S3Store
from tasks.window import resolve
from tests.faults.scene import IMAGES, Make
from tests.list_answers import answer, told
from tests.pictures import picture
from tests.runner import outcomes

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five pages for the bucket of a scene."""
    monkeypatch.setattr(s3, "PAGE_OBJECTS", 5)


BROKEN = {
    # name: (fault, pages that go through first, every k-th is struck, what the error says)
    "continuation token that repeats": ("repeated_token", 1, 1, r"Page 3 .* turns back"),
    "continuation tokens in a circle": ("first_page_again", 1, 2, r"Page 3 .* turns back"),
    "page out of order": ("backwards", 1, 2, r"Page 2 .* turns back"),
    "truncated page without a token": ("lost_token", 1, 2, r"Page 2 .* more follows, and not where"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_listing_out_of_order_is_an_error_that_names_the_page(make: Make, name: str) -> None:
    """Without it the first two would run for ever, and the last one would take the rest of the bucket for deleted."""
    fault, skip, every, says = BROKEN[name]
    scene = make()
    scene.runner.run()
    rule = scene.fake.strike(fault, operation="list", skip=skip, every=every)

    with pytest.raises(TransientStorageError, match=says):
        scene.runner.run()

    struck = scene.fake.struck(rule)
    assert scene.runner.rows("SELECT key FROM image WHERE deleted_at IS NOT NULL") == []
    assert scene.runner.predictions() == scene.calm
    scene.settle(name, struck, "an error that names the page; the next listing starts anew")


def test_an_empty_page_in_the_middle_is_not_the_end(make: Make) -> None:
    scene = make()
    rule = scene.fake.strike("empty_page", operation="list", every=2)

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES}

    struck = scene.fake.struck(rule)
    assert struck >= 3
    scene.settle("empty page that says more follows", struck, "listed to the end")


def test_a_key_that_appears_behind_the_cursor_is_found_by_the_next_run(make: Make) -> None:
    scene = make()
    rule = scene.fake.strike("changes", operation="list", skip=2, times=1, put={"00000-late.png": picture(77)})

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES}
    assert "00000-late.png" not in scene.runner.predictions()
    struck = scene.fake.struck(rule)
    assert outcomes(scene.runner.run()) == {"cached": IMAGES, "predicted": 1}

    assert "00000-late.png" in scene.runner.predictions()
    scene.settle("key behind the cursor", struck, "predicted by the next run")


def test_a_multipart_upload_that_began_long_ago_is_predicted_by_the_next_scheduled_run(make: Make) -> None:
    """It carries the moment at which it began. So LastModified is no watermark, and a scheduled run looks at everything."""
    scene = make()
    day = datetime(2026, 11, 26, tzinfo=UTC)
    began = day - timedelta(days=40)
    uploading = boto3.client("s3", endpoint_url=scene.fake.endpoint, region_name="us-east-1", **_keys())
    name = {"Bucket": scene.bucket, "Key": "late.png"}
    scene.fake.set_clock(began)
    upload = {**name, "UploadId": uploading.create_multipart_upload(**name)["UploadId"]}
    data = picture(88)
    parts = [
        {"PartNumber": number, "ETag": uploading.upload_part(**upload, PartNumber=number, Body=part)["ETag"]}
        for number, part in ((1, data[:1_000]), (2, data[1_000:]))
    ]

    def scheduled(start: datetime) -> dict[str, int]:
        window = resolve(
            run_type="scheduled",
            window_start=None,
            window_end=None,
            data_interval_start=start,
            data_interval_end=start + timedelta(days=1),
            templated=False,
            lookback_days=3,
        )
        return outcomes(scene.runner.run(window, run_type="scheduled"))

    assert scheduled(day - timedelta(days=1)) == {"predicted": IMAGES}
    uploading.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert scheduled(day) == {"cached": IMAGES, "predicted": 1}

    found = scene.runner.rows("SELECT etag, last_modified FROM v_prediction WHERE key = 'late.png'")[0]
    assert found["etag"].endswith("-2")
    assert str(found["last_modified"]).startswith(began.strftime("%Y-%m-%d"))
    scene.settle("multipart upload that began weeks ago", 1, "predicted by the next scheduled run")


def _keys() -> dict[str, str]:
    return {"aws_access_key_id": "access", "aws_secret_access_key": "secret"}


def directory_bucket(*pages: tuple[list[str], str | None]) -> S3Store:
    """S3 Express, which lists in no order. Each page is its keys and the token of the next one."""
    settings = load_settings(s3_access_key="a", s3_secret_key="b", s3_region="us-east-1")
    store = S3Store("photos--use1-az4--x-s3", settings)
    told(store, *(answer(keys, token) for keys, token in pages))
    return store


def test_a_directory_bucket_is_listed_in_the_order_that_it_has() -> None:
    store = directory_bucket((["m", "c"], "1"), ([], "2"), (["z", "a"], None))

    assert [image.key for page in store.pages("") for image in page] == ["m", "c", "z", "a"]


def test_a_directory_bucket_whose_tokens_lead_in_a_circle_is_an_error() -> None:
    circle = [(["m", "c"], "1"), (["z", "a"], "2")] * 4

    with pytest.raises(TransientStorageError, match=r"Page \d of .* leads in a circle"):
        list(directory_bucket(*circle).pages(""))
