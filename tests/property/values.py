"""Values as they may stand in a file of TOML or in the environment, and keys as a store may list them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import date, datetime, time
from typing import Any, TypeVar

from hypothesis import strategies as st

from tasks.errors import ConfigurationError

Result = TypeVar("Result")

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
"""All that UTF-8 can hold, NUL too."""

ODD_TEXT = st.sampled_from(
    (
        *(
            "",
            " ",
            "\0",
            "a\0b",
            "~",
            "~nobody-has-this-name/x",
            "..",
            "//",
            "[",
            "\x7f",
            "\ud7ff",
            "\u2028",
            "x" * 5_000,
        ),
        *(
            "s3://",
            "s3:///x",
            "s3://b/{{",
            "s3://b/{{ ds }}/{{ }}",
            "s3://b/{{ day }}",
            "file://",
            "file://~nobody",
            "://",
        ),
        *("{{ ds }}", "/{{ds}}", "torchvision:", "bundle:..", "timm:\n", "http://["),
        *("@daily", "@never", "* * * * *", "0 2 30 2 *", "60 * * * *", "none"),
    )
)

NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, -1, 0.5, 10**400])

SCALARS = st.one_of(
    st.booleans(),
    NUMBERS,
    TEXT,
    ODD_TEXT,
    st.datetimes(),
    st.dates(),
    st.times(),
)

TOML = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
"""Any value that TOML can say."""


def written(value: Any) -> str:
    """A value in TOML, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)} = {written(one)}" for key, one in value.items()) + "}"
    return str(value)


def table(values: dict[str, Any]) -> str:
    """The lines of a table."""
    return "".join(f"{written(key)} = {written(value)}\n" for key, value in values.items())


KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60).filter(
    lambda key: len(key.encode()) <= 1024
)
"""Every key that a store may hold and a database can: UTF-8 without NUL, of at most 1,024 bytes."""

ODD_KEYS = (
    *(
        "/",
        "//",
        "a//b",
        "../x",
        "./x",
        "a/../b",
        "/a",
        "a/",
        ".",
        "..",
        " ",
        " a ",
        "a\nb",
        "a\r\nb",
        "\t",
        "\x01",
        "\x7f",
    ),
    *('"', "'", "\\", "%", "%2F", "a?b#c&d=e;f", "=1+1", "\u202e", "\ufeff", "\U0001f600", "e\u0301", "\u00e9"),
    *(
        "'; DROP TABLE image; --",
        "{}",
        "{{ ds }}",
        "$1",
        ":key",
        "%s",
        "\\N",
        "\\.",
        "NULL",
        "x" * 1024,
        "\u00e9" * 512,
    ),
)
"""Keys that have broken a parser, a COPY or a shell."""


def attempt(call: Callable[..., Result], *arguments: Any, **named: Any) -> tuple[Result | None, str]:
    """What a call gives, or the words in which it refuses: a ConfigurationError and no other."""
    try:
        return call(*arguments, **named), ""
    except ConfigurationError as error:
        return None, str(error)


def names(of: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """Several different keys."""
    return st.lists(of, min_size=1, max_size=30, unique=True)
