"""What a closed run has to tell, and what is said of a table of `notify` that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.cache.runs import OUTCOMES
from tasks.doctor import examine
from tasks.errors import ConfigurationError
from tasks.notifications import EVENTS, ClosedRun, EarlierRuns, Notify, notice_of
from tasks.notifiers import check_modules, load_notifier, with_texts
from tasks.pipelines import load_pipelines
from tasks.settings import load_settings

CANARY = "canaryjkqxvz"
SMTP = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"


def closed(damaged: int = 0, predicted: int = 0, **changes: Any) -> ClosedRun:
    counts = {**dict.fromkeys((*OUTCOMES, "open"), 0), "predicted": predicted, "failed": damaged}
    values = {
        "failed": False,
        "message": None,
        "drift": None,
        "drift_message": None,
        "listed": damaged + predicted,
        "counts": counts,
    }
    return ClosedRun("predict_photos", "manual__1", "photos", **{**values, **changes})


def events(run: ClosedRun, earlier: EarlierRuns, wanted: tuple[str, ...] = EVENTS) -> list[str]:
    found = notice_of(run, earlier, wanted)
    return [] if found is None else list(found.events)


NONE_BEFORE = EarlierRuns(0, 0, 0)


@pytest.mark.parametrize(
    ("failed", "predicted", "earlier", "is_told"),
    [
        (3, 97, EarlierRuns(7, 700, 10), True),  # 3 % after 1.4 %
        (3, 97, EarlierRuns(7, 700, 11), False),  # 3 % after 1.6 %
        (2, 10, EarlierRuns(7, 700, 0), False),  # too few
        (3, 297, EarlierRuns(7, 700, 0), True),  # 1 %
        (3, 298, EarlierRuns(7, 700, 0), False),  # less than 1 %
        (50, 50, NONE_BEFORE, False),  # nothing to compare with
        (0, 0, EarlierRuns(7, 700, 0), False),
    ],
)
def test_a_rate_rises_against_the_runs_before(failed: int, predicted: int, earlier: EarlierRuns, is_told: bool) -> None:
    assert events(closed(failed, predicted), earlier) == (["failure_rate"] if is_told else [])


def test_drift_is_told_of_where_it_was_judged_too_far() -> None:
    assert events(closed(drift=0.3, drift_message="It moved."), NONE_BEFORE) == ["drift"]
    assert events(closed(drift=9.0), NONE_BEFORE) == []
    assert events(closed(), NONE_BEFORE) == []


def test_a_run_that_failed_because_of_its_drift_says_that_once() -> None:
    found = notice_of(
        closed(failed=True, message="It moved.", drift=0.3, drift_message="It moved."), NONE_BEFORE, EVENTS
    )
    assert found is not None
    assert found.about(EVENTS, "")["text"].count("It moved.") == 1


def test_several_events_are_one_notice_and_each_hears_of_its_own() -> None:
    run = closed(5, 5, failed=True, message="Too many.", drift=0.5, drift_message="It moved.")
    found = notice_of(run, EarlierRuns(7, 100, 1), EVENTS)
    assert found is not None
    whole = found.about(EVENTS, "http://airflow/run")
    assert whole["title"] == "photos: the run failed; its predictions have drifted; more images fail than before"
    assert whole["text"].splitlines() == [
        "Too many.",
        "It moved.",
        "5 of 10 images failed (50.0%); of the 7 runs before, 1 of 100 (1.0%).",
        "Run manual__1: listed 10 = predicted 5 · failed 5",
    ]
    assert whole["counts"]["failed"] == 5
    part = found.about(("drift",), "http://airflow/run")
    assert (part["title"], part["events"]) == ("photos: its predictions have drifted", ["drift"])
    assert events(run, NONE_BEFORE, ("drift",)) == ["drift"]


def written(folder: Path, tables: str) -> Path:
    file = folder / "pipelines.toml"
    file.write_text(f'[photos]\nimages = "images"\nmodel = "model"\n{tables}')
    return file


def test_a_table_of_notify_is_read(tmp_path: Path) -> None:
    file = written(
        tmp_path, f'[[photos.notify]]\nnotifier = "{SMTP}"\non = ["drift"]\narguments = {{ to = "a@b.c" }}\n'
    )
    (one,) = load_pipelines(file)["photos"].notify
    assert (one.on, one.arguments) == (("drift",), {"to": "a@b.c"})


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (f'[[photos.notify]]\nnotifier = "{SMTP}"\narguments = "{CANARY}"', "notify.0.arguments = ***"),
        (f'[[photos.notify]]\nnotifier = "{SMTP}"\nwebhook = "{CANARY}"', "Allowed keys: notifier, on, arguments."),
        (f'[photos.notify]\nnotifier = "{SMTP}"\narguments = {{ url = "{CANARY}" }}', "[photos] notify = ***"),
        ('[[photos.notify]]\narguments = { password = "x" }', "lacks the key 'notify.0.notifier'"),
        ('[[photos.notify]]\nnotifier = "no path"', "notify.0.notifier = 'no path'"),
        (f'[[photos.notify]]\nnotifier = "{SMTP}"\non = ["success"]', "notify.0.on.0 = 'success'"),
        (f'[[photos.notify]]\nnotifier = "{SMTP}"\non = []', "notify.0.on = []"),
    ],
)
def test_a_wrong_table_is_told_of_without_its_arguments(tmp_path: Path, table: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_pipelines(written(tmp_path, table))
    assert told in str(error.value)
    assert CANARY not in str(error.value)


def test_a_notifier_that_is_not_there_is_found_before_it_is_needed(tmp_path: Path) -> None:
    check_modules("photos", (Notify(notifier=SMTP),))
    for path in ("airflow.providers.carrier_pigeon.Pigeon", "no_such_module.Pigeon", "json.no.Pigeon"):
        with pytest.raises(ConfigurationError, match="cannot be imported"):
            check_modules("photos", (Notify(notifier=path),))
    with pytest.raises(ConfigurationError, match="no notifier"):
        load_notifier("photos", Notify(notifier="json.loads"))
    with pytest.raises(ConfigurationError, match="missing a required argument: 'to'"):
        load_notifier("photos", Notify(notifier=SMTP))
    file = written(
        tmp_path, f'[[photos.notify]]\nnotifier = "{SMTP}"\narguments = {{ to = "a@b.c", password = "{CANARY}" }}'
    )
    found = {
        one.check: one for one in examine(load_settings(pipelines=file, database="sqlite://", device="cpu"), "photos")
    }
    assert found["photos: notify"].ok, "SmtpNotifier takes any argument"
    file = written(tmp_path, f'[[photos.notify]]\nnotifier = "{SMTP}er"\narguments = {{ password = "{CANARY}" }}')
    found = {
        one.check: one for one in examine(load_settings(pipelines=file, database="sqlite://", device="cpu"), "photos")
    }
    assert not found["photos: notify"].ok
    assert CANARY not in found["photos: notify"].finding


class Plain:
    """Renders nothing."""

    def __init__(self, channel: str, text: str = "", title: str = "") -> None:
        self.channel, self.text, self.title = channel, text, title


def test_a_notifier_without_templates_is_given_the_text_itself() -> None:
    about = {"title": "T {{ 7 * 7 }}", "text": "words", "url": "http://airflow"}
    assert with_texts(Plain, {"channel": "#a", "title": "mine"}, about) == {
        "channel": "#a",
        "title": "mine",
        "text": "T {{ 7 * 7 }}\nwords\nhttp://airflow",
    }
