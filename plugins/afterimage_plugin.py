"""The entry of Afterimage into the Airflow UI: Predictions in the navigation, and a tab on each DAG run.

Every Airflow process loads this file, so it imports nothing; the app is built when the API server asks for it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin


class AfterimagePlugin(AirflowPlugin):
    """Pages served by an app below /afterimage."""

    name = "afterimage"
    external_views = [  # noqa: RUF012  # Airflow reads it from the class
        {
            "name": "Predictions",
            "href": "afterimage/",
            "destination": "nav",
            "category": "browse",
            "url_route": "afterimage",
        },
        {
            "name": "Predictions",
            "href": "afterimage/runs/{DAG_ID}/{RUN_ID}",
            "destination": "dag_run",
            "url_route": "afterimage_run",
        },
    ]

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The app; a list that stays the same, because Airflow asks more than once."""
        from afterimage_ui.app import create_app

        return [{"app": create_app(), "url_prefix": "/afterimage", "name": "Afterimage"}]
