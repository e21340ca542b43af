"""Notifiers as a user may write them: one whose text is a template, one without any, one that always fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from airflow.sdk.bases.notifier import BaseNotifier


class ToFile(BaseNotifier):
    """Adds a line to a file."""

    template_fields = ("text",)

    def __init__(self, path: str, text: str) -> None:
        super().__init__()
        self.path, self.text = Path(path), text

    def notify(self, context: Any) -> None:
        """As JSON, because texts have several lines."""
        with open(self.path, "a") as out:
            out.write(json.dumps(self.text) + "\n")


class Untemplated(ToFile):
    """Renders nothing, and is given its text as it is; the context has the rest."""

    template_fields = ()

    def notify(self, context: Any) -> None:
        """What it was given, and what it finds."""
        self.text = f"{self.text} | {context['afterimage']['counts']['failed']} | {context['ti'].task_id}"
        super().notify(context)


class Refusing(BaseNotifier):
    """Its server is down, and says more than it should."""

    def notify(self, context: Any) -> None:
        """Never works."""
        raise OSError("https://user:canarypassword@hooks.example.com refused")
