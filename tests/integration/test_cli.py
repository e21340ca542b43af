"""The command line as a user runs it: what it prints, where, and how it exits."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.cache.migrating import head_version
from tests.conftest import outer_environment
from tests.pictures import write_pictures, write_small_bundle

COUNTS = ("listed", "cached", "known_bad", "deferred", "reused", "predicted", "failed", "vanished", "ignored")


class Cli:
    """`python -m tasks` in a process of its own, as ./afterimage starts it."""

    def __init__(self, home: Path, folder: Path, database_url: str) -> None:
        self.folder = folder
        (folder / "pipelines.toml").write_text('[photos]\nimages = "images"\nmodel = "model"\n')
        self.environment = outer_environment(
            AFTERIMAGE_HOME=str(home),
            AFTERIMAGE_PIPELINES=str(folder / "pipelines.toml"),
            AFTERIMAGE_DATABASE=database_url,
        )

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tasks", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", 6)
    write_small_bundle(tmp_path / "model")
    return tmp_path


@pytest.fixture
def cli(home: Path, folder: Path) -> Cli:
    """Over SQLite: the road has its own tests on both databases."""
    return Cli(home, folder, f"sqlite:///{folder / 'cache.db'}")


def test_predict_prints_one_json_object_with_every_count(home: Path, folder: Path, database_url: str) -> None:
    cli = Cli(home, folder, database_url)
    counts = cli.json("predict", "photos")
    extra = ("run_id", "forward_passes", "reads", "seconds", "images_per_second", "model_id")
    assert set(COUNTS) | set(extra) <= set(counts)
    assert (counts["listed"], counts["predicted"], counts["reads"]) == (6, 6, 6)
    assert counts["images_per_second"] > 0
    again = cli.json("predict", "photos")
    assert (again["cached"], again["reads"], again["forward_passes"]) == (6, 0, 0)


def test_predict_without_a_pipeline(cli: Cli) -> None:
    done = cli.run("predict", "--images", "images", "--model", "model")
    assert "listed 6 = cached 0 · predicted 6" in done.stdout
    assert "6 of 6 images" in done.stderr


@pytest.fixture
def both(folder: Path) -> tuple[str, ...]:
    """The options of a cascade of two models."""
    write_small_bundle(folder / "large", seed=1, name="large")
    return ("--model", "model", "--model", "large", "--margin", "0.02")


def test_a_cascade_by_options_and_who_answered(cli: Cli, both: tuple[str, ...]) -> None:
    counts = cli.json("predict", "--images", "images", *both)
    assert counts["predicted"] == 6
    assert counts["forward_passes"] == 6 + counts["stages"]["forward_2"]["items"]
    (found,) = cli.json("show", "00003.png")["predictions"]
    assert found["answered_by"] == ("small", "large")[found["cascade_stage"] - 1]
    assert f"small+large 1+1 {found['answered_by']}" in " ".join(cli.run("show", "00003.png").stdout.split())
    assert cli.json("predict", "photos", *both)["cached"] == 6
    assert cli.json("status")[0]["pipeline"] is None, "no run of the pipeline, whose model is another"


def test_a_cascade_by_its_table_and_another_margin_for_once(cli: Cli, both: tuple[str, ...]) -> None:
    file = cli.folder / "pipelines.toml"
    file.write_text('[photos]\nimages = "images"\nmodel = ["model", "large"]\ncascade_margin = 0.02\n')
    by_table = cli.json("predict", "photos")
    assert (by_table["pipeline"], by_table["predicted"]) == ("photos", 6)
    once = cli.json("predict", "photos", "--margin", "1.0")
    assert (once["pipeline"], once["predicted"], once["forward_passes"]) == (None, 6, 12)
    alone = cli.json("predict", "photos", "--model", "model")
    assert (alone["predicted"], alone["forward_passes"]) == (6, 6)
    findings = {finding["check"]: finding["finding"] for finding in cli.json("doctor")}
    assert "small 1, below a margin of 0.02, then large 1, 4 labels" in findings["photos: model"]


def test_a_terminal_gets_a_bar_in_images_with_the_time_left(cli: Cli) -> None:
    import pty

    parent, child = pty.openpty()
    command = [sys.executable, "-m", "tasks", "predict", "photos"]
    environment = {**cli.environment, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, cwd=cli.folder, env=environment, stdout=subprocess.PIPE, stderr=child) as running:
        os.close(child)
        shown = b""
        try:
            while chunk := os.read(parent, 4096):
                shown += chunk
        except OSError:  # the terminal's other end is closed
            pass
        assert b"listed 6" in (running.stdout.read() if running.stdout else b"")
    assert "6/6" in shown.decode()
    assert "images" in shown.decode()


def test_predict_takes_a_window_force_limit_and_dry_run(cli: Cli) -> None:
    assert cli.json("predict", "photos", "--dry-run")["open"] == 6
    assert cli.json("status") == []
    assert cli.json("predict", "photos", "--since", "2100-01-01")["listed"] == 0
    assert cli.json("predict", "photos", "--until", "2000-01-01")["listed"] == 0
    assert cli.json("predict", "photos", "--limit", "2")["deferred"] == 4
    assert cli.json("predict", "photos", "--force")["predicted"] == 6


def test_some_failed_images_exit_with_1_and_are_listed(cli: Cli) -> None:
    (cli.folder / "images" / "bad\n\x1b[31mred.png").write_bytes(b"no image")
    counts = cli.json("predict", "photos", code=1)
    assert counts["failed"] == 1
    done = cli.run("failures")
    assert "not_an_image" in done.stdout
    assert "\x1b[31m" not in done.stdout, "a key must not colour the terminal"
    assert "bad\\n\\x1b[31mred.png" in done.stdout
    assert [row["reason"] for row in cli.json("failures", "--reason", "not_an_image")] == ["not_an_image"]
    assert cli.json("failures", "--reason", "truncated") == []


def test_too_many_failures_still_print_the_counts(cli: Cli) -> None:
    for number in range(5):
        (cli.folder / "images" / f"bad-{number}.png").write_bytes(b"no image %d" % number)
    done = cli.run("predict", "photos", "--json", code=1)
    assert json.loads(done.stdout)["failed"] == 5
    assert "max_failure_rate" in done.stderr


def test_show_tells_all_of_a_key(cli: Cli) -> None:
    cli.run("predict", "photos")
    found = cli.json("show", "00003.png")
    assert len(found["predictions"]) == 1
    assert found["predictions"][0]["top_k"][0]["label"] == found["predictions"][0]["label"]
    assert "small 1" in cli.run("show", "00003.png").stdout
    assert "Nothing is known of 'nix.png'" in cli.run("show", "nix.png", code=1).stderr


def test_erase_says_what_left_each_table(cli: Cli) -> None:
    cli.run("predict", "photos")
    digest = cli.json("show", "00003.png")["predictions"][0]["digest"]
    planned = cli.json("erase", "--key", "00003.png", "--dry-run")
    assert planned["removed"] == {"image": 1, "failure": 0, "prediction": 1, "review": 0, "work_item": 1}
    assert planned["dry_run"] is True
    done = cli.run("erase", "--key", "00003.png", "--block")
    assert "prediction 1" in " ".join(done.stdout.split())
    assert "Blocked: no run predicts '00003.png' again" in done.stdout
    assert "Nothing is known" in cli.run("show", "00003.png", code=1).stderr
    assert cli.json("predict", "photos")["known_bad"] == 1
    again = cli.run("erase", "--digest", digest.upper())
    assert f"Nothing is known of the digest {digest[:12]}" in again.stdout
    assert cli.json("erase", "--key", "00003.png", "--unblock") == {"lifted": 1}
    assert cli.json("predict", "photos")["predicted"] == 1


def test_csv_of_failures_and_runs(cli: Cli) -> None:
    keys = ['=1+1,"x"\n.png', "+plus.png", "plain.png"]
    for key in keys:
        (cli.folder / "images" / key).write_bytes(key.encode())
    cli.run("predict", "photos", code=1)
    rows = list(csv.DictReader(io.StringIO(cli.run("failures", "--csv").stdout, newline="")))
    assert sorted(row["key"] for row in rows) == sorted([f"'{keys[0]}", f"'{keys[1]}", keys[2]])
    assert (rows[0]["attempts"], rows[0]["permanent"], rows[0]["next_retry_at"]) == ("1", "true", "")
    assert len(list(csv.DictReader(io.StringIO(cli.run("failures", "--csv", "--limit", "1").stdout, newline="")))) == 1
    (run,) = csv.DictReader(io.StringIO(cli.run("status", "--csv").stdout, newline=""))
    assert (run["pipeline"], run["listed"], run["predicted"], run["failed"]) == ("photos", "9", "6", "3")
    assert json.loads(run["stages"])["read"]["items"] == 9


def test_status_lists_the_newest_run_first(cli: Cli) -> None:
    cli.run("predict", "photos")
    cli.run("predict", "photos")
    rows = cli.json("status", "photos")
    assert [(row["state"], row["cached"], row["predicted"]) for row in rows] == [("success", 6, 0), ("success", 0, 6)]
    assert "cached 6" in cli.run("status").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "nix"), "has no pipeline 'nix'. It has: photos"),
        (("predict", "--images", "nowhere", "--model", "model"), "nowhere does not exist"),
        (("predict", "--images", "ftp://x/y", "--model", "model"), "starts with ftp://"),
        (("predict", "--images", "images", "--model", "nowhere"), "model.toml does not exist"),
        (("predict", "--images", "images"), "--images needs --model"),
        (("predict",), "give the name of a pipeline"),
        (("predict", "photos", "--margin", "0.4"), "photos with these options cascade_margin = 0.4: it belongs to"),
        (("predict", "--images", "images", "--model", "a", "--model", "b"), "lacks the key 'cascade_margin'"),
        (("predict", "--images", "images", "--model", "gs://b"), "gs: is no scheme of a model"),
        (("predict", "photos", "--since", "yesterday"), "'yesterday', which is not a date"),
        (("predict", "photos", "--database", "mysql://x/y"), "names 'mysql'"),
        (("predict", "photos", "--database", "nonsense"), "not a database URL"),
        (("erase",), "give --key or --digest"),
        (("status", "--database", "postgresql://me:canary-4711@127.0.0.1:1/x"), "cannot be reached"),
    ],
)
def test_what_could_not_run_exits_with_2_and_says_what_to_do(
    cli: Cli, arguments: tuple[str, ...], message: str
) -> None:
    done = cli.run(*arguments, code=2)
    flat = " ".join(done.stderr.replace("│", " ").split())
    assert message in flat
    assert "canary-4711" not in flat


def test_migrate_says_the_version(cli: Cli) -> None:
    assert cli.json("migrate") == {"version": head_version()}


def test_doctor_finds_nothing_wrong_here(cli: Cli) -> None:
    findings = {finding["check"]: finding["ok"] for finding in cli.json("doctor")}
    assert findings == {
        "database": True,
        "device": True,
        "pool": True,
        "photos: images": True,
        "photos: model": True,
    }


def test_doctor_says_what_is_wrong_and_what_to_do(cli: Cli, empty_postgres_url: str) -> None:
    (cli.folder / "pipelines.toml").write_text('[photos]\nimages = "nowhere"\nmodel = "nothing"\n')
    findings = {finding["check"]: finding for finding in cli.json("doctor", "--database", empty_postgres_url, code=1)}
    assert "./afterimage migrate" in findings["database"]["finding"]
    assert "does not exist. Create it" in findings["photos: images"]["finding"]
    assert "Point `model` at a bundle folder" in findings["photos: model"]["finding"]
    (cli.folder / "pipelines.toml").write_text("broken")
    assert any("not valid TOML" in finding["finding"] for finding in cli.json("doctor", code=1))


def test_every_command_has_help(cli: Cli) -> None:
    listed = cli.run("--help").stdout
    for command in ("predict", "status", "show", "failures", "erase", "migrate", "doctor"):
        assert command in listed
        assert "--json" in cli.run(command, "--help").stdout


def test_sigterm_outside_the_shards_closes_the_run(cli: Cli) -> None:
    """As `kill` or a shutdown meets it while it lists or deduplicates."""
    program = (
        "import os, signal, sys\nfrom tasks import cli, road\n"
        "def deduplicate(*_):\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "road.deduplicate = deduplicate\n"
        "sys.argv = ['afterimage', 'predict', 'photos']\ncli.main()\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=cli.folder, env=cli.environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "Run the same command again" in done.stderr
    (run,) = cli.json("status")
    assert (run["state"], run["open"]) == ("failed", 6)
    assert cli.json("predict", "photos")["predicted"] == 6
