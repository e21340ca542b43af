"""`make ui`: Airflow in the browser, with the demo's data behind it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import uuid
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from demo.__main__ import prepare, say, shorten
from demo.local_airflow import COMMAND, home, migrate_airflow
from demo.metadata import metadata_server
from tasks import road
from tasks.cache.pages.scope import known_pipelines
from tasks.cache.runs import RunKey
from tasks.pipelines import find_pipeline
from tasks.plan import RunRequest
from tasks.settings import load_settings

PORT = int(os.environ.get("AIRFLOW__API__PORT", "8080"))
EARLY_EPOCHS = 3
METADATA = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


def main() -> None:
    """Prepare, say where to look, and run `airflow standalone` to its end."""
    prepare()
    prepare_history()
    with _metadata() as url:
        os.environ[METADATA] = url
        migrate_airflow()
        passwords = home() / "passwords.json"
        say(f"\nAirflow starts at http://localhost:{PORT}, which takes about a minute.")
        say(f"Sign in as admin with the password {password(passwords)}")
        say(
            "The pages: Browse -> Predictions. What is there so far is an older model's: open predict_digits, press Trigger and"
        )
        say("let it be unpaused (DAGs are paused at first), and compare. Ctrl-C ends it all.")
        say(f"Airflow's commands in another terminal: {METADATA}='{url}' scripts/with-airflow airflow ...\n")
        code = _run_standalone(passwords)
    raise SystemExit(code)


def prepare_history() -> None:
    """Have an older model predict the bucket first, so that the pages have something to show and to compare."""
    settings = load_settings()
    if known_pipelines(road.open_cache(settings)):
        return
    from demo.network import write_model

    pipeline = find_pipeline(settings.pipelines, "digits")
    model = Path(pipeline.models[0])
    early = model.with_name(f"{model.name}-0")
    write_model(early, version="0", epochs=EARLY_EPOCHS)
    say(f"an older model in {shorten(str(early))} predicts first:")
    table = pipeline.model_copy(update={"model": str(early)})
    counts = road.run(RunRequest(RunKey("cli", str(uuid.uuid4())), "cli", table, table.name), settings)
    say(road.format_summary(counts).splitlines()[0])


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
