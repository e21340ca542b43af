"""A folder as an object store. Keys are paths below it, with `/`.

A link that leads out of the folder is refused when it is read and passed over when it is listed: the folder may be
filled by others, and a link to /etc must not become an image. A file's etag is its size, its mtime in nanoseconds and
its inode, taken before and after the read, so that a file that changes during the read is not taken. A file that its
writer has left half done for longer than a read looks whole here; once it is whole, its etag is another, and the next
run reads it again.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tasks.errors import AccessDenied, ConfigurationError, ObjectChanged, ObjectVanished, TransientStorageError
from tasks.storage.base import PAGE_OBJECTS, Blob, ImageObject

log = logging.getLogger(__name__)


class LocalStore:
    """The files below one folder."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)

    is_ordered = False

    def pages(self, prefix: str, after: str | None = None) -> Iterator[list[ImageObject]]:
        """List the files whose key starts with `prefix`. Folders are walked one at a time; their files come in no order."""
        assert after is None, "the files of a folder come in no order"
        if not os.path.isdir(self.root):
            raise ConfigurationError(f"The folder {self.root} does not exist. Create it, or correct `images`.")
        page: list[ImageObject] = []
        start = self._start(prefix)
        for image in [] if start is None else self._walk(start, prefix):
            page.append(image)
            if len(page) == PAGE_OBJECTS:
                yield page
                page = []
        if page:
            yield page

    def head(self, key: str) -> ImageObject | None:
        """One file; see ObjectStore.head. A key that names a file in another way than a listing does names none."""
        if "\0" in key or os.path.normpath(key) != key or key.startswith(("/", "..")):
            return None
        path = Path(self.root, key)
        # As in a listing: links to folders are not walked into.
        return self._image(path, key) if os.path.realpath(path.parent) == str(path.parent) else None

    def begins_after(self, prefix: str) -> bool:
        """Never: files come in no order."""
        return False

    def first_key(self, prefix: str, after: str | None = None) -> str | None:
        """The least key, or the least one behind `after`. Every file is looked at: folders know no order."""
        keys = (image.key for page in self.pages(prefix) for image in page)
        return min((key for key in keys if after is None or key > after), default=None)

    def read(self, key: str, etag: str | None) -> Blob:
        """Read one file; see ObjectStore.read. A link out of the folder raises AccessDenied."""
        try:
            data, before, after = self._bytes(key)
        except (FileNotFoundError, NotADirectoryError):
            self._inside(key)  # A link out of the folder is refused, whether it leads to something or not.
            raise ObjectVanished(f"{key!r} is gone. Nothing to do: it is counted as vanished.") from None
        except PermissionError:
            raise AccessDenied(f"{key!r} may not be read by this user. Give it read permission.") from None
        except OSError as error:
            raise TransientStorageError(
                f"{key!r} could not be read: {error}. Check the disk, then run again."
            ) from error
        if data is None:
            raise ObjectVanished(f"{key!r} is no file any more. Nothing to do: it is counted as vanished.")
        found = _etag(before)
        if found != _etag(after) or (etag is not None and found != etag):
            raise ObjectChanged(f"{key!r} was written while it was read, or since it was listed. It is read again.")
        return Blob(data, found, _moment(before))

    def _bytes(self, key: str) -> tuple[bytes | None, os.stat_result, os.stat_result]:
        """What is in a file, and its status before and after; None for what is no file. Raises OSError or AccessDenied.

        Where the open file really lies is asked of the system, in one call: resolving its path first takes one for each
        folder on the way, and each of them gives the interpreter's lock away.
        """
        handle = os.open(
            self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # a pipe would wait for its writer
        try:
            self._check_inside(key, handle)
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                return None, before, before
            parts = [os.read(handle, before.st_size)]
            while parts[-1] and sum(map(len, parts)) < before.st_size:
                parts.append(os.read(handle, before.st_size))
            return parts[0] if len(parts) == 1 else b"".join(parts), before, os.fstat(handle)
        finally:
            os.close(handle)

    def _check_inside(self, key: str, handle: int) -> None:
        try:
            path = os.readlink(f"/proc/self/fd/{handle}")
        except OSError:  # another system than Linux, or no /proc
            path = os.path.realpath(self._path(key))
        self._refuse_outside(key, path)

    def sign(self, key: str, seconds: int) -> str:
        """A file:// URL; it needs no signature and does not expire."""
        return Path(self._inside(key)).as_uri()

    def _start(self, prefix: str) -> str | None:
        """The deepest folder that holds everything under the prefix; None where it is a link, which is not followed."""
        folder = prefix.rpartition("/")[0]
        path = os.path.normpath(os.path.join(self.root, folder.lstrip("/")))
        return self._inside(folder) if os.path.realpath(path) == path else None

    def _path(self, key: str) -> str:
        if "\0" in key:
            raise AccessDenied(f"{key!r} holds a NUL byte, which no file's name does. Correct the key.")
        return os.path.join(self.root, key.lstrip("/"))

    def _inside(self, key: str) -> str:
        path = os.path.realpath(self._path(key))
        self._refuse_outside(key, path)
        return path

    def _refuse_outside(self, key: str, path: str) -> None:
        if path != self.root and not path.startswith(self.root.rstrip("/") + "/"):
            raise AccessDenied(f"{key!r} leads out of {self.root}. Links that leave the folder are refused: remove it.")

    def _walk(self, folder: str, prefix: str) -> Iterator[ImageObject]:
        """The files of a folder as the system gives them, then those of its folders: only names of folders are kept."""
        folders: list[str] = []
        above = "" if folder == self.root else os.path.relpath(folder, self.root) + "/"
        for entry in self._entries(folder):
            key = above + entry.name
            if entry.is_dir(follow_symlinks=False):
                if _may_hold(f"{key}/", prefix):
                    folders.append(entry.path)
            elif key.startswith(prefix):
                image = self._image(entry, key)
                if image is not None:
                    yield image
        for inner in sorted(folders):
            yield from self._walk(inner, prefix)

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as found:
                yield from found
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError as error:
            raise AccessDenied(f"The folder {folder} may not be read: {error}. Give it read permission.") from None
        except OSError as error:
            raise TransientStorageError(
                f"The folder {folder} could not be listed: {error}. Check the disk, then run again."
            ) from error

    def _image(self, entry: os.DirEntry[str] | Path, key: str) -> ImageObject | None:
        try:
            if entry.is_symlink():  # Folders on the way are none: links to folders are not walked into.
                self._inside(key)
            key.encode("utf-8")
            found = entry.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (AccessDenied, UnicodeEncodeError, OSError) as error:  # OSError: a link that leads to itself.
            log.warning("Passed over %r: %s", key, error)
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return ImageObject(key, _etag(found), found.st_size, _moment(found))


def _may_hold(folder: str, prefix: str) -> bool:
    return folder.startswith(prefix) or prefix.startswith(folder)


def _etag(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"


def _moment(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)
