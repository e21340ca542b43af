"""Where thumbnails lie: PREFIX/ab/abcd....jpg in a bucket or below a folder, by the digest of the image's bytes.

A name is made of 64 hex digits and of nothing else, so no text of a user reaches a path. What is given out begins and ends as
a JPEG does and is small, whatever others have put into the place.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from tasks.errors import AccessDenied, ConfigurationError, StorageError, TransientStorageError
from tasks.location import Location

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from tasks.settings import Settings

MOST_BYTES = 256 * 1024  # of a thumbnail that is given out; ours have 2 to 15 thousand
START, END = b"\xff\xd8\xff", b"\xff\xd9"

_DIGEST = re.compile(r"[0-9a-f]{64}")

# There is no such name, or it is a link or lies behind one, which is not followed.
_ABSENT = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)

_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 3, 10, 2


class ThumbnailStore(Protocol):
    """The thumbnails of one place, by digests of 64 hex digits. Its calls may come from several threads at once.

    All raise AccessDenied, TransientStorageError or ConfigurationError (no such bucket, no folder, no digest).
    """

    @property
    def writers(self) -> int:
        """How many writes at the same time make sense."""
        ...

    def put(self, digest: str, jpeg: bytes) -> None:
        """Write a thumbnail, over an older one if there is one; nobody ever sees half of it."""
        ...

    def get(self, digest: str) -> bytes | None:
        """A thumbnail; None where there is none, or something that is no small JPEG."""
        ...

    def has(self, digest: str) -> bool:
        """Whether something lies in its place."""
        ...

    def delete(self, digest: str) -> bool:
        """Remove it; whether there was one."""
        ...


def open_thumbnails(location: Location, settings: Settings) -> ThumbnailStore:
    """The thumbnails of a location; nothing is sent or made before the first call."""
    if location.scheme == "file":
        return FolderThumbnails(os.path.join(location.root, location.prefix))
    return BucketThumbnails(location.root, location.prefix, settings)


def place_of(digest: str) -> tuple[str, str]:
    """The folder and the name of a thumbnail. Raises ConfigurationError for what is no digest."""
    if not _DIGEST.fullmatch(digest):
        raise ConfigurationError(f"{digest[:80]!r} is no digest: give the 64 hex digits of a sha256, in small letters.")
    return digest[:2], f"{digest}.jpg"


def _checked(data: bytes) -> bytes | None:
    is_small_jpeg = len(data) <= MOST_BYTES and data.startswith(START) and data.endswith(END)
    return data if is_small_jpeg else None


class FolderThumbnails:
    """Below a folder, which is made with the first thumbnail. A link in it is not followed, wherever it leads."""

    writers = 2

    def __init__(self, root: str) -> None:
        self.root = root

    def put(self, digest: str, jpeg: bytes) -> None:
        """See ThumbnailStore.put. A process that is killed in it leaves a name with a dot in front, which `delete` removes."""
        folder, name = place_of(digest)
        with self._told(digest), self._folder(folder, make=True) as inside:
            scratch = f".{digest}.{uuid.uuid4().hex}"
            handle = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=inside)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(jpeg)
                    os.fchmod(file.fileno(), 0o644)  # The API server may run as another user.
                os.replace(scratch, name, src_dir_fd=inside, dst_dir_fd=inside)
            except BaseException:
                with suppress(OSError):
                    os.unlink(scratch, dir_fd=inside)
                raise

    def get(self, digest: str) -> bytes | None:
        """See ThumbnailStore.get."""
        folder, name = place_of(digest)
        with self._told(digest):
            try:
                with self._folder(folder) as inside:
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    handle = os.open(name, flags, dir_fd=inside)
            except OSError as error:
                if error.errno in _ABSENT:
                    return None
                raise
            with os.fdopen(handle, "rb") as file:
                is_file = stat.S_ISREG(os.fstat(handle).st_mode)
                return _checked(file.read(MOST_BYTES + 1)) if is_file else None

    def has(self, digest: str) -> bool:
        """See ThumbnailStore.has."""
        folder, name = place_of(digest)
        with self._told(digest):
            try:
                with self._folder(folder) as inside:
                    os.stat(name, dir_fd=inside, follow_symlinks=False)
            except OSError as error:
                if error.errno in _ABSENT:
                    return False
                raise
            return True

    def delete(self, digest: str) -> bool:
        """See ThumbnailStore.delete; what a killed process left of it goes as well."""
        folder, name = place_of(digest)
        found = False
        with self._told(digest):
            try:
                with self._folder(folder) as inside:
                    for entry in os.listdir(inside):
                        if entry == name or entry.startswith(f".{digest}."):
                            os.unlink(entry, dir_fd=inside)
                            found = found or entry == name
            except FileNotFoundError:
                return found
        return found

    @contextmanager
    def _folder(self, name: str, *, make: bool = False) -> Iterator[int]:
        """One of the 256 folders, open. Raises FileNotFoundError, or another OSError where it is a link."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            inside = self._open(name, flags)
        except FileNotFoundError:
            if not make:
                raise
            os.makedirs(self.root, exist_ok=True)
            with suppress(FileExistsError):
                os.mkdir(os.path.join(self.root, name))
            inside = self._open(name, flags)
        try:
            yield inside
        finally:
            os.close(inside)

    def _open(self, name: str, flags: int) -> int:
        root = os.open(self.root, flags)
        try:
            return os.open(name, flags | os.O_NOFOLLOW, dir_fd=root)
        finally:
            os.close(root)

    @contextmanager
    def _told(self, digest: str) -> Iterator[None]:
        """The system's errors as ours."""
        what = f"The thumbnail {digest[:12]}... in {self.root}"
        try:
            yield
        except PermissionError as error:
            raise AccessDenied(f"{what}: {error.strerror}. Give this user the right to the folder.") from error
        except OSError as error:
            raise TransientStorageError(
                f"{what}: {error.strerror}. Look at the folder: links in it are not followed."
            ) from error


