"""The cache as one shard sees it: what is open, what is known, and where its work is committed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from tasks.cache import attempts, commits, reconciling, staging
from tasks.cache.blocking import blocked_digests
from tasks.cache.database import reading
from tasks.cache.models import predicted_digests
from tasks.cache.outcome import Finished, Progress
from tasks.cache.thumbnails import forgotten_digests
from tasks.errors import AfterimageError
from tasks.storage.base import ImageObject

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardLedger:
    """The rows of one shard, over one engine; threads may share it."""

    engine: Engine
    scope: commits.Scope

    def outcomes(self) -> dict[str, int]:
        """{outcome: rows}, with `open` for rows that have none."""
        return staging.shard_outcomes(self.engine, self.scope.staging, self.scope.shard)

    def promised(self) -> int | None:
        """How many rows it has, less what was erased since; None where the shard is not known any more."""
        return staging.promised_rows(self.engine, self.scope.staging, self.scope.shard)

    def take_rows(self) -> Iterator[ImageObject]:
        """The rows that have no outcome yet, in key order, a page at a time. Each page is noted before it is given out."""
        for page in staging.open_pages(self.engine, self.scope.staging, self.scope.shard):
            attempts.advance(self.engine, self.scope, page[-1].key)
            yield from page

    def suspects(self) -> set[str]:
        """Keys of the shard that were in flight when a process died which had them in hand, this shard's or another one."""
        return attempts.suspects(self.engine, self.scope)

    def end_attempt(self) -> None:
        """Say that an attempt is over, and was not killed. Where that cannot be said, the next one is careful for nothing."""
        try:
            attempts.end(self.engine, self.scope)
        except (AfterimageError, SQLAlchemyError) as error:
            log.warning("The end of this attempt could not be noted: %s", error)

    def candidates(self, avoid: Collection[str]) -> list[ImageObject]:
        """Some objects of the shard to try the storage with."""
        return reconciling.read_candidates(self.engine, self.scope.staging, self.scope.shard, avoid)

    def predicted(self, digests: Collection[bytes]) -> set[bytes]:
        """Those that have a prediction of the model.

        With force only what this very run predicted counts, so that each digest is predicted once in the run.
        """
        scope = self.scope
        return predicted_digests(self.engine, scope.model_no, set(digests), scope.staging if scope.force else None)

    def blocked(self, digests: Collection[bytes]) -> set[bytes]:
        """Those that were erased for good, and are not to be looked at."""
        with reading(self.engine) as connection:
            return blocked_digests(connection, set(digests))

    def forgotten(self, digests: Mapping[str, bytes]) -> set[bytes]:
        """Of {key: digest}: the digests that neither an image has nor the failure of that key, because they were erased."""
        with reading(self.engine) as connection:
            return forgotten_digests(connection, self.scope.staging, digests)

    def commit(self, finished: Sequence[Finished], progress: Progress) -> dict[str, str]:
        """{key: outcome} of the rows that this commit closed. Raises StaleGeneration."""
        return commits.commit(self.engine, self.scope, finished, progress)

    def record(self, progress: Progress) -> None:
        """At the end of an attempt: the seconds of its last commit are known only now."""
        commits.record_progress(self.engine, self.scope, progress)

    def spent(self) -> tuple[float, dict[str, Any]]:
        """Seconds, and the stages' times, that earlier attempts committed."""
        with reading(self.engine) as connection:
            return commits.spent(connection, self.scope)
