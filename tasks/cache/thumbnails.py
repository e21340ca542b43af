"""Which thumbnails have nothing in the cache that they belong to."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, select, tuple_

from tasks.cache.runs import Staging
from tasks.cache.schema import failure, image, run

CHUNK = 500


def forgotten_digests(connection: Connection, staging: Staging, digests: Mapping[str, bytes]) -> set[bytes]:
    """Of {key: digest} of a run's source: the digests that no image of any source has, nor the failure of that key."""
    source_no = connection.execute(select(run.c.source_no).where(run.c.run_no == staging.run_no)).scalar_one()
    remembered: set[bytes] = set()
    ordered = sorted(digests.items())
    for start in range(0, len(ordered), CHUNK):
        some = ordered[start : start + CHUNK]
        found = [
            select(image.c.digest).where(image.c.digest.in_({digest for _, digest in some})),
            select(failure.c.digest).where(
                failure.c.source_no == source_no, tuple_(failure.c.key, failure.c.digest).in_(some)
            ),
        ]
        for query in found:
            remembered.update(bytes(digest) for (digest,) in connection.execute(query.distinct()))
    return set(digests.values()) - remembered
