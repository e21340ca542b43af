"""Which objects a run looks at: a window in time, or the days of a date template.

One pure function decides, `resolve`, so that a scheduled run, a backfill, a manual trigger and the command line
cannot disagree. Nothing here reads a clock.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from tasks.errors import ConfigurationError

BACKFILL, SCHEDULED, RETRY, EVENTS = "backfill", "scheduled", "retry", "events"

_FIELD = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_FORMATS: Mapping[str, tuple[str, str]] = {
    # name -> (how it is written, the digits that it renders); strftime writes the year 26 with two digits
    "ds": ("{0.year:04}-{0.month:02}-{0.day:02}", r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})"),
    "ds_nodash": ("{0.year:04}{0.month:02}{0.day:02}", r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})"),
    "year": ("{0.year:04}", r"(?P<year>\d{4})"),
    "month": ("{0.month:02}", r"(?P<month>\d{2})"),
    "day": ("{0.day:02}", r"(?P<day>\d{2})"),
}


@dataclass(frozen=True, slots=True)
class Window:
    """Half-open [start, end) in UTC; None leaves that side open."""

    start: datetime | None = None
    end: datetime | None = None

    @property
    def is_open(self) -> bool:
        """True where neither side bounds it: everything is looked at."""
        return self.start is None and self.end is None

    def holds(self, moment: datetime) -> bool:
        """Whether start <= moment < end."""
        return (self.start is None or self.start <= moment) and (self.end is None or moment < self.end)

    def days(self) -> list[date]:
        """The UTC days that the window touches; both sides must be set."""
        if self.start is None or self.end is None:
            raise ValueError("an open window has no list of days")
        count = _last_day(self.end).toordinal() - self.start.date().toordinal() + 1
        return [self.start.date() + timedelta(days=i) for i in range(count)]


def _last_day(end: datetime) -> date:
    """The day of the last moment before the end of a window."""
    return (end - timedelta(microseconds=1)).date() if end > _FIRST else date.min


EVERYTHING = Window()

_FIRST = datetime.min.replace(tzinfo=UTC)
"""The first moment that there is: nothing can be subtracted from it."""


def resolve(
    *,
    run_type: str,
    window_start: str | datetime | None = None,
    window_end: str | datetime | None = None,
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
    templated: bool = False,
    lookback_days: int = 3,
) -> Window:
    """Decide which window a run takes.

    Parameters win. A backfill takes its data interval. A scheduled run looks at everything, because the cache makes
    that cheap and LastModified is not a safe watermark; over a date template it takes the days of its interval and
    `lookback_days` before them. Every other run looks at everything: the interval that Airflow gives a manual run
    is one that people misread, so it is not used.

    Raises ConfigurationError where a bound is not a date or the window is empty.
    """
    asked_start, asked_end = _moment("window_start", window_start), _moment("window_end", window_end)
    if asked_start is not None or asked_end is not None:
        return _checked(asked_start, asked_end)
    has_interval = data_interval_start is not None and data_interval_end is not None
    if not has_interval or data_interval_start == data_interval_end:
        return EVERYTHING
    start, end = _moment("data_interval_start", data_interval_start), _moment("data_interval_end", data_interval_end)
    assert start is not None
    if run_type == BACKFILL:
        return _checked(start, end)
    if run_type == SCHEDULED and templated:
        return _checked(start - min(timedelta(days=lookback_days), start - _FIRST), end)
    return EVERYTHING


def _moment(name: str, value: str | datetime | None) -> datetime | None:
    """Parse one bound; a moment without a zone is UTC."""
    if value is None or value == "":
        return None
    try:
        # Airflow's moments are of a class of its own, whose arithmetic drops a plain time zone: make them plain.
        moment = datetime.fromisoformat(value if isinstance(value, str) else value.isoformat())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{name} is {value!r}, which is not a date. Give ISO 8601, such as 2026-03-01 or 2026-03-01T06:00:00Z."
        ) from None


def _checked(start: datetime | None, end: datetime | None) -> Window:
    if start is not None and end is not None and start >= end:
        raise ConfigurationError(
            f"The window is empty: it starts at {start.isoformat()} and ends at {end.isoformat()}. "
            "window_end is exclusive, so for one day give the next day as window_end."
        )
    return Window(start, end)


@dataclass(frozen=True, slots=True)
class DateTemplate:
    """A prefix such as `raw/{{ ds }}/`, whose fields are filled with days.

    Fields: ds (2026-03-01), ds_nodash (20260301), year, month, day.
    """

    text: str

    @staticmethod
    def of(prefix: str) -> DateTemplate | None:
        """The template in a prefix, or None where it has no field. Raises ConfigurationError for unknown fields."""
        names = _FIELD.findall(prefix)
        for name in names:
            if name not in _FORMATS:
                raise ConfigurationError(
                    f"The images URI holds {{{{ {name} }}}}, which is not a date field. Use one of: {', '.join(_FORMATS)}."
                )
        if names and not {"ds", "ds_nodash", "year"} & set(names):
            raise ConfigurationError(
                f"The images URI {prefix!r} has date fields and no year, so its days cannot be told. Add {{{{ year }}}}."
            )
        return DateTemplate(prefix) if names else None

    @property
    def tells_days(self) -> bool:
        """Whether a key says which days it belongs to; a year and a day of an unknown month do not."""
        names = set(_FIELD.findall(self.text))
        return bool({"ds", "ds_nodash"} & names) or "day" not in names or "month" in names

    @property
    def stem(self) -> str:
        """What stands before the first field: the longest prefix that all days share."""
        return self.text.split("{{", 1)[0]

    def render(self, day: date) -> str:
        """The prefix of one day."""
        return _FIELD.sub(lambda found: _FORMATS[found[1]][0].format(day), self.text)

    def prefixes(self, window: Window) -> list[str]:
        """What to list: the prefix of each day of a window that is bounded on both sides, else the stem."""
        if window.start is None or window.end is None:
            return [self.stem]
        return list(dict.fromkeys(self.render(day) for day in window.days()))

    def matches(self, key: str, window: Window) -> bool:
        """Whether a key lies under the prefix of a day that the window touches."""
        found = self._pattern().match(key)
        if found is None:
            return False
        first, last = _span(found.groupdict())
        if first is None or last is None:
            return False
        after_start = window.start is None or last >= window.start.date()
        before_end = window.end is None or first <= _last_day(window.end)
        return after_start and before_end

    def _pattern(self) -> re.Pattern[str]:
        parts, seen, position = [], set[str](), 0
        for found in _FIELD.finditer(self.text):
            parts.append(re.escape(self.text[position : found.start()]))
            parts.append(_once(_FORMATS[found[1]][1], seen))
            position = found.end()
        parts.append(re.escape(self.text[position:]))
        return re.compile("".join(parts), re.DOTALL | re.ASCII)


def _once(pattern: str, seen: set[str]) -> str:
    """Name each group at its first use and refer back to it afterwards: `{{ year }}/{{ ds }}` has one year."""
    for name in re.findall(r"\?P<(\w+)>", pattern):
        if name in seen:
            pattern = re.sub(rf"\(\?P<{name}>.*?\)", f"(?P={name})", pattern)
        seen.add(name)
    return pattern


def _span(fields: Mapping[str, str]) -> tuple[date | None, date | None]:
    """First and last day that the fields allow; (None, None) where they are no date, such as month 13."""
    if "year" not in fields or ("day" in fields and "month" not in fields):
        return date.min, date.max  # Which days these are is known to the prefixes that were listed, not to the key.
    year, month, day = (int(fields.get(name, 0)) for name in ("year", "month", "day"))
    try:
        first = date(year, month or 1, day or 1)
        if day:
            return first, first
        return first, date(year, month or 12, monthrange(year, month or 12)[1])
    except ValueError:
        return None, None
