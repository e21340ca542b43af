"""Messages of every shape in which a bucket announces objects, and what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.announcements import Announced, Wanted, objects_in
from tasks.listing import KeyFilter
from tasks.pipelines import RASTER_SUFFIXES
from tests.inventories import encoded

KEYS = (
    "raw/plain.png",
    "raw/a b+c%20d.png",
    "raw/%2B.png",
    "raw/line\nbreak\r.png",
    "raw/quote\"'<>\\.png",
    "raw/ä\U0001f408\u202e.png",
    "raw//../x.png",
    "raw/" + "k" * 1_016 + ".png",
)


def record(key: str, name: str = "ObjectCreated:Put", bucket: str = "bucket") -> dict[str, Any]:
    """As S3 writes it, less what is not looked at."""
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "eventName": name,
        "s3": {
            "bucket": {"name": bucket},
            "object": {"key": encoded(key), "size": 1, "sequencer": "0055AED6DCD90281E5"},
        },
    }


def records(*these: dict[str, Any]) -> str:
    return json.dumps({"Records": these})


def bridged(key: str, kind: str = "Object Created", source: str = "aws.s3") -> str:
    """As EventBridge writes it: the key as it is."""
    detail = {"bucket": {"name": "bucket"}, "object": {"key": key, "size": 1, "etag": "e"}, "reason": "PutObject"}
    return json.dumps({"version": "0", "detail-type": kind, "source": source, "detail": detail})


def wrapped(body: str) -> str:
    """As SNS hands it on."""
    return json.dumps(
        {"Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:1:t", "Subject": "x", "Message": body}
    )


@pytest.mark.parametrize("key", KEYS)
def test_every_shape_gives_the_key_as_it_is(key: str) -> None:
    wanted = [Announced("bucket", key)]
    assert objects_in(records(record(key))) == wanted
    assert objects_in(wrapped(records(record(key)))) == wanted
    assert objects_in(bridged(key)) == wanted
    assert objects_in(wrapped(bridged(key))) == wanted


def test_several_records_and_the_names_of_other_stores() -> None:
    body = records(
        record("a"), record("b", "ObjectCreated:CompleteMultipartUpload"), record("c", "s3:ObjectCreated:Copy")
    )
    assert [one.key for one in objects_in(body)] == ["a", "b", "c"]


def test_what_tells_of_something_else_announces_nothing() -> None:
    assert objects_in(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "bucket"})) == []
    assert objects_in(records(record("a", "ObjectRemoved:Delete"), record("b", "ObjectTagging:Put"))) == []
    assert objects_in(bridged("a", "Object Deleted")) == []
    assert objects_in(records()) == []


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no JSON object"),
        ('"text"', "no JSON object"),
        ("{}", "neither Records.* nor a detail-type"),
        ('{"Message": "hello"}', "no JSON"),
        ('{"Message": 7}', "neither Records"),
        ('{"Records": 7}', "no eventName, bucket or key"),
        ('{"Records": [null]}', "no eventName, bucket or key"),
        ('{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {}}}]}', "no eventName, bucket or key"),
        ('{"detail-type": "Object Created", "source": "aws.ec2"}', "of 'aws.ec2', not of aws.s3"),
        ('{"detail-type": "Object Created", "source": "aws.s3", "detail": []}', "detail has no bucket or key"),
        (wrapped(wrapped(wrapped(wrapped("{}")))), "wrapped more than 3 times"),
    ],
)
def test_what_is_no_such_message_says_so(body: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        objects_in(body)


@pytest.mark.parametrize(
    ("bucket", "key", "is_wanted"),
    [
        ("bucket", "raw/a.png", True),
        ("bucket", "raw/2026-03-01/a.JPG", True),
        ("other", "raw/a.png", False),
        ("bucket", "a.png", False),
        ("bucket", "raw/a.txt", False),
        ("bucket", "raw/not/a.png", False),
        ("bucket", "raw/", False),
        ("bucket", "", False),
        ("bucket", "raw/\0.png", False),
        ("bucket", "raw/\udcff.png", False),
        ("bucket", "raw/" + "ä" * 600 + ".png", False),
    ],
)
def test_what_a_pipeline_wants(bucket: str, key: str, is_wanted: bool) -> None:
    wanted = Wanted("s3://bucket/raw/", KeyFilter(RASTER_SUFFIXES, ("raw/not/*",)))
    assert wanted.holds(Announced(bucket, key)) is is_wanted


def test_under_a_date_template_the_key_must_have_a_day() -> None:
    wanted = Wanted("s3://bucket/raw/{{ ds }}/", KeyFilter(RASTER_SUFFIXES, ()))
    assert wanted.holds_key("raw/2026-03-01/a.png")
    assert not wanted.holds_key("raw/2026-13-01/a.png")
    assert not wanted.holds_key("raw/a.png")
