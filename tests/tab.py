"""The pages in the test's own process, over any cache, for whoever asks: who may look is tests/pages/test_access.py's matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fastapi.testclient import TestClient


class Anybody:
    """A reader who may see and do everything."""

    name = "anybody"

    def readable(self, pipelines: Any) -> list[str]:
        """All of them."""
        return list(pipelines)

    def may_change(self, _pipeline: str) -> bool:
        """Everything."""
        return True


@contextmanager
def opened_pages(database_url: str) -> Iterator[TestClient]:
    """The app as Airflow mounts it."""
    from afterimage_ui import app, caches
    from afterimage_ui.access import Reader
    from fastapi.routing import APIRoute
    from fastapi.testclient import TestClient

    made = app.create_app()
    made.dependency_overrides[Reader] = Anybody
    for route in made.routes:
        for needed in route.dependencies if isinstance(route, APIRoute) else ():
            made.dependency_overrides[needed.dependency] = lambda: None
    remembered = (caches.settings, caches.page_cache, caches.export_cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTERIMAGE_DATABASE", database_url)
        patch.setattr(caches, "_connection", lambda _name: None)
        for one in remembered:
            one.cache_clear()
        try:
            yield TestClient(made, raise_server_exceptions=False)
        finally:
            for one in remembered:
                one.cache_clear()
