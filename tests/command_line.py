"""The command line in the process of a test: a tenth of the time that a process of its own takes."""

from __future__ import annotations

import signal
import sys

import pytest


def exit_code(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> object:
    """Run `./afterimage` with these arguments; what it ends with. What it prints goes to pytest's capsys."""
    from tasks import cli

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["afterimage", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
