"""An images URI, taken apart: `s3://bucket/raw/{{ ds }}/` or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.errors import ConfigurationError
from tasks.uris import local_path, without_secrets
from tasks.window import DateTemplate


@dataclass(frozen=True, slots=True)
class Location:
    """Where images lie.

    `root` is the bucket or the absolute folder and `prefix` what every key starts with, so that two pipelines over
    one bucket have the same root. `template` is set where the prefix holds date fields.
    """

    scheme: Literal["file", "s3"]
    root: str
    prefix: str
    template: DateTemplate | None = None

    def source(self, endpoint: str | None) -> str:
        """The name of the source: store plus bucket or root folder, never a prefix."""
        if self.scheme == "file":
            return f"file://{self.root}"
        return f"s3://{self.root}" if endpoint is None else f"s3://{self.root}@{endpoint.rstrip('/')}"


def parse_location(uri: str) -> Location:
    """Take an images URI apart. Raises ConfigurationError where it names no bucket or an unknown store.

    S3 keys may hold `?`, `#` and `%`, so this is no URL parser: all that follows the bucket is the prefix, as it is.
    """
    if "\0" in uri:
        raise ConfigurationError(f"The images URI {uri!r} holds a NUL, which no listing takes. Correct it.")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _folder(uri)
    if scheme == "file":
        return _folder(rest)
    if scheme != "s3":
        raise ConfigurationError(
            f"{without_secrets(uri)!r} starts with {scheme}://, which no store serves. Use s3://BUCKET/PREFIX or a folder."
        )
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise ConfigurationError(f"{uri!r} names no bucket. Write s3://BUCKET/PREFIX.")
    # It would be part of the source's name, which everybody may read. A secret may hold a slash, so none of it is shown.
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
        raise ConfigurationError(
            "The address holds a key or a port beside the bucket's name. Write s3://BUCKET/PREFIX; keys belong into "
            "AFTERIMAGE_S3_ACCESS_KEY and AFTERIMAGE_S3_SECRET_KEY, the server into AFTERIMAGE_S3_ENDPOINT."
        )
    return Location("s3", bucket, prefix, DateTemplate.of(prefix))


def _folder(path: str) -> Location:
    """A folder is its own root; with a date template the root is the last whole folder before the first field."""
    if DateTemplate.of(path) is None:
        return Location("file", str(local_path(path).resolve()), "")
    stem, field, rest = path.partition("{{")
    folder, slash, start = stem.rpartition("/")
    prefix = start + field + rest
    return Location("file", str(local_path(folder or slash or ".").resolve()), prefix, DateTemplate.of(prefix))
