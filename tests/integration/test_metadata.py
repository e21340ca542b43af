"""The PostgreSQL server of `make ui`: there while it is needed, gone afterwards, closed to other users."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from demo.metadata import metadata_server


@pytest.mark.parametrize("folder", ["airflow/postgres", f"{'a-long-path-' * 8}/postgres", "with a blank/postgres"])
def test_the_metadata_server_lives_as_long_as_it_is_used_and_lets_no_other_user_in(folder: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        with metadata_server(Path(home, folder)) as url:
            engine = create_engine(url, poolclass=NullPool)
            with engine.connect() as connection:
                assert connection.execute(text("SHOW listen_addresses")).scalar_one() == ""
            socket = Path(str(make_url(url).query["host"]))
            assert stat.S_IMODE(socket.stat().st_mode) == 0o700, "whoever reaches the socket is let in"
        with pytest.raises(OperationalError):
            engine.connect()
