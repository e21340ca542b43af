"""The whole road over a store that fails in every way it can: nothing is lost, and no image is blamed for it."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

import pytest

from tasks import road
from tasks.errors import ConfigurationError, GlobalFault
from tasks.storage import s3
from tests.faults.scene import IMAGES, Make, image_of
from tests.pictures import picture
from tests.runner import outcomes

pytestmark = pytest.mark.usefixtures("impatient")

# What passes: the object is read again, and nothing is quarantined

PASSING = {
    "503 SlowDown": "slow_down",
    "500 InternalError": "internal",
    "429 TooManyRequests": "too_many",
    "connection reset in the body": "reset",
    "body shorter than its Content-Length": "short",
    "body cut, and its Content-Length too": "cut",
    "one bit flipped in the body": "flip",
}


@pytest.mark.parametrize("name", PASSING)
def test_a_burst_for_all_objects_costs_nothing_but_attempts(make: Make, name: str) -> None:
    """Each object is struck twice, so that neither obstore's attempt nor boto3's first one helps."""
    scene = make()
    rule = scene.fake.strike(PASSING[name], operation="get", each=True, times=2)

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES}

    struck = scene.fake.struck(rule)
    assert scene.runner.predictions() == scene.calm
    assert struck == 2 * IMAGES
    scene.settle(name, struck, "read again; nothing quarantined")


def test_where_obstore_alone_fails_boto3_reads_everything(make: Make) -> None:
    """As behind a proxy or a certificate that only boto3 accepts."""
    scene = make()
    rule = scene.fake.strike("reset", operation="get", client="obstore")

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES}

    struck = scene.fake.struck(rule)
    assert scene.fake.requests("get") == IMAGES + struck
    scene.settle("only obstore fails", struck, "boto3 reads; obstore rests after three failures")


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("name", "fault"), [("no answer at all", "silence"), ("body that stalls", "stall")])
def test_a_store_that_falls_silent_is_asked_again_after_the_time_out(make: Make, name: str, fault: str) -> None:
    scene = make(readers=IMAGES)
    rule = scene.fake.strike(fault, operation="get", each=True, times=1)

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES}

    struck = scene.fake.struck(rule)
    scene.settle(name, struck, "read again after the time-out; nothing quarantined")
    assert struck == IMAGES


@pytest.mark.parametrize(
    "name", ["503 SlowDown", "body shorter than its Content-Length", "one bit flipped in the body"]
)
def test_where_all_reads_fail_the_task_fails_in_seconds_and_blames_no_image(make: Make, name: str) -> None:
    scene = make(readers=IMAGES)
    rule = scene.fake.strike(PASSING[name], operation="get")
    started = time.monotonic()

    with pytest.raises(GlobalFault, match="Nothing was quarantined"):
        scene.runner.run()

    assert time.monotonic() - started < 30
    struck = scene.fake.struck(rule)
    assert scene.failures() == {}
    scene.settle(f"{name}, for good", struck, "the task fails in seconds, and goes on where it stopped")


@pytest.mark.parametrize(("name", "fault"), [("503 SlowDown while listing", "slow_down"), ("a page cut off", "cut")])
def test_a_listing_that_fails_is_tried_again_page_by_page(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    monkeypatch.setattr(s3, "PAGE_OBJECTS", 5)
    scene = make()
    rule = scene.fake.strike(fault, operation="list", skip=1, times=1)

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES}

    struck = scene.fake.struck(rule)
    assert struck == 1
    scene.settle(name, struck, "that page is asked for again")


@pytest.mark.usefixtures("brief")
def test_a_port_that_takes_no_connection_fails_the_task_in_seconds(make: Make) -> None:
    scene = make(readers=IMAGES)
    request, shards = scene.runner.plan()
    started = time.monotonic()

    with scene.fake.deaf(), pytest.raises(GlobalFault, match=r"(?i)connect timeout.*Nothing was quarantined") as fault:
        road.predict_shard(shards[0], scene.runner.settings)

    assert time.monotonic() - started < 30
    road.close_run(request, scene.runner.settings)
    assert scene.failures() == {}
    struck = int(str(fault.value).partition(" in a row")[0].rpartition(" ")[2])
    scene.settle("connect time-out", struck, "the task fails in seconds, and goes on where it stopped")


# Credentials and permissions


def test_one_key_that_is_denied_is_quarantined_and_tried_again_later(make: Make) -> None:
    scene = make()
    key, _ = image_of(10)
    rule = scene.fake.strike("denied", operation="get", prefix=key)

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES - 1, "failed": 1}

    assert scene.failures() == {key: "access_denied"}
    struck = scene.fake.struck(rule)
    scene.settle("403 for one key", struck, "that image is quarantined and tried again later")
    assert scene.failures() == {}


def test_where_every_key_is_denied_no_image_is_to_blame(make: Make) -> None:
    scene = make()
    rule = scene.fake.strike("denied", operation="get")

    with pytest.raises(GlobalFault, match="s3:GetObject"):
        scene.runner.run()

    struck = scene.fake.struck(rule)
    assert scene.failures() == {}
    scene.settle("403 for all keys", struck, "the task fails in seconds; nothing quarantined")


def test_a_token_that_expires_in_the_middle_fails_the_task_and_a_new_one_goes_on(make: Make, database_url: str) -> None:
    scene = make(database_url, readers=1)
    rule = scene.fake.strike("expired", operation="get", credential="access", skip=10)
    request, shards = scene.runner.plan()
    started = time.monotonic()

    with pytest.raises(GlobalFault, match=r"ExpiredToken.*Renew them"):
        road.predict_shard(shards[0], scene.runner.settings)

    assert time.monotonic() - started < 30
    assert scene.failures() == {}
    before = scene.runner.predictions()
    assert len(before) == 10, "what was read before is committed"
    scene.runner.settings = scene.runner.settings.model_copy(update={"s3_access_key": "renewed"})
    road.predict_shard(shards[0], scene.runner.settings)
    assert road.publish_run(request, scene.runner.settings)["predicted"] == IMAGES
    struck = scene.fake.struck(rule)
    answer = "the task fails in seconds; with new credentials it goes on after its last commit"
    scene.settle("expired token mid-run", struck, answer)


def test_archived_objects_are_quarantined_and_read_once_they_are_restored(make: Make) -> None:
    scene = make()
    rule = scene.fake.strike("archived", operation="get", prefix="0001")

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES - 10, "failed": 10}

    assert set(scene.failures().values()) == {"access_denied"}
    message = scene.runner.rows("SELECT message FROM v_failure LIMIT 1")[0]["message"]
    assert "archived" in message
    assert "Restore" in message
    struck = scene.fake.struck(rule)
    scene.settle("archived objects", struck, "quarantined with what to do; predicted once restored")


# Another region


def test_a_bucket_in_another_region_is_followed(make: Make) -> None:
    scene = make()
    rule = scene.fake.strike("region", region="eu-west-1", unless_region="eu-west-1")

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES}

    struck = scene.fake.struck(rule)
    scene.settle("301 to another region", struck, "followed to the region that the store names")


def test_a_redirect_that_leads_nowhere_says_which_setting_is_wrong(make: Make) -> None:
    scene = make()
    rule = scene.fake.strike("region", region="eu-west-1")

    with pytest.raises(ConfigurationError, match="AFTERIMAGE_S3_REGION to eu-west-1"):
        scene.runner.run()
    struck = scene.fake.struck(rule)
    scene.fake.reset()
    reads = scene.fake.strike("region", operation="get", region="eu-west-1")
    with pytest.raises(ConfigurationError, match="AFTERIMAGE_S3_REGION to eu-west-1"):
        scene.runner.run()
    struck += scene.fake.struck(reads)

    assert scene.failures() == {}
    scene.settle("301 without end", struck, "the task fails at once and names the setting")


# What changes between the listing and the read


def test_what_is_deleted_after_the_listing_has_vanished(make: Make) -> None:
    scene = make()
    gone, marked = image_of(3)[0], image_of(20)[0]
    rule = scene.fake.strike("changes", operation="list", times=1, delete=[gone], mark=[marked])

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES - 2, "vanished": 2}

    assert scene.fake.struck(rule) == 1
    assert scene.failures() == {}
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(f"{scene.fake.endpoint}/{scene.bucket}/{marked}")
    assert answer.value.headers["x-amz-delete-marker"] == "true"
    scene.calm = {key: row for key, row in scene.calm.items() if key not in (gone, marked)}
    scene.settle("404 after the listing", 2, "counted as vanished")


def test_what_is_overwritten_after_the_listing_is_stored_as_it_was_read(make: Make, database_url: str) -> None:
    scene = make(database_url)
    changed = {image_of(number)[0]: picture(100 + number) for number in (0, 11, 23)}
    rule = scene.fake.strike("changes", operation="list", times=1, put=changed)

    assert outcomes(scene.runner.run()) == {"predicted": IMAGES}

    assert scene.fake.struck(rule) == 1
    found = scene.runner.predictions()
    assert all(found[key] != scene.calm[key] for key in changed)
    scene.calm = {**scene.calm, **{key: found[key] for key in changed}}
    scene.settle(
        "overwritten after the listing", len(changed), "412: read again, and stored under the ETag that was read"
    )
