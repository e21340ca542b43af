"""Who is told of a run that Airflow executes: once, in words, with a link; and a notifier that fails stops nobody."""

from __future__ import annotations

import email
import json
import logging
import os
import shutil
import socketserver
import threading
from collections.abc import Iterator
from email.message import Message
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.dags.conftest import HOME, load_dags
from tests.dags.test_runs import _set_retries, last_run, states
from tests.pictures import picture, write_pictures

TABLE = """
[watched]
images = "{images}"
model = "{model}"
max_failure_rate = {rate}
{more}
"""
NOTIFY = """
[[watched.notify]]
notifier = "tests.dags.notifiers.{name}"
on = {on}
arguments = {{ {arguments} }}
"""


@pytest.fixture(autouse=True)
def folder(images: Path) -> Iterator[Path]:
    """Twelve good images."""
    write_pictures(images, 12)
    yield images
    shutil.rmtree(images)
    images.mkdir()


def damage(folder: Path, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        (folder / f"damaged-{number}.png").write_bytes(picture(number)[:60])


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    return tmp_path / "heard.jsonl"


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def build(dags: dict[str, Any], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build the DAG `predict_watched` with these `notify` tables."""

    def built(*tables: str, rate: float = 1.0, more: str = "") -> Any:
        file = tmp_path / "pipelines.toml"
        file.write_text(TABLE.format(images=images, model=HOME / "model", rate=rate, more=more) + "".join(tables))
        monkeypatch.setenv("AFTERIMAGE_PIPELINES", str(file))
        dag = load_dags().dags["predict_watched"]
        for task in dag.task_dict.values():
            _set_retries(task, 0)
        return dag

    return built


def to_file(
    heard: Path, on: str = '["failure", "drift", "failure_rate"]', name: str = "ToFile", **arguments: str
) -> str:
    given = ", ".join(f"{key} = {json.dumps(value)}" for key, value in {"path": str(heard), **arguments}.items())
    return NOTIFY.format(name=name, on=on, arguments=given)


def change(statement: str) -> None:
    from tasks.cache.database import connect, writing

    with writing(connect(os.environ["AFTERIMAGE_DATABASE"])) as connection:
        connection.execute(text(statement))


def newest() -> tuple[Any, Any]:
    """The request of the newest run, and the settings: what its last task works with when it is tried again or cleared."""
    from tasks.cache.runs import RunKey
    from tasks.pipelines import find_pipeline
    from tasks.plan import RunRequest
    from tasks.settings import load_settings
    from tasks.window import EVERYTHING

    settings, run = load_settings(), last_run()
    pipeline = find_pipeline(settings.pipelines, "watched")
    key = RunKey(run["dag_id"], run["run_id"])
    return RunRequest(key, "manual", pipeline, "watched", EVERYTHING), settings


def test_a_failed_run_is_told_of_once_with_its_counts_and_a_link(build: Any, images: Path, heard: Path) -> None:
    damage(images, 4)
    template = "{{ afterimage.title }}|{{ afterimage.counts.failed }}|{{ afterimage.url }}|{{ dag.dag_id }}"
    dag = build(to_file(heard, text=template), to_file(heard), rate=0.1)
    run = dag.test(logical_date=None)
    assert str(run.state) == "failed"
    assert states(run)["close_run"] == "success", "which had nothing to close"
    first, second = lines(heard)
    title, failed, url, dag_id = first.split("|")
    assert (title, failed, dag_id) == ("watched: the run failed", "4", "predict_watched")
    encoded = run.run_id.replace(":", "%3A").replace("+", "%2B")
    assert url.endswith(f"/dags/predict_watched/runs/{encoded}/plugin/afterimage_run")
    assert url.startswith("http")
    assert second.startswith("watched: the run failed\n4 of 16 images failed, more than max_failure_rate 0.1.")
    assert f"Run {run.run_id}: listed 16 = predicted 12 · failed 4\nhttp" in second
    assert last_run()["notified_at"] is not None
    from tasks import road

    assert road.close_run(*newest()) is None
    assert road.take_notice(*newest()) is None
    change("UPDATE run SET notified_at = NULL")
    assert road.take_notice(*newest()) is not None, "that is what told them apart"


def test_a_listing_anew_is_told_of_anew(build: Any, images: Path, heard: Path) -> None:
    damage(images, 4)
    dag = build(to_file(heard, text="{{ afterimage.counts.failed }}"), rate=0.1)
    dag.test(logical_date=None)
    assert lines(heard) == ["4"]
    from tasks import road

    request, settings = newest()
    damage(images, 4, first=4)
    road.list_images(request, settings)
    assert road.take_notice(request, settings) is None, "it is running"
    road.deduplicate(request, settings)
    road.close_run(request, settings)
    found = road.take_notice(request, settings)
    assert found is not None
    assert found.events == {
        "failure": "4 images are open: a task failed. Clear the failed tasks; they go on where they stopped."
    }
    assert road.take_notice(request, settings) is None


def test_a_run_like_those_before_is_told_of_to_nobody(build: Any, images: Path, heard: Path) -> None:
    dag = build(to_file(heard, text="{{ afterimage.title }}"))
    for first in (0, 1):
        damage(images, 1, first)
        assert str(dag.test(logical_date=None).state) == "success"
    assert lines(heard) == []
    assert last_run()["notified_at"] is None


def test_a_rising_failure_rate_is_told_of(build: Any, images: Path, heard: Path) -> None:
    dag = build(to_file(heard, on='["failure_rate"]'), to_file(heard, on='["failure"]', text="wrong"))
    damage(images, 1)
    dag.test(logical_date=None)
    damage(images, 3, first=1)
    write_pictures(images, 10, start=50)
    assert str(dag.test(logical_date=None).state) == "success"
    (told,) = lines(heard)

    title, sentence, *_ = told.splitlines()
    assert title == "watched: more images fail than before"
    assert sentence == "3 of 13 images failed (23.1%); of the run before, 1 of 13 (7.7%)."


def test_drift_beyond_its_limit_is_told_of(
    build: Any, images: Path, heard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import road

    publish = road.publish_run

    def drifting(*arguments: Any) -> dict[str, Any]:
        counts = publish(*arguments)
        change(
            "UPDATE run SET drift = 0.31, drift_message = 'It moved.'"
        )  # As for a run of more than these few images.
        return counts

    monkeypatch.setattr(road, "publish_run", drifting)
    limits = 'baseline = ["2026-01-01", "2026-01-31"]\ndrift_limit = 0.2\ndrift_action = "notify"'
    run = build(to_file(heard), more=limits).test(logical_date=None)
    assert str(run.state) == "success"
    (told,) = lines(heard)
    assert told.startswith("watched: its predictions have drifted\nIt moved.\nRun ")


def test_a_notifier_that_fails_fails_neither_the_run_nor_the_others(
    build: Any, images: Path, heard: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(images, 4)
    refusing = NOTIFY.format(name="Refusing", on='["failure"]', arguments="")
    missing = NOTIFY.format(name="Missing", on='["failure"]', arguments="")
    dag = build(refusing, missing, to_file(heard, name="Untemplated"), rate=0.1)
    with caplog.at_level(logging.INFO, logger="afterimage_notify"):
        run = dag.test(logical_date=None)
    assert states(run)["close_run"] == "success"
    (told,) = lines(heard)
    assert told.startswith("watched: the run failed\n4 of 16 images failed")
    assert told.endswith(" | 4 | close_run")
    assert last_run()["notified_at"] is not None
    said = [record.message for record in caplog.records if record.name == "afterimage_notify"]
    assert any("Refusing told nobody: OSError" in line for line in said)
    assert any("Missing told nobody: ConfigurationError" in line for line in said)
    assert not any("canarypassword" in line for line in said)


class SmtpSink(socketserver.StreamRequestHandler):
    """As much of RFC 5321 as it takes to be handed a message."""

    def handle(self) -> None:
        self._say("220 sink")
        while line := self.rfile.readline().strip():
            if line.upper() == b"DATA":
                self._say("354 go on")
                body = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    body += part
                self.server.messages.append(email.message_from_bytes(body, policy=default))  # type: ignore[attr-defined]
            self._say("221 bye" if line.upper() == b"QUIT" else "250 sink")

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@pytest.fixture
def mail(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Message]]:
    """What a mail server on loopback has been handed; Airflow's Connection smtp_default names it."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), SmtpSink) as server:
        server.messages = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = {
            "conn_type": "smtp",
            "host": "127.0.0.1",
            "port": server.server_address[1],
            "extra": {"disable_ssl": True, "disable_tls": True, "from_email": "airflow@example.com"},
        }
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
        yield server.messages  # type: ignore[attr-defined]
        server.shutdown()


def test_airflows_own_notifier_sends_an_e_mail(build: Any, images: Path, mail: list[Message]) -> None:
    """With nothing but its receiver; subject and text are filled in."""
    damage(images, 4)
    notify = """
[[watched.notify]]
notifier = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"
arguments = { to = "ops@example.com" }
"""
    run = build(notify, rate=0.1).test(logical_date=None)
    (message,) = mail
    assert (message["To"], message["From"]) == ("ops@example.com", "airflow@example.com")
    assert message["Subject"] == "watched: the run failed"
    (part,) = [part for part in message.walk() if part.get_content_type() == "text/html"]
    said = part.get_content()  # type: ignore[attr-defined]
    assert "4 of 16 images failed" in said
    assert 'href="http' in said
    assert run.run_id.partition(":")[0] in said


def test_a_wrong_path_is_an_import_error_of_the_dags(build: Any, images: Path, heard: Path) -> None:
    build('\n[[watched.notify]]\nnotifier = "airflow.providers.carrier_pigeon.Pigeon"\n')
    bag = load_dags()
    assert "predict_watched" in bag.dags
    (told,) = bag.import_errors.values()
    assert "[watched] notify: airflow.providers.carrier_pigeon.Pigeon cannot be imported" in told
