"""Airflow's simple auth manager, and a user who may not see everything, as where rights are given for each DAG."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

HIDDEN = "predict_secret"


class NarrowAuthManager(SimpleAuthManager):
    """The user `narrow` may see all DAGs but one, and the user `nobody` none."""

    def is_authorized_dag(self, *, details: Any = None, user: Any, **asked: Any) -> bool:
        """As Airflow's own, but for that DAG."""
        if user.get_name() == "narrow" and details is not None and details.id == HIDDEN:
            return False
        if user.get_name() == "nobody":
            return False
        return bool(super().is_authorized_dag(details=details, user=user, **asked))
