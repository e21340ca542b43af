"""The queue of a bucket's announcements: a real queue server, and Airflow's own shared streams, which say what was stored."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import afterimage_events
import boto3
import pytest
from afterimage_events import QueueProducer, QueueTrigger, bounded
from airflow.triggers.base import TriggerEvent
from airflow.triggers.shared_stream import SharedStreamManager

from tasks.errors import ConfigurationError, TransientStorageError
from tasks.pipelines import RASTER_SUFFIXES
from tasks.settings import load_settings
from tasks.storage.sqs import Queue
from tests.unit.test_announcements import bridged, record, records, wrapped


@pytest.fixture
def queue(s3_endpoint: str, s3_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty queue, and settings in the environment that reach it."""
    for name, value in s3_settings.items():
        monkeypatch.setenv(f"AFTERIMAGE_{name.upper()}", value)
    monkeypatch.setattr(afterimage_events, "WAIT_SECONDS", 1)
    monkeypatch.setattr(afterimage_events, "GATHER_SECONDS", 1.0)
    name = f"queue-{uuid.uuid4().hex[:8]}"
    sqs = boto3.client(
        "sqs", endpoint_url=s3_endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    sqs.create_queue(QueueName=name)
    return f"{s3_endpoint}/123456789012/{name}"


@pytest.fixture
def sqs(queue: str) -> Any:
    """What sends to the queue, and looks into it."""
    return Queue(queue, load_settings())._client


def send(sqs: Any, queue: str, *bodies: str) -> None:
    for body in bodies:
        sqs.send_message(QueueUrl=queue, MessageBody=body)


def left(sqs: Any, queue: str) -> int:
    """Messages that are not removed, hidden or not."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    return sum(
        int(count) for count in sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"].values()
    )


class Triggerer:
    """What Airflow's triggerer does with triggers of one queue: shared streams, and its word that an event was stored."""

    def __init__(self, *triggers: QueueTrigger, patience: float = 60) -> None:
        self.events: dict[int, list[TriggerEvent]] = {number: [] for number in range(len(triggers))}
        self._triggers = triggers
        self._manager = SharedStreamManager(ack_timeout=patience)
        self._unsaid: list[int] = []

    async def __aenter__(self) -> Triggerer:
        self.tasks = [asyncio.create_task(self._run(number)) for number in self.events]
        return self

    async def __aexit__(self, *_error: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._manager.stop_all()

    async def _run(self, number: int) -> None:
        trigger = self._triggers[number]
        key = trigger.shared_stream_key()
        stream = self._manager.subscribe(trigger_id=number, trigger=trigger, key=key)
        async for event in trigger.filter_shared_stream(stream):
            self.events[number].append(event)
            bound = self._manager.bind_pending_event(trigger_id=number, key=key)
            if bound is not None:
                self._unsaid.append(bound)

    def say_stored(self) -> None:
        """The events up to now are in Airflow's database."""
        self._manager.confirm_persisted(self._unsaid)
        self._unsaid = []

    def keys(self, number: int = 0) -> list[str]:
        return [key for event in self.events[number] for key in event.payload["keys"]]


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def trigger(queue: str, images: str = "s3://bucket/raw/", exclude: tuple[str, ...] = ()) -> QueueTrigger:
    return QueueTrigger(queue, images, RASTER_SUFFIXES, exclude)


def test_many_messages_become_one_event_and_are_removed_when_it_is_stored(queue: str, sqs: Any) -> None:
    send(sqs, queue, *(records(record(f"raw/{number:02}.png")) for number in range(25)))
    send(sqs, queue, records(record("raw/00.png")), wrapped(bridged("raw/odd +%.png")))

    async def watch() -> None:
        async with Triggerer(trigger(queue)) as triggerer:
            await until(lambda: bool(triggerer.events[0]))
            assert triggerer.keys() == [*(f"raw/{number:02}.png" for number in range(25)), "raw/odd +%.png"]
            assert len(triggerer.events[0]) == 1
            await asyncio.sleep(0.5)
            assert left(sqs, queue) == 27, "nothing is removed before Airflow has stored the event"
            triggerer.say_stored()
            await until(lambda: left(sqs, queue) == 0)

    asyncio.run(watch())


def test_what_was_not_stored_comes_again(queue: str, sqs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the triggerer is killed between the event and its database."""
    monkeypatch.setattr(afterimage_events, "HIDDEN_SECONDS", 1)
    send(sqs, queue, records(record("raw/a.png")))

    async def watch() -> list[str]:
        async with Triggerer(trigger(queue)) as triggerer:
            await until(lambda: bool(triggerer.events[0]))
            return triggerer.keys()

    assert asyncio.run(watch()) == asyncio.run(watch()) == ["raw/a.png"]
    assert left(sqs, queue) == 1


def test_what_airflow_could_not_store_is_not_removed(queue: str, sqs: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its database is away: the triggerer gives the event up after a while."""
    send(sqs, queue, records(record("raw/a.png")))

    async def watch() -> None:
        async with Triggerer(trigger(queue), patience=0.5) as triggerer:
            await until(lambda: triggerer.tasks[0].done())
            assert type(triggerer.tasks[0].exception()).__name__ == "AckTimeout"
            await until(lambda: "1 messages" in caplog.text)
            await asyncio.sleep(0.5)
            assert left(sqs, queue) == 1

    with caplog.at_level("WARNING"):
        asyncio.run(watch())
    assert "could not be handed on. They come again." in caplog.text


def test_what_nobody_wants_is_dropped_with_a_line(queue: str, sqs: Any, caplog: pytest.LogCaptureFixture) -> None:
    send(
        sqs,
        queue,
        "no\nJSON",
        records(record("raw/a.txt"), record("elsewhere/a.png"), record("raw/a.png", bucket="other")),
    )
    send(sqs, queue, json.dumps({"Event": "s3:TestEvent"}), records(record("raw/a.png", "ObjectRemoved:Delete")))

    async def watch() -> None:
        async with Triggerer(trigger(queue)) as triggerer:
            await until(lambda: left(sqs, queue) == 0)
            assert triggerer.events[0] == []

    with caplog.at_level("INFO"):
        asyncio.run(watch())
    assert r"Dropped a message that announces no object: it is no JSON. It begins with 'no\nJSON'" in caplog.text
    assert "3 objects were announced, 0 of them under s3://bucket/raw/" in caplog.text


def test_pipelines_share_a_queue_and_each_takes_its_own(queue: str, sqs: Any) -> None:
    async def watch() -> None:
        async with Triggerer(trigger(queue), trigger(queue, "s3://bucket/other/")) as triggerer:
            await asyncio.sleep(0.2)
            send(sqs, queue, records(record("raw/a.png"), record("other/b.png"), record("third/c.png")))
            await until(lambda: triggerer.keys(0) == ["raw/a.png"] and triggerer.keys(1) == ["other/b.png"])
            triggerer.say_stored()
            await until(lambda: left(sqs, queue) == 0)

    asyncio.run(watch())


def test_a_queue_that_fails_is_asked_again(
    queue: str, sqs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(afterimage_events, "PAUSES", (0.1,))
    receive, calls = Queue.receive, []

    def failing(self: Queue, *given: Any) -> Any:
        calls.append(given)
        if len(calls) < 3:
            raise TransientStorageError("The queue: 503.")
        return receive(self, *given)

    monkeypatch.setattr(Queue, "receive", failing)
    send(sqs, queue, records(record("raw/a.png")))

    async def watch() -> None:
        async with Triggerer(trigger(queue)) as triggerer:
            await until(lambda: triggerer.keys() == ["raw/a.png"])

    asyncio.run(watch())
    assert caplog.text.count("TransientStorageError: The queue: 503.. It is asked again") == 2


def test_without_shared_streams_it_runs_alone(queue: str, sqs: Any) -> None:
    send(sqs, queue, records(record("raw/a.png")))

    async def watch() -> None:
        events = trigger(queue).run()
        assert (await anext(events)).payload == {"keys": ["raw/a.png"]}
        assert left(sqs, queue) == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 3)
        assert left(sqs, queue) == 0

    asyncio.run(watch())


def test_an_event_has_a_bounded_size() -> None:
    assert list(bounded([])) == []
    assert [len(part) for part in bounded([str(number) for number in range(4_500)])] == [2_000, 2_000, 500]
    long = [f"{number:04}" + "\u00e4" * 500 for number in range(200)]
    parts = list(bounded(long))
    assert [key for part in parts for key in part] == long
    assert max(len(json.dumps(part)) for part in parts) <= 128 * 1024


def test_the_triggerer_makes_it_anew(queue: str) -> None:
    name, values = trigger(queue, exclude=("x/*",)).serialize()
    assert name == "afterimage_events.QueueTrigger"
    assert QueueTrigger(**json.loads(json.dumps(values))).serialize() == (name, values)
    assert isinstance(QueueTrigger.create_shared_stream_producer(values), QueueProducer)


def test_errors_of_the_queue_have_names(queue: str, s3_endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no-queue does not exist. Create it, or correct `events`"):
        Queue(f"{s3_endpoint}/123456789012/no-queue", load_settings()).receive(0, 1)
    with pytest.raises(TransientStorageError, match="look at the network"):
        Queue("http://127.0.0.1:1/1/q", load_settings()).receive(0, 1)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/1/q", "eu-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "cn-north-1"),
        ("https://sqs-fips.us-gov-west-1.amazonaws.com/1/q", "us-gov-west-1"),
        ("https://vpce-1.sqs.us-west-2.vpce.amazonaws.com/1/q", "us-west-2"),
        ("http://localhost:9324/1/q", "us-east-1"),
    ],
)
def test_the_url_names_the_region(url: str, region: str) -> None:
    assert Queue(url, load_settings())._client.meta.region_name == region
