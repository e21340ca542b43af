"""The asset that a bucket's announcements change, and what sees to it that none of them is left lying."""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import Asset, AssetWatcher, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from tasks.pipelines import Pipeline

log = logging.getLogger(__name__)


def announced_asset(pipeline: Pipeline) -> Asset:
    """Changes whenever the pipeline's queue announces images that it wants; the triggerer watches the queue."""
    # From plugins/, and only where somebody wants it: no other pipeline depends on that folder.
    from afterimage_events import QueueTrigger

    assert pipeline.events is not None
    trigger = QueueTrigger(pipeline.events, pipeline.images, pipeline.include, pipeline.exclude)
    return Asset(
        name=f"images_{pipeline.name}",
        uri=f"x-afterimage://images/{pipeline.name}",
        watchers=[AssetWatcher(name=f"queue_{pipeline.name}", trigger=trigger)],
    )


def follow_up(announced: Asset) -> Any:
    """A task at the end of a run that starts one more run where announcements came meanwhile and nobody took them.

    Events that come while a run is under way wait for its end. Airflow then starts one run with those that were there when the
    first of them came, and leaves the later ones to the next event, which may be long in coming.
    """

    @task(trigger_rule="all_done", inlets=[announced], outlets=[announced])
    def follow_up() -> None:
        context: Any = get_current_context()
        newest = list(context["inlet_events"][announced].ascending(False).limit(1))
        if not newest or newest[0].created_dagruns:
            raise AirflowSkipException("No announcement was left lying.")
        log.info("Announcements came meanwhile: one more run takes them.")
        context["outlet_events"][announced].extra = {"keys": [], "follows": context["run_id"]}

    return follow_up()
