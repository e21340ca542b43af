"""Windows and date templates: nothing falls between two days, and what is rendered matches."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tasks.window import BACKFILL, EVERYTHING, SCHEDULED, DateTemplate, Window, resolve
from tests.property.values import ODD_TEXT, TEXT, attempt

MOMENTS = st.datetimes(timezones=st.timezones() | st.just(UTC)) | st.datetimes()
DAYS = st.dates()
FIELDS = ("ds", "ds_nodash", "year", "month", "day")
PARTS = st.sampled_from([f"{{{{ {name} }}}}" for name in FIELDS] + [f"{{{{{name}}}}}" for name in FIELDS])
LITERALS = st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=6)


@st.composite
def templates(draw: st.DrawFn) -> DateTemplate:
    """Any template that the program accepts."""
    pieces = draw(st.lists(LITERALS | PARTS, min_size=1, max_size=6))
    found, _ = attempt(DateTemplate.of, "".join(pieces))
    assume(found is not None)
    assert found is not None
    return found


def day_window(day: date) -> Window:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return Window(start, start + timedelta(days=1))


@given(templates(), DAYS.filter(lambda day: day < date.max), TEXT)
@example(DateTemplate("{{ year }}/"), date(9999, 12, 30), "a.png")
@example(DateTemplate("{{ year }}{{ month }}"), date(9999, 12, 1), "a.png")
@example(DateTemplate("{{ year }}"), date(1, 1, 1), "")
def test_what_is_rendered_for_a_day_matches_in_that_day(template: DateTemplate, day: date, rest: str) -> None:
    window = day_window(day)
    prefix = template.render(day)
    assert template.prefixes(window) == [prefix]
    assert prefix.startswith(template.stem)
    assert template.matches(prefix + rest, window)
    assert template.matches(prefix + rest, EVERYTHING)
    assert template.matches(prefix + rest, Window(start=window.start))
    assert template.matches(prefix + rest, Window(end=window.end))


@given(st.dates(date(2000, 1, 1), date(2030, 1, 1)), st.integers(1, 400), st.integers(-3, 403))
def test_a_day_is_found_if_and_only_if_the_window_touches_it(first: date, count: int, offset: int) -> None:
    """Days in the name are told apart exactly."""
    window = Window(day_window(first).start, day_window(first + timedelta(days=count - 1)).end)
    template, day = DateTemplate("raw/{{ ds }}/"), first + timedelta(days=offset)
    is_inside = 0 <= offset < count
    assert template.matches(template.render(day) + "a.png", window) == is_inside
    assert (template.render(day) in template.prefixes(window)) == is_inside
    assert len(window.days()) == count


@given(st.datetimes(timezones=st.just(UTC)), DAYS.filter(lambda day: date.min < day < date.max - timedelta(days=1)))
def test_no_object_falls_between_adjacent_backfill_days_and_none_is_in_both(moment: datetime, day: date) -> None:
    days = [day_window(day + timedelta(days=offset)) for offset in (-1, 0, 1)]
    windows = [resolve(run_type=BACKFILL, data_interval_start=one.start, data_interval_end=one.end) for one in days]
    assert [(one.start, one.end) for one in windows] == [(one.start, one.end) for one in days]
    whole = Window(windows[0].start, windows[-1].end)
    for seen in (moment, windows[1].start, windows[1].end, windows[1].start - timedelta(microseconds=1)):  # type: ignore[operator]
        assert seen is not None
        assert sum(one.holds(seen) for one in windows) == whole.holds(seen)
    assert windows[1].holds(windows[1].start)  # type: ignore[arg-type]
    assert not windows[1].holds(windows[1].end)  # type: ignore[arg-type]


BOUNDS = st.none() | MOMENTS | TEXT | ODD_TEXT | MOMENTS.map(str) | st.dates().map(str)
ASKED = st.fixed_dictionaries(
    {
        "run_type": st.sampled_from([BACKFILL, SCHEDULED, "manual", "cli"]),
        "window_start": st.none() | BOUNDS,
        "window_end": st.none() | BOUNDS,
        "data_interval_start": st.none() | MOMENTS,
        "data_interval_end": st.none() | MOMENTS,
        "templated": st.booleans(),
        "lookback_days": st.integers(0, 3650),
    }
)
FIRST_DAYS = {"data_interval_start": datetime(1, 1, 2), "data_interval_end": datetime(1, 1, 3)}


@given(ASKED)
@example({"run_type": SCHEDULED, "templated": True, **FIRST_DAYS})
@example({"run_type": "manual", "window_end": "0001-01-01"})
@example({"run_type": "manual", "window_start": "0001-01-01T00:00:00+14:00"})
@example({"run_type": "manual", "window_end": "9999-12-31T23:59:59-14:00"})
def test_a_window_is_a_window_in_utc_or_a_clear_refusal(asked: dict[str, Any]) -> None:
    window, refusal = attempt(resolve, **asked)
    if window is None:
        assert refusal.startswith(("window_", "data_interval_", "The window is empty"))
        return
    for bound in (window.start, window.end):
        assert bound is None or bound.utcoffset() == timedelta(0)
    if window.start is not None and window.end is not None:
        assert window.start < window.end
        assert window.holds(window.start)
        assert not window.holds(window.end)
        if window.end - window.start < timedelta(days=4_000):
            days = window.days()
            assert (days[0], days[-1]) == (
                window.start.date(),
                (window.end - timedelta(microseconds=1)).date(),
            )
    template = DateTemplate("raw/{{ ds }}/")
    template.matches("raw/2026-03-01/a.png", window)


@given(templates(), TEXT, MOMENTS, st.booleans())
@example(DateTemplate("{{ year }}"), "0000", datetime(1, 1, 1), True)
def test_any_key_is_judged_without_an_error(template: DateTemplate, key: str, bound: datetime, is_end: bool) -> None:
    try:
        moment = bound.replace(tzinfo=UTC) if bound.tzinfo is None else bound.astimezone(UTC)
    except OverflowError:
        return
    template.matches(key, Window(end=moment) if is_end else Window(start=moment))


@pytest.mark.parametrize("text", ["{{ year }}", "{{ year }}/{{ month }}"])
def test_the_last_year_is_a_year(text: str) -> None:
    template = DateTemplate(text)
    assert template.matches(template.render(date(9999, 12, 31)), EVERYTHING)


@given(TEXT | ODD_TEXT | st.lists(LITERALS | PARTS | st.just("{{ x }}"), max_size=5).map("".join))
def test_any_prefix_is_a_template_none_or_a_clear_refusal(prefix: str) -> None:
    found, refusal = attempt(DateTemplate.of, prefix)
    assert refusal == "" or "The images URI" in refusal
    assert found is None or found.render(date(2026, 3, 1)).startswith(found.stem)
