"""Tell people of a closed run, through Airflow's notifiers: e-mail, Slack, or any class that a pipeline's `notify` names.

What fails here is logged, and fails neither the run nor the notifiers beside it.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote

from airflow.sdk import get_current_context

from tasks.plan import RunRequest
from tasks.settings import Settings
from tasks.uris import without_secrets

log = logging.getLogger(__name__)


def tell(request: RunRequest, settings: Settings) -> None:
    """Send what the run has to tell, once, however often its last task is tried again or cleared."""
    from tasks import road

    try:
        notice = road.take_notice(request, settings)
    except Exception:
        log.exception("Nobody was told of this run: the cache could not be asked.")
        return
    if notice is None:
        return
    url = run_url(request.key.dag_id, request.key.run_id)
    for one in request.pipeline.notify:
        if not notice.events.keys().isdisjoint(one.on):
            _send(request.name or request.key.dag_id, one, notice.about(one.on, url))


def run_url(dag_id: str, run_id: str) -> str:
    """The tab of a run in Airflow, where `[api] base_url` says that it is."""
    from airflow.sdk.configuration import conf

    base = (conf.get("api", "base_url", fallback=None) or "http://localhost:8080").rstrip("/")
    return f"{base}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}/plugin/afterimage_run"


def _send(name: str, one: Any, about: dict[str, Any]) -> None:
    from tasks.notifiers import load_notifier, with_texts

    try:
        notifier = load_notifier(name, one)
        context: Any = {**get_current_context(), "afterimage": about}
        notifier(**with_texts(notifier, one.arguments, about))(context)
    except Exception as error:
        # Without its traceback, whose lines may show an argument.
        log.error("%s told nobody: %s: %s", one.notifier, type(error).__name__, without_secrets(str(error)))
        return
    log.info("%s was told: %s", one.notifier, about["title"])