class BucketThumbnails:
    """Under a prefix of a bucket."""

    writers = 16

    def __init__(self, bucket: str, prefix: str, settings: Settings) -> None:
        self.bucket = bucket
        self.prefix = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        self._settings = settings
        self._made: S3Client | None = None

    def put(self, digest: str, jpeg: bytes) -> None:
        """See ThumbnailStore.put."""
        key = self._key(digest)
        with self._told(key, "s3:PutObject"):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=jpeg, ContentType="image/jpeg")

    def get(self, digest: str) -> bytes | None:
        """See ThumbnailStore.get."""
        key = self._key(digest)
        with self._told(key, "s3:GetObject and s3:ListBucket"):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=key)
            except self._client.exceptions.NoSuchKey:
                return None
            with answer["Body"] as body:
                return _checked(body.read(MOST_BYTES + 1))

    def has(self, digest: str) -> bool:
        """See ThumbnailStore.has."""
        key = self._key(digest)
        with self._told(key, "s3:GetObject and s3:ListBucket"):
            return self._has(key)

    def delete(self, digest: str) -> bool:
        """See ThumbnailStore.delete. In a bucket that keeps versions, older ones stay until a rule of the bucket removes them."""
        key = self._key(digest)
        with self._told(key, "s3:GetObject, s3:ListBucket and s3:DeleteObject"):
            found = self._has(key)
            self._client.delete_object(Bucket=self.bucket, Key=key)
            return found

    def _has(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                return False
            raise
        return True

    def _key(self, digest: str) -> str:
        folder, name = place_of(digest)
        return f"{self.prefix}{folder}/{name}"

    @property
    def _client(self) -> S3Client:
        """Made with the first call. Two threads may make one each, and one of them is dropped."""
        from tasks.storage.s3 import client

        if self._made is None:
            self._made = client(
                self._settings,
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                max_pool_connections=self.writers,
            )
        return self._made

    @contextmanager
    def _told(self, key: str, right: str) -> Iterator[None]:
        """botocore's errors as ours."""
        try:
            yield
        except (StorageError, ConfigurationError):
            raise
        except Exception as error:
            _tell(error, f"The thumbnail s3://{self.bucket}/{key}", right)


def _tell(error: Exception, what: str, right: str) -> NoReturn:
    from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        raise AccessDenied(
            f"{what}: no S3 credentials were found. Set AFTERIMAGE_S3_ACCESS_KEY and _SECRET_KEY."
        ) from None
    if isinstance(error, ClientError):
        told: Any = error.response
        code, status = told.get("Error", {}).get("Code"), told.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            raise ConfigurationError(f"{what}: there is no such bucket. Create it, or correct `thumbnails`.") from None
        if status in (400, 401, 403):
            raise AccessDenied(f"{what}: {code or status}. Give these credentials {right} there.") from None
        raise TransientStorageError(f"{what}: {code or status}. Look at the store if it stays.") from error
    raise TransientStorageError(f"{what}: {type(error).__name__}: {error}. Look at the store if it stays.") from error
