"""What a database says when it refuses, and what to do about it.

PostgreSQL names its refusals by SQLSTATE, SQLite by codes of its own. A connection that cannot be made has neither: then
the server's words stand in the message.
"""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

# A deadlock and a serialization failure: the whole transaction was rolled back.
_VICTIM = ("40P01", "40001")
# The connection broke, or the server ended it: told to, after a crash, or while it starts and stops.
_LOST = ("08", "57P01", "57P02", "57P03")

_BY_SQLSTATE = {
    "53300": "has no connection left: {words}. Raise max_connections, or run fewer workers at a time.",
    "53100": "has no room on its disk: {words}. Make room there; nothing of this transaction was kept.",
    "53200": "has no memory left: {words}. Give it more, or run fewer workers at a time.",
    "25006": "takes no writes: {words}. It is a stand-by, or default_transaction_read_only is on: name the primary in "
    "AFTERIMAGE_DATABASE.",
}
_BY_SQLITE_NAME = {
    "SQLITE_BUSY": "is held by another process for longer than the busy time-out: {words}. End that process, or use "
    "PostgreSQL for many workers.",
    "SQLITE_FULL": "has no room on its disk: {words}. Make room there; nothing of this transaction was kept.",
    "SQLITE_READONLY": "takes no writes: {words}. Give this user the right to write the file and its folder.",
    "SQLITE_CANTOPEN": "cannot be reached: {words}. Give this user the right to write the file and its folder, or correct "
    "AFTERIMAGE_DATABASE.",
    "SQLITE_IOERR": "cannot be written or read: {words}. Look at the disk; is it full, or gone?",
}
_LOST_WORDS = "was lost on the way: {words}. What was committed stays; try again when it answers."
_UNREACHABLE = "cannot be reached: {words}. Start it, or correct AFTERIMAGE_DATABASE."
_CROWDED = ("too many c", "connection slots are reserved")


def explain(error: DBAPIError) -> str | None:
    """How the database refused, and what to do, as the end of a sentence; None where that is no refusal of all work."""
    told = _explanation(error)
    return None if told is None else told.format(words=" ".join(str(error.orig).split()).rstrip(".?"))


def _explanation(error: DBAPIError) -> str | None:
    if isinstance(error.orig, sqlite3.Error):
        name = getattr(error.orig, "sqlite_errorname", "")
        return next((told for known, told in _BY_SQLITE_NAME.items() if name.startswith(known)), None)
    state = _sqlstate(error)
    if state is None and _never_connected(error):
        crowded = any(words in str(error.orig) for words in _CROWDED)
        return _BY_SQLSTATE["53300"] if crowded else _UNREACHABLE
    if error.connection_invalidated or (state or "").startswith(_LOST):
        return _LOST_WORDS
    return _BY_SQLSTATE.get(state or "")


def is_victim(error: DBAPIError) -> bool:
    """Whether the database rolled a transaction back in favour of another one."""
    return _sqlstate(error) in _VICTIM


def is_lost(error: DBAPIError) -> bool:
    """Whether a connection was lost or could not be made: a new one may find the server again."""
    return _explanation(error) in (_LOST_WORDS, _UNREACHABLE, _BY_SQLSTATE["53300"])


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _never_connected(error: DBAPIError) -> bool:
    """A failed connection has no statement."""
    return error.statement is None and not error.connection_invalidated
