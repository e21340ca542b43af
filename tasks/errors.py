"""Everything that Afterimage raises on purpose.

    AfterimageError
    ├── ConfigurationError          a setting, a pipelines.toml table, a URI or a parameter is wrong
    │   ├── ModelError              a bundle cannot be used: missing file, wrong shape, wrong class count
    │   └── MigrationNeeded         the cache's tables are older or newer than this program
    ├── DatabaseUnavailable         the cache's database does not answer: worth another try
    ├── StorageError                an object could not be listed or read
    │   ├── ObjectVanished          404: it was listed, and is gone
    │   ├── ObjectChanged           412: it was overwritten since it was listed
    │   ├── AccessDenied            403: these credentials may not read it
    │   └── TransientStorageError   time-outs, 5xx, throttling, broken connections: worth another try
    ├── ImageError                  the bytes of one image cannot be used; carries a reason code
    └── RunError                    a run cannot go on, or must not be called a success
        ├── StaleGeneration         list_images ran again while this worker held older staging
        ├── StagingLost             the staging rows that a shard was promised are not there
        ├── ListingIncomplete       ranges of the listing are open: what lies in them would be taken for deleted
        ├── ModelChanged            the bundle is not the one that deduplicate saw
        ├── GlobalFault             nothing can be read or predicted, so no image is to blame
        ├── WorkersLost             the processes that shared a machine's work died again and again
        ├── ClusterUnavailable      a Ray cluster does not answer, or lost a shard again and again: worth another try
        ├── DecoderStalled          one image keeps a decoder busy for minutes: the next attempt decodes it apart
        ├── Interrupted             SIGTERM: the finished work is committed, the rest is open
        ├── InvariantViolation      listed != the sum of the outcomes
        ├── TooManyFailures         more than max_failure_rate of the images failed; all is committed
        └── DriftExceeded           the predictions have moved from the baseline by more than drift_limit; all is committed

This module imports nothing, so that DAG files may name its classes in a retry policy.
"""

from __future__ import annotations


class AfterimageError(Exception):
    """Base of all errors below; the message ends with what to do next."""


class ConfigurationError(AfterimageError):
    """A setting, a pipelines.toml table, a URI or a parameter is wrong."""


class ModelError(ConfigurationError):
    """A model bundle cannot be used."""


class MigrationNeeded(ConfigurationError):
    """The cache's tables do not have the version that this program was written for."""


class DatabaseUnavailable(AfterimageError):
    """The cache's database does not answer."""


class StorageError(AfterimageError):
    """An object could not be listed or read."""


class ObjectVanished(StorageError):
    """The object was listed and is gone."""


class ObjectChanged(StorageError):
    """The object was overwritten since it was listed."""


class AccessDenied(StorageError):
    """The credentials in use may not read this object."""


class TransientStorageError(StorageError):
    """The store or the network failed in a way that may pass."""


class ImageError(AfterimageError):
    """The bytes of one image cannot be used.

    `reason` is a code of the quarantine: empty, not_an_image, unsupported_format, truncated, too_many_pixels,
    decode_timeout or decoder_crash.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RunError(AfterimageError):
    """A run cannot go on, or must not be called a success."""


class StaleGeneration(RunError):
    """list_images ran again while this worker held older staging."""


class StagingLost(RunError):
    """The staging rows that a shard was promised are not there."""


class ListingIncomplete(RunError):
    """Ranges of a run's listing are not done."""


class ModelChanged(RunError):
    """The bundle is not the one that deduplicate saw."""


class GlobalFault(RunError):
    """Nothing can be read or predicted, so no image is to blame."""


class WorkersLost(RunError):
    """The processes that shared a machine's work died, and starting them anew did not help."""


class ClusterUnavailable(RunError):
    """A Ray cluster does not answer, or lost a shard again and again."""


class DecoderStalled(RunError):
    """Decoding of an image does not end; the next attempt decodes it in a process of its own."""


class Interrupted(RunError):
    """SIGTERM arrived: the finished work is committed, the rest is open."""


class InvariantViolation(RunError):
    """listed is not the sum of the outcomes."""


class TooManyFailures(RunError):
    """More than max_failure_rate of the images failed; everything is committed."""


class DriftExceeded(RunError):
    """The predictions have moved from the baseline by more than drift_limit; everything is committed."""


LASTING = (
    ConfigurationError,
    ModelChanged,
    StagingLost,
    ListingIncomplete,
    InvariantViolation,
    TooManyFailures,
    DriftExceeded,
)
"""Trying again cannot mend these; all else is tried again."""
