"""Messages in which a bucket announces that objects were written, and which of them a pipeline wants.

A queue may hold S3's own event notifications, the same wrapped by SNS, or EventBridge's events. Whoever may send to the queue
decides what stands in it, so nothing is believed but a bucket and a key: the object itself is asked for everything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from tasks.listing import KeyFilter, can_be_stored
from tasks.location import Location, parse_location
from tasks.window import EVERYTHING

# S3's own limit, in bytes of UTF-8.
KEY_BYTES = 1_024

# EventBridge through SNS is one message in another; more is nothing that AWS sends.
_WRAPPINGS = 3


@dataclass(frozen=True, slots=True)
class Announced:
    """An object that was written, as a message says."""

    bucket: str
    key: str


def objects_in(body: str) -> list[Announced]:
    """The objects that a message announces; none for a test event, and for what tells of something else, such as a deletion.

    Raises ValueError, which says what it is, for what is no such message.
    """
    told = _unwrapped(body)
    if "Records" in told:
        return list(_of_records(told["Records"]))
    if "detail-type" in told:
        return _of_event(told)
    if told.get("Event") == "s3:TestEvent":
        return []
    raise ValueError(
        "it has neither Records, as an S3 event notification, nor a detail-type, as an event of EventBridge"
    )


def _unwrapped(body: str) -> dict[str, Any]:
    """The message itself, out of the envelopes of SNS."""
    for _ in range(_WRAPPINGS):
        try:
            told = json.loads(body)
        except (ValueError, RecursionError):
            raise ValueError("it is no JSON") from None
        if not isinstance(told, dict):
            raise ValueError("it is no JSON object")
        if "Records" in told or "detail-type" in told or not isinstance(told.get("Message"), str):
            return told
        body = told["Message"]
    raise ValueError(f"it is wrapped more than {_WRAPPINGS} times")


def _of_records(records: Any) -> Iterator[Announced]:
    """S3's own notifications: keys are URL-encoded, a space is a plus."""
    for record in records if isinstance(records, list) else [records]:
        try:
            name, bucket, key = record["eventName"], record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
        except (TypeError, KeyError):
            raise ValueError("one of its Records has no eventName, bucket or key") from None
        if str(name).removeprefix("s3:").startswith("ObjectCreated:"):
            yield Announced(str(bucket), unquote_plus(str(key), errors="surrogateescape"))


def _of_event(told: dict[str, Any]) -> list[Announced]:
    """EventBridge: keys are as they are."""
    if told.get("source") != "aws.s3":
        raise ValueError(f"it is an event of {told.get('source')!r:.100}, not of aws.s3")
    if told["detail-type"] != "Object Created":
        return []
    try:
        return [Announced(str(told["detail"]["bucket"]["name"]), str(told["detail"]["object"]["key"]))]
    except (TypeError, KeyError):
        raise ValueError("its detail has no bucket or key") from None


class Wanted:
    """Which keys belong to a pipeline: in its bucket, below its prefix, through its globs, and fit to be stored."""

    def __init__(self, images: str, keys: KeyFilter) -> None:
        self._location: Location = parse_location(images)
        self._keys = keys

    def holds(self, announced: Announced) -> bool:
        """Whether the pipeline looks at an object that was announced."""
        return announced.bucket == self._location.root and self.holds_key(announced.key)

    def holds_key(self, key: str) -> bool:
        """Whether the pipeline looks at a key of its bucket."""
        template = self._location.template
        if not can_be_stored(key) or len(key.encode()) > KEY_BYTES:
            return False
        below = key.startswith(self._location.prefix) if template is None else template.matches(key, EVERYTHING)
        return below and self._keys.wants(key)
