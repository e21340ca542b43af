"""A trigger of Airflow's event-driven scheduling: it waits at a queue, and hands the keys that a bucket announces to an asset.

It lies in plugins/, because the triggerer has that folder on its path, and not dags/. Airflow's triggerer calls one producer for
each queue and keeps count: a message is removed from the queue only when the events that came of it are in Airflow's
database. Before that it comes again, after HIDDEN_SECONDS, and the cache makes a key that comes twice cheap.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

if TYPE_CHECKING:
    from tasks.announcements import Announced
    from tasks.settings import Settings
    from tasks.storage.sqs import Message, Queue

log = logging.getLogger(__name__)

# How long one long poll waits for a first message, and how long a batch is gathered once there is one.
WAIT_SECONDS = 20
GATHER_SECONDS = 5.0
MOST_MESSAGES = 5_000

# What one event of an asset carries at the most. Airflow sends it with each task of the run that it starts.
MOST_KEYS = 2_000
MOST_BYTES = 128 * 1024

# Longer than the triggerer waits for its database ([triggerer] shared_stream_ack_timeout is 300 seconds).
HIDDEN_SECONDS = 600

PAUSES = (1.0, 5.0, 15.0, 60.0)

Answer = TypeVar("Answer")


class QueueTrigger(BaseEventTrigger):
    """Fires with {"keys": [...]} for what a pipeline wants of the objects that a queue announces.

    Pipelines may share a queue: it is read once, and each takes what is its own.
    """

    def __init__(self, queue: str, images: str, include: Sequence[str], exclude: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.queue, self.images, self.include, self.exclude = queue, images, list(include), list(exclude)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it anew."""
        values = {"queue": self.queue, "images": self.images, "include": self.include, "exclude": self.exclude}
        return "afterimage_events.QueueTrigger", values

    def shared_stream_key(self) -> tuple[str, str]:
        """Triggers of one queue share what reads it."""
        return "afterimage", self.queue

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> QueueProducer:
        """What reads the queue, and removes what was handed on."""
        return QueueProducer(kwargs["queue"])

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """The keys that this pipeline wants, in events of a bounded size."""
        from tasks.announcements import Wanted
        from tasks.listing import KeyFilter

        wanted = Wanted(self.images, KeyFilter(self.include, self.exclude))
        async for announced in shared_stream:
            keys = sorted({one.key for one in announced if wanted.holds(one)})
            log.info("%d objects were announced, %d of them under %s", len(announced), len(keys), self.images)
            for part in bounded(keys):
                yield TriggerEvent({"keys": part})  # type: ignore[no-untyped-call]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Where nobody says that an event was stored: a message is removed when the next event is asked for."""
        producer = QueueProducer(self.queue)
        try:
            async for announced, receipts in producer.open_stream():
                async for event in self.filter_shared_stream(_one(announced)):
                    yield event
                await producer.remove(receipts)
        finally:
            await producer.aclose()


async def _one(announced: Sequence[Announced]) -> AsyncIterator[Sequence[Announced]]:
    yield announced


def bounded(keys: Sequence[str]) -> Iterator[list[str]]:
    """The keys in parts of at most MOST_KEYS keys and MOST_BYTES bytes of JSON."""
    part: list[str] = []
    size = 0
    for key in keys:
        length = len(json.dumps(key)) + 2
        if part and (len(part) == MOST_KEYS or size + length > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(key)
        size += length
    if part:
        yield part


class QueueProducer(SharedStreamProducer):
    """Reads one queue for as long as somebody wants it. Nothing that goes wrong there ends it: it says so, pauses, and goes on.

    boto3 blocks, so it has threads of its own, one to wait and one to remove: those of the event loop are few, and all triggers
    share them.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._thread = ThreadPoolExecutor(2, thread_name_prefix="afterimage-queue")
        self._queue: Queue | None = None

    async def open_stream(self) -> AsyncIterator[tuple[list[Announced], list[str]]]:
        """Batches of what was announced, with the receipts of their messages."""
        failures = 0
        while True:
            try:
                messages = await self._gathered()
                failures = 0
            except Exception as error:
                pause = PAUSES[min(failures, len(PAUSES) - 1)]
                log.error("%s: %s. It is asked again in %.0f s.", type(error).__name__, error, pause)
                failures, self._queue = failures + 1, None  # Credentials may have been renewed by then.
                await asyncio.sleep(pause)
                continue
            if messages:
                yield _read(messages), [message.receipt for message in messages]

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """Remove the messages whose events are in Airflow's database; the others come again."""
        receipts = [receipt for item in batch if item.outcome.is_clean for receipt in item.broker_payload]
        kept = sum(len(item.broker_payload) for item in batch if not item.outcome.is_clean)
        if kept:
            log.warning("%d messages of %s could not be handed on. They come again.", kept, self._url)
        if receipts:
            await self.remove(receipts)

    async def remove(self, receipts: Sequence[str]) -> None:
        """Remove messages; what cannot be removed comes again, and costs a look into the cache."""
        try:
            queue = await self._open()
            left = await self._call(lambda: queue.remove(receipts))
        except Exception as error:
            log.warning("%d messages were handed on and not removed: %s. They come again.", len(receipts), error)
            return
        if left:
            log.warning("%d messages of %s were handed on and not removed. They come again.", left, self._url)

    async def aclose(self) -> None:
        """Let the thread end with the poll that it is in."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _gathered(self) -> list[Message]:
        """The first messages that come, and what comes within some seconds after them."""
        queue = await self._open()
        messages = await self._call(lambda: queue.receive(WAIT_SECONDS, HIDDEN_SECONDS))
        ends, more = time.monotonic() + GATHER_SECONDS, bool(messages)
        while more and time.monotonic() < ends and len(messages) < MOST_MESSAGES:
            found = await self._call(lambda: queue.receive(1, HIDDEN_SECONDS))
            messages, more = messages + found, bool(found)
        return messages

    async def _open(self) -> Queue:
        from tasks.storage.sqs import Queue

        if self._queue is None:
            settings = await _settings()
            self._queue = await self._call(lambda: Queue(self._url, settings))
        return self._queue

    async def _call(self, function: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _read(messages: Sequence[Message]) -> list[Announced]:
    """What messages announce. What is no such message is dropped with a line in the log."""
    from tasks.announcements import objects_in

    announced: list[Announced] = []
    for message in messages:
        try:
            announced += objects_in(message.body)
        except ValueError as error:
            log.warning("Dropped a message that announces no object: %s. It begins with %.200r", error, message.body)
    return announced


async def _settings() -> Settings:
    """The environment's settings; the Connection afterimage_storage wins over them, as in tasks."""
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowException, AirflowRuntimeError

    from tasks.settings import connection_overrides, load_settings

    try:
        found = await Connection.async_get("afterimage_storage")
    except (AirflowException, AirflowRuntimeError):
        return load_settings()
    # Here the Connection's own extra_dejson would wait for the event loop that it runs in.
    storage = SimpleNamespace(login=found.login, password=found.password, extra_dejson=await found.aextra_dejson())
    return load_settings(**connection_overrides(None, storage))
