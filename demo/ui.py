"""`make ui`: Airflow in the browser, with the demo's data behind it."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

from demo.__main__ import airflow, prepare, say
from tasks.settings import PROJECT

PORT = int(os.environ.get("AIRFLOW__API__PORT", "8080"))


def main() -> None:
    """Prepare, say where to look, and become `airflow standalone`."""
    prepare()
    airflow("db", "migrate")
    airflow("pools", "set", "gpu", "1", "one slot for each GPU")
    home = Path(os.environ.get("AIRFLOW_HOME", PROJECT / "var" / "airflow"))
    say(f"\nAirflow starts at http://localhost:{PORT}, which takes about a minute.")
    say(f"Sign in as admin with the password {password(home / 'passwords.json')}")
    say("DAGs are paused at first: open predict_digits, press Trigger, and let it be unpaused. Ctrl-C ends it all.\n")
    command = str(PROJECT / "scripts" / "with-airflow")
    environment = {
        **os.environ,
        "AIRFLOW__API__HOST": os.environ.get("AIRFLOW__API__HOST", "127.0.0.1"),
        "AIRFLOW__API__PORT": str(PORT),
        "AIRFLOW__API__BASE_URL": f"http://localhost:{PORT}",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://localhost:{PORT}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
    }
    sys.stdout.flush()
    os.execve(command, [command, "airflow", "standalone"], environment)  # noqa: S606  # nothing is left to do here


def password(path: Path) -> str:
    """The admin's password: made once, kept in a file that only this user can read."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(json.dumps({"admin": secrets.token_urlsafe(9)}))
    return str(json.loads(path.read_text())["admin"])


if __name__ == "__main__":
    main()
