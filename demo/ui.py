"""`make ui`: Airflow in the browser, with the demo's data behind it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from demo.__main__ import prepare, say
from demo.local_airflow import COMMAND, home, migrate_airflow
from demo.metadata import metadata_server

PORT = int(os.environ.get("AIRFLOW__API__PORT", "8080"))
METADATA = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


def main() -> None:
    """Prepare, say where to look, and run `airflow standalone` to its end."""
    prepare()
    with _metadata() as url:
        os.environ[METADATA] = url
        migrate_airflow()
        passwords = home() / "passwords.json"
        say(f"\nAirflow starts at http://localhost:{PORT}, which takes about a minute.")
        say(f"Sign in as admin with the password {password(passwords)}")
        say("DAGs are paused at first: open predict_digits, press Trigger, and let it be unpaused. Ctrl-C ends it all.")
        say(f"Airflow's commands in another terminal: {METADATA}='{url}' scripts/with-airflow airflow ...\n")
        code = _run_standalone(passwords)
    raise SystemExit(code)


def _metadata() -> AbstractContextManager[str]:
    """The user's own database where one is named, else a server that lives as long as this command."""
    given = os.environ.get(METADATA)
    return nullcontext(given) if given else metadata_server(home() / "postgres")


def _run_standalone(passwords: Path) -> int:
    """Run Airflow until it ends; its exit code. Whoever ends this process ends Airflow in the way that it tidies up."""
    environment = {
        **os.environ,
        "AIRFLOW__API__HOST": os.environ.get("AIRFLOW__API__HOST", "127.0.0.1"),
        "AIRFLOW__API__PORT": str(PORT),
        "AIRFLOW__API__BASE_URL": f"http://localhost:{PORT}",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://localhost:{PORT}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }
    # A terminal sends Ctrl-C to Airflow as well, and this process waits for its end.
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    standalone = subprocess.Popen([COMMAND, "airflow", "standalone"], env=environment)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: standalone.send_signal(signal.SIGINT))
    return standalone.wait()


def password(path: Path) -> str:
    """The admin's password: made once, kept in a file that only this user can read."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(json.dumps({"admin": secrets.token_urlsafe(9)}))
    return str(json.loads(path.read_text())["admin"])


if __name__ == "__main__":
    main()
