"""Keys a second: of the reader of listings beside botocore's, in turn, and of a listing from end to end beside boto3's.

    python -m benchmarks.scale.listing [--rounds 5] [--keys 200000]

The reader's are keys a second of one core (processor time) over recorded answers of a thousand keys. The listing's are by the
clock, over the synthetic store on the same two cores; beside them stands what client and store took of the processor.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from benchmarks.rounds import in_turn, spread
from benchmarks.scale.store import BUCKET, PAGE, SyntheticStore, page, serving_objects
from tasks.settings import load_settings
from tasks.storage.listing_answers import read_page
from tasks.storage.s3 import S3Store, client

PAGES = 20

OURS, OTHER_SHAPE, ENCODED, BOTOCORE = (
    "own reader",
    "own reader, unusual shape",
    "own reader, keys with %",
    "botocore's parser",
)
PAGES_OF_OURS, PAGES_OF_BOTO3 = "S3Store.pages", "boto3"


def recorded_answers() -> list[bytes]:
    """Answers as AWS words them, a thousand keys each."""
    found = [page(f"{BUCKET}10000000", {"continuation-token": str(number * 123_000)}) for number in range(PAGES)]
    return [body for body in found if body is not None]


def in_another_shape(body: bytes) -> bytes:
    """With a line for each entry, as no store is known to write it: it takes the road of any XML."""
    return body.replace(b"</Contents>", b"</Contents>\n")


def with_encoded_keys(body: bytes) -> bytes:
    """Keys as Hive writes its partitions, and with a blank."""
    return body.replace(b"<Key>raw/", b"<Key>raw%3Dday/photo%20")


def keys_per_second(read: Callable[[bytes], object], answers: Sequence[bytes]) -> float:
    """Keys a second of one core."""
    started = time.process_time()
    for body in answers:
        read(body)
    return PAGE * len(answers) / (time.process_time() - started)


def reader_rates(rounds: int, say: Callable[[str], None] = print) -> dict[str, list[float]]:
    """{reader: keys a second of one core in each round}; they come in turn."""
    answers = recorded_answers()
    contestants = {
        OURS: partial(keys_per_second, read_page, answers),
        ENCODED: partial(keys_per_second, read_page, list(map(with_encoded_keys, answers))),
        OTHER_SHAPE: partial(keys_per_second, read_page, list(map(in_another_shape, answers))),
        BOTOCORE: partial(keys_per_second, botocore_parser(), answers[: PAGES // 4]),
    }
    return in_turn(contestants, rounds, say)


def botocore_parser() -> Callable[[bytes], object]:
    """What boto3 does to an answer once (a listing costs it more: it also looks for an error in it, by ElementTree)."""
    from botocore.parsers import create_parser
    from botocore.session import get_session

    shape = get_session().get_service_model("s3").operation_model("ListObjectsV2").output_shape
    parser: Any = create_parser("rest-xml")
    return lambda body: parser.parse({"status_code": 200, "headers": {}, "body": body}, shape)


@dataclass(frozen=True, slots=True)
class Listing:
    """One listing: keys, seconds by the clock, and seconds of the processor of client and store."""

    keys: int
    seconds: float
    client: float
    store: float

    @property
    def rate(self) -> float:
        """Keys a second by the clock."""
        return self.keys / self.seconds


def measure_listing(store: SyntheticStore, pages: Callable[[], Any]) -> Listing:
    """List once."""
    before, started, processor = store.processor_seconds(), time.perf_counter(), time.process_time()
    keys = sum(len(found) for found in pages())
    seconds, own = time.perf_counter() - started, time.process_time() - processor
    return Listing(keys, seconds, own, store.processor_seconds() - before)


def listing_rates(
    store: SyntheticStore, keys: int, rounds: int, say: Callable[[str], None] = print
) -> dict[str, list[Listing]]:
    """{who lists: a listing for each round}; they come in turn, boto3 over a tenth of the keys."""
    settings = load_settings(**store.settings)
    ours = S3Store(f"{BUCKET}{keys}", settings)
    paginator = client(settings).get_paginator("list_objects_v2")

    def by_boto3() -> Any:
        return (answer.get("Contents", []) for answer in paginator.paginate(Bucket=f"{BUCKET}{keys // 10}"))

    contestants = {
        PAGES_OF_OURS: partial(measure_listing, store, partial(ours.pages, "")),
        PAGES_OF_BOTO3: partial(measure_listing, store, by_boto3),
    }
    return in_turn(contestants, rounds, say)


def tell(readers: Mapping[str, Sequence[float]], listings: Mapping[str, Sequence[Listing]]) -> None:
    """Medians, and the least and the greatest."""
    for name, rates in readers.items():
        least, most = spread(rates)
        print(f"{name:28} {median(rates):10,.0f} keys/s of a core   ({least:,.0f} to {most:,.0f})")
    for name, found in listings.items():
        least, most = spread([each.rate for each in found])
        own = 1e6 * median(each.client / each.keys for each in found)
        store = 1e6 * median(each.store / each.keys for each in found)
        print(
            f"{name:28} {median(each.rate for each in found):10,.0f} keys/s by the clock ({least:,.0f} to {most:,.0f}); of the "
            f"processor {own:.2f} microseconds a key here, {store:.2f} in the store"
        )


def main(rounds: int, keys: int) -> None:
    """Measure, and print."""
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    readers = reader_rates(rounds, lambda _line: None)
    with serving_objects() as store:
        listings = listing_rates(store, keys, rounds, lambda _line: None)
    tell(readers, listings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=200_000)
    asked = parser.parse_args()
    main(asked.rounds, asked.keys)
