"""Who may see and do what: Airflow does not authenticate the apps of plugins, so every route asks here.

Whoever may read the runs of a pipeline's DAG may see its images; whoever may start one may review and retry.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep, get_user, requires_access_dag
from fastapi import Depends, HTTPException, Request

DAG_PREFIX = "predict_"

# What a browser says of a request that our own pages sent, or that the user typed; older browsers say nothing.
_OUR_SITES = (None, "same-origin", "none")


def dag_of(pipeline: str) -> str:
    """The DAG that runs a pipeline."""
    return f"{DAG_PREFIX}{pipeline}"


def _may_read_pipeline(request: Request, user: GetUserDep) -> None:
    requires_access_dag("GET", DagAccessEntity.RUN, dag_of(request.path_params["pipeline"]))(request, user)


def _may_change_pipeline(request: Request, user: GetUserDep) -> None:
    """403 for who may not start its runs, and for requests that another site has a browser send: Airflow checks no origin."""
    requires_access_dag("POST", DagAccessEntity.RUN, dag_of(request.path_params["pipeline"]))(request, user)
    if request.headers.get("sec-fetch-site") not in _OUR_SITES:
        raise HTTPException(403, "This request was sent by another site. Use the page itself.")


SIGNED_IN = Depends(get_user)
"""Anybody who is signed in: for what shows nothing of any pipeline."""

READ_DAG = Depends(requires_access_dag("GET", DagAccessEntity.RUN))
"""For routes with {dag_id} in their path."""

READ_PIPELINE = Depends(_may_read_pipeline)
"""For routes with {pipeline} in their path."""

CHANGE_PIPELINE = Depends(_may_change_pipeline)
"""For routes with {pipeline} in their path that write."""


class Reader:
    """The user of a request, on pages over several pipelines."""

    def __init__(self, user: GetUserDep) -> None:
        self.name = str(user.get_name())
        self._user: Any = user

    def readable(self, pipelines: Iterable[str]) -> list[str]:
        """Those whose runs the user may read, in the order given."""
        return [name for name in pipelines if self._may("GET", name)]

    def may_change(self, pipeline: str) -> bool:
        """Whether the user may review, retry and start runs: buttons are shown to those who may press them."""
        return self._may("POST", pipeline)

    def _may(self, method: Any, pipeline: str) -> bool:
        from airflow.models.dag import DagModel

        dag_id = dag_of(pipeline)
        details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
        return bool(
            get_auth_manager().is_authorized_dag(
                method=method, access_entity=DagAccessEntity.RUN, details=details, user=self._user
            )
        )


ReaderDep = Annotated[Reader, Depends()]
