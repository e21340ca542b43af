"""Which window a run takes, and which keys a date template lets through."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.errors import ConfigurationError
from tasks.window import EVERYTHING, DateTemplate, Window, resolve

MARCH_1, MARCH_2 = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
INTERVAL: dict[str, Any] = {"data_interval_start": MARCH_1, "data_interval_end": MARCH_2}

moments = st.datetimes(timezones=st.just(UTC))
days = st.dates()
templates = st.sampled_from(
    [
        "raw/{{ ds }}/",
        "raw/{{ds}}-cam/",
        "{{ ds_nodash }}",
        "raw/{{ year }}/{{ month }}/{{ day }}/",
        "{{ year }}/{{ ds }}/",
        "a.b(c)/{{ year }}-{{ month }}/",
        "{{ year }}/",
        "{{ day }}.{{ month }}.{{ year }}/",
        "odd[{{ ds }}]\n/",
    ]
)


def template(prefix: str) -> DateTemplate:
    found = DateTemplate.of(prefix)
    assert found is not None
    return found


def test_a_scheduled_run_looks_at_everything() -> None:
    assert resolve(run_type="scheduled", **INTERVAL) == EVERYTHING


def test_a_backfill_takes_its_data_interval() -> None:
    assert resolve(run_type="backfill", **INTERVAL) == Window(MARCH_1, MARCH_2)


def test_a_backfill_over_a_template_takes_its_interval_without_lookback() -> None:
    window = resolve(run_type="backfill", templated=True, lookback_days=3, **INTERVAL)

    assert window.days() == [date(2026, 3, 1)]


@pytest.mark.parametrize("run_type", ["manual", "cli", "asset_triggered"])
@pytest.mark.parametrize("templated", [False, True])
def test_the_interval_of_other_runs_is_ignored(run_type: str, templated: bool) -> None:
    assert resolve(run_type=run_type, templated=templated, **INTERVAL) == EVERYTHING


def test_a_scheduled_run_over_a_template_takes_its_days_and_three_before() -> None:
    window = resolve(run_type="scheduled", templated=True, **INTERVAL)

    assert window.days() == [date(2026, 2, 26), date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1)]


def test_lookback_days_is_a_setting() -> None:
    window = resolve(run_type="scheduled", templated=True, lookback_days=0, **INTERVAL)

    assert window.days() == [date(2026, 3, 1)]


def test_a_run_without_an_interval_looks_at_everything() -> None:
    assert resolve(run_type="backfill") == EVERYTHING
    assert resolve(run_type="scheduled", templated=True) == EVERYTHING


@pytest.mark.parametrize("run_type", ["scheduled", "backfill", "manual", "cli"])
def test_parameters_win_over_every_interval(run_type: str) -> None:
    window = resolve(run_type=run_type, window_start="2026-01-05", window_end="2026-01-06", templated=True, **INTERVAL)

    assert window == Window(datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 6, tzinfo=UTC))


def test_one_parameter_is_enough_and_leaves_the_other_side_open() -> None:
    since = resolve(run_type="backfill", window_start="2026-01-05", **INTERVAL)
    until = resolve(run_type="backfill", window_end="2026-01-05", **INTERVAL)

    assert (since.start, since.end) == (datetime(2026, 1, 5, tzinfo=UTC), None)
    assert (until.start, until.end) == (None, datetime(2026, 1, 5, tzinfo=UTC))


def test_an_emptied_form_field_counts_as_not_given() -> None:
    window = resolve(run_type="backfill", window_start="", window_end="", **INTERVAL)

    assert window == Window(MARCH_1, MARCH_2)


@pytest.mark.parametrize(
    "given",
    ["2026-03-01", "2026-03-01T00:00:00", "2026-03-01T00:00:00Z", "2026-03-01T02:00:00+02:00", "20260301T000000+0000"],
)
def test_a_moment_without_a_zone_is_utc_and_other_zones_are_converted(given: str) -> None:
    window = resolve(run_type="manual", window_start=given)

    assert window.start == MARCH_1
    assert window.start.utcoffset() == timedelta(0)


def test_an_interval_in_another_zone_becomes_utc() -> None:
    berlin = timezone(timedelta(hours=1))
    local = {key: value.astimezone(berlin) for key, value in INTERVAL.items()}

    window = resolve(run_type="backfill", **local)

    assert window.days() == [date(2026, 3, 1)]


@pytest.mark.parametrize("name", ["window_start", "window_end"])
@pytest.mark.parametrize("value", ["yesterday", "2026-02-30", "01.03.2026", " ", "0001-01-01T00:00:00+05:00"])
def test_a_bound_that_is_no_date_is_refused_with_its_value(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        resolve(run_type="manual", **{name: value})

    assert f"{name} is {value!r}" in str(refused.value)
    assert "ISO 8601" in str(refused.value)


@pytest.mark.parametrize("end", ["2026-03-01", "2026-02-28"])
def test_an_empty_window_is_refused_with_both_bounds(end: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"2026-03-01T00:00:00\+00:00 and ends at {end}.*exclusive"):
        resolve(run_type="manual", window_start="2026-03-01", window_end=end)


@given(moments, moments, moments)
def test_a_window_is_half_open(start: datetime, end: datetime, moment: datetime) -> None:
    window = Window(start, end)

    assert window.holds(moment) == (start <= moment < end)
    assert window.holds(start) == (start < end)
    assert not window.holds(end)


@given(moments)
def test_a_side_that_is_open_bounds_nothing(moment: datetime) -> None:
    assert EVERYTHING.is_open
    assert EVERYTHING.holds(moment)
    assert Window(start=moment).holds(moment)
    assert not Window(end=moment).holds(moment)
    assert not Window(start=moment).is_open


@given(moments, st.integers(1, 3 * 86_400))
def test_the_days_of_a_window_are_those_of_its_moments(start: datetime, seconds: int) -> None:
    if start.year == 9999:
        return
    end = start + timedelta(seconds=seconds)
    every_hour = [start + timedelta(hours=hour) for hour in range(seconds // 3600 + 1)]
    inside = {moment.date() for moment in (*every_hour, end - timedelta(microseconds=1)) if moment < end}

    assert Window(start, end).days() == sorted(inside)


def test_an_open_window_has_no_days() -> None:
    with pytest.raises(ValueError, match="open window"):
        Window(start=MARCH_1).days()


@given(templates, days)
@example("raw/{{ ds }}/", date(26, 3, 1))
def test_what_a_template_renders_for_a_day_matches_that_day(prefix: str, day: date) -> None:
    if day == date.max:
        return
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    window = Window(start, start + timedelta(days=1))
    found = template(prefix)

    assert found.prefixes(window) == [found.render(day)]
    assert found.matches(found.render(day) + "cat.jpg", window)
    assert found.matches(found.render(day) + "cat.jpg", EVERYTHING)


@given(st.sampled_from(["raw/{{ ds }}/", "{{ ds_nodash }}", "{{ year }}/{{ month }}/{{ day }}/"]), days, days)
def test_a_whole_date_matches_no_other_day(prefix: str, day: date, other: date) -> None:
    if other == date.max:
        return
    start = datetime(other.year, other.month, other.day, tzinfo=UTC)
    found = template(prefix)

    assert found.matches(found.render(day) + "x", Window(start, start + timedelta(days=1))) == (day == other)


@pytest.mark.parametrize(
    ("prefix", "rendered"),
    [
        ("raw/{{ ds }}/", "raw/2026-03-01/"),
        ("raw/{{ ds_nodash }}/", "raw/20260301/"),
        ("{{year}}/{{  month  }}/{{day}}/", "2026/03/01/"),
        ("{{ year }}/{{ ds }}/", "2026/2026-03-01/"),
    ],
)
def test_the_fields_of_a_template(prefix: str, rendered: str) -> None:
    assert template(prefix).render(date(2026, 3, 1)) == rendered


def test_a_prefix_without_a_field_is_no_template() -> None:
    assert DateTemplate.of("raw/2026/{not}/") is None


def test_an_unknown_field_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigurationError, match=r"\{\{ dag_run\.id \}\}.*ds, ds_nodash, year, month, day"):
        DateTemplate.of("raw/{{ dag_run.id }}/")


def test_without_bounds_the_stem_is_listed() -> None:
    found = template("raw/cam-{{ ds }}/left/")

    assert found.prefixes(EVERYTHING) == ["raw/cam-"]
    assert found.prefixes(Window(start=MARCH_1)) == ["raw/cam-"]
    assert found.prefixes(Window(end=MARCH_1)) == ["raw/cam-"]


def test_a_month_is_listed_once_for_all_its_days() -> None:
    window = Window(datetime(2026, 2, 27, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC))

    assert template("{{ year }}/{{ month }}/").prefixes(window) == ["2026/02/", "2026/03/"]


@pytest.mark.parametrize(
    ("key", "matches"),
    [
        ("raw/2026-03-01/cat.jpg", True),
        ("raw/2026-13-01/cat.jpg", False),
        ("raw/2026-02-30/cat.jpg", False),
        ("raw/0000-01-01/cat.jpg", False),
        ("raw/latest/cat.jpg", False),
        ("raw/2026-03-1/cat.jpg", False),
        ("raw/\uff12\uff10\uff12\uff16-03-01/cat.jpg", False),
        ("other/raw/2026-03-01/cat.jpg", False),
        ("raw/2026-03-01/a\nb.jpg", True),
    ],
)
def test_only_keys_under_a_real_day_match(key: str, matches: bool) -> None:
    assert template("raw/{{ ds }}/").matches(key, EVERYTHING) == matches


def test_the_literal_parts_of_a_template_are_no_pattern() -> None:
    assert not template("a.b/{{ ds }}/").matches("axb/2026-03-01/cat.jpg", EVERYTHING)


def test_a_field_that_stands_twice_must_say_the_same() -> None:
    found = template("{{ year }}/{{ ds }}/")

    assert found.matches("2026/2026-03-01/a", EVERYTHING)
    assert not found.matches("2025/2026-03-01/a", EVERYTHING)


def test_a_window_that_is_open_on_one_side_bounds_the_days_on_the_other() -> None:
    found = template("{{ ds }}/")

    assert found.matches("2026-03-01/a", Window(start=MARCH_1 + timedelta(hours=6)))
    assert not found.matches("2026-02-28/a", Window(start=MARCH_1 + timedelta(hours=6)))
    assert found.matches("2026-02-28/a", Window(end=MARCH_1))
    assert not found.matches("2026-03-01/a", Window(end=MARCH_1))


def test_a_month_matches_where_any_of_its_days_does() -> None:
    found = template("{{ year }}/{{ month }}/")
    window = Window(datetime(2026, 12, 31, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))

    assert found.matches("2026/12/a", window)
    assert not found.matches("2027/01/a", window)
    assert not found.matches("2026/11/a", window)
    assert not found.matches("2026/13/a", EVERYTHING)


@pytest.mark.parametrize("prefix", ["{{ month }}/{{ day }}/", "{{ day }}/"])
def test_a_template_without_a_year_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="no year"):
        DateTemplate.of(prefix)


@pytest.mark.parametrize("prefix", ["{{ year }}/{{ day }}/"])
def test_a_key_that_leaves_its_day_open_is_left_to_the_prefixes(prefix: str) -> None:
    found = template(prefix)
    window = Window(MARCH_1, MARCH_2)

    assert found.matches(found.prefixes(window)[0] + "a", window)


def test_moments_of_airflows_own_class_are_taken_as_they_are() -> None:
    import pendulum

    start, end = pendulum.datetime(2026, 3, 2), pendulum.datetime(2026, 3, 3)
    window = resolve(run_type="scheduled", data_interval_start=start, data_interval_end=end, templated=True)
    assert window == Window(datetime(2026, 2, 27, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC))


@pytest.mark.parametrize("text", ["{{ year }}/", "{{ year }}/{{ month }}/"])
def test_the_last_year_that_there_is_has_its_days(text: str) -> None:
    template = DateTemplate(text)
    assert template.matches(template.render(date(9999, 12, 31)) + "a.png", EVERYTHING)


def test_before_the_first_day_there_is_no_look_back() -> None:
    interval = {"data_interval_start": datetime(1, 1, 2), "data_interval_end": datetime(1, 1, 3)}
    found = resolve(run_type="scheduled", templated=True, lookback_days=3, **interval)
    assert found == Window(datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 3, tzinfo=UTC))


def test_a_window_that_ends_at_the_first_moment_judges_keys_without_an_error() -> None:
    assert not DateTemplate("{{ ds }}/").matches("2026-03-01/a.png", resolve(run_type="cli", window_end="0001-01-01"))
