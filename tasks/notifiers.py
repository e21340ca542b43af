"""Notifiers by their dotted path, and how one that was given no text still says what happened.

The program knows no Airflow: a notifier is a class that pipelines.toml names, which takes arguments and has a `notify`.
"""

from __future__ import annotations

import html
import inspect
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tasks.errors import ConfigurationError
from tasks.notifications import Notify

TITLE = "{{ afterimage.title }}"
TEXT = "{{ afterimage.title }}\n{{ afterimage.text }}\n{{ afterimage.url }}"
HTML = (
    '<p style="white-space: pre-line">{{ afterimage.text | e }}</p>'
    '<p><a href="{{ afterimage.url | e }}">{{ afterimage.url | e }}</a></p>'
)

# How notifiers call what they say. Those that are not given are filled in.
TEXTS = {
    **dict.fromkeys(("subject", "title", "summary"), TITLE),
    **dict.fromkeys(("text", "message", "body", "content", "description"), TEXT),
    "html_content": HTML,
}


def check_modules(name: str, notify: tuple[Notify, ...]) -> None:
    """Whether the modules of a pipeline's notifiers are there, without importing them. Raises ConfigurationError."""
    for one in notify:
        module = one.notifier.rpartition(".")[0]
        try:
            found = find_spec(module)
        except (ImportError, ValueError, AttributeError):
            found = None
        if found is None:
            raise ConfigurationError(_missing(name, one, f"there is no module {module}"))


def load_notifier(name: str, one: Notify) -> Any:
    """The class of a pipeline's notifier. Raises ConfigurationError where it cannot be, or takes other arguments."""
    module, _, attribute = one.notifier.rpartition(".")
    try:
        notifier = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(_missing(name, one, str(error))) from None
    if not callable(getattr(notifier, "notify", None)):
        raise ConfigurationError(_missing(name, one, "it has no method notify: it is no notifier"))
    try:
        inspect.signature(notifier).bind(**with_texts(notifier, one.arguments, None))
    except TypeError as error:  # It names arguments, and no values.
        raise ConfigurationError(f"[{name}] notify: {one.notifier} {error}. Mend its `arguments`.") from None
    return notifier


def with_texts(notifier: Any, given: Mapping[str, Any], about: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of a notifier, with a text for each that it takes and was not given.

    Templates, where the notifier renders them; else the text itself, `about` what is told.
    """
    templated = set(getattr(notifier, "template_fields", ()))
    taken = [name for name in inspect.signature(notifier).parameters if name in TEXTS and name not in given]
    if "template" in given:  # The file of an e-mail's text.
        taken = [name for name in taken if name != "html_content"]
    return {**{name: TEXTS[name] if name in templated else _plain(name, about or {}) for name in taken}, **given}


def _plain(name: str, about: Mapping[str, Any]) -> str:
    title, text, url = (str(about.get(part, "")) for part in ("title", "text", "url"))
    if TEXTS[name] == TITLE:
        return title
    return f"<pre>{html.escape(text)}</pre>{html.escape(url)}" if TEXTS[name] == HTML else f"{title}\n{text}\n{url}"


def _missing(name: str, one: Notify, why: str) -> str:
    return (
        f"[{name}] notify: {one.notifier} cannot be imported: {why}. Install its provider, or mend the path; a module of your "
        "own must be on PYTHONPATH, or in Airflow's plugins or DAGs folder."
    )
