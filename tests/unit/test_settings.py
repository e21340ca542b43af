"""pipelines.toml and the environment: what is wrong is said with its place, its value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.cache.database import connect
from tasks.errors import ConfigurationError
from tasks.pipelines import RASTER_SUFFIXES, Pipeline, find_pipeline, load_pipelines
from tasks.settings import PROJECT, load_settings

GOOD = 'images = "s3://bucket/photos/"\nmodel = "torchvision:resnet18"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pipelines.toml"


def refusal(file: Path, text: str) -> str:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as refused:
        load_pipelines(file)
    return str(refused.value)


def pipeline(file: Path, more: str = "", images: str = "s3://bucket/", model: str = "torchvision:resnet18") -> Pipeline:
    file.write_text(f'[photos]\nimages = "{images}"\nmodel = "{model}"\n{more}\n', encoding="utf-8")
    return load_pipelines(file)["photos"]


def test_a_table_with_images_and_a_model_is_enough(file: Path) -> None:
    found = pipeline(file)

    assert found.name == "photos"
    assert found.schedule is None
    assert found.include == RASTER_SUFFIXES
    assert (found.shard_seconds, found.max_shards, found.commit_images) == (300, 64, 2_000)
    assert (found.lookback_days, found.keep_runs_days, found.max_failure_rate) == (3, 7, 0.05)


def test_pipelines_keep_the_order_of_the_file(file: Path) -> None:
    file.write_text("".join(f"[{name}]\n{GOOD}" for name in ("zebra", "ant", "mole")))

    assert list(load_pipelines(file)) == ["zebra", "ant", "mole"]


def test_an_unknown_key_is_named_with_the_keys_that_are_allowed(file: Path) -> None:
    message = refusal(file, f"[photos]\n{GOOD}shcedule = '@daily'\n")

    assert message.startswith(f"{file}: [photos] has an unknown key 'shcedule' (= '@daily')")
    for key in ("images", "model", "schedule", "include", "max_failure_rate"):
        assert key in message.partition("Allowed keys")[2]


def test_a_table_inside_a_table_is_an_unknown_key(file: Path) -> None:
    assert "[photos] has an unknown key 'more'" in refusal(file, f"[photos]\n{GOOD}[photos.more]\na = 1\n")


def test_a_missing_key_is_named(file: Path) -> None:
    message = refusal(file, '[photos]\nimages = "s3://bucket/"\n')

    assert message.startswith(f"{file}: [photos] lacks the key 'model'")


def test_every_problem_of_a_table_is_told_at_once(file: Path) -> None:
    message = refusal(file, '[photos]\nmodel = "m"\nmax_shards = 0\nextra = 1\n')

    assert [word in message for word in ("'images'", "max_shards = 0", "'extra'")] == [True] * 3


@pytest.mark.parametrize(
    ("line", "found", "allowed"),
    [
        ("max_shards = 'many'", "max_shards = 'many'", "valid integer"),
        ("max_shards = 2.5", "max_shards = 2.5", "valid integer"),
        ("max_shards = 0", "max_shards = 0", "greater than or equal to 1"),
        ("max_shards = 1025", "max_shards = 1025", "less than or equal to 1024"),
        ("commit_images = 0", "commit_images = 0", "greater than or equal to 1"),
        ("commit_images = 100001", "commit_images = 100001", "less than or equal to 100000"),
        ("lookback_days = -1", "lookback_days = -1", "greater than or equal to 0"),
        ("lookback_days = 3651", "lookback_days = 3651", "less than or equal to 3650"),
        ("shard_seconds = 0", "shard_seconds = 0", "greater than 0"),
        ("shard_seconds = 1e9", "shard_seconds = 1000000000.0", "less than or equal to 86400"),
        ("keep_runs_days = 0", "keep_runs_days = 0", "greater than 0"),
        ("keep_runs_days = inf", "keep_runs_days = inf", "finite number"),
        ("max_failure_rate = 1.1", "max_failure_rate = 1.1", "less than or equal to 1"),
        ("max_failure_rate = -0.1", "max_failure_rate = -0.1", "greater than or equal to 0"),
        ("max_failure_rate = nan", "max_failure_rate = nan", "finite number"),
        ("include = '*.jpg'", "include = '*.jpg'", "valid tuple"),
        ("exclude = [1]", "exclude.0 = 1", "valid string"),
        ("schedule = 5", "schedule = 5", "valid string"),
        ("engine = 'celery'", "engine = 'celery'", "'airflow' or 'ray'"),
        ("engine = 1", "engine = 1", "'airflow' or 'ray'"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(file: Path, line: str, found: str, allowed: str) -> None:
    message = refusal(file, f"[photos]\n{GOOD}{line}\n")

    assert message.startswith(f"{file}: [photos] {found}: ")
    assert allowed in message


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("images", "gs://bucket/raw/", "Use s3://BUCKET/PREFIX or a folder"),
        ("images", "s3:///raw/", "Write s3://BUCKET/PREFIX"),
        ("images", "s3://bucket/{{ dss }}/", "Use one of: ds, ds_nodash"),
        ("images", "s3://bucket/{{ day }}/", "Add {{ year }}"),
        (
            "model",
            "torchvsion:resnet18",
            "expected torchvision:NAME, timm:NAME, bundle:NAME, s3://BUCKET/PREFIX or a folder",
        ),
        ("model", "gs://bucket/model/", "expected torchvision:NAME"),
    ],
)
def test_a_store_or_a_model_that_does_not_exist_is_refused_where_it_is_written(
    file: Path, key: str, value: str, allowed: str
) -> None:
    table = {"images": "s3://bucket/", "model": "m", key: value}
    message = refusal(file, "[photos]\n" + "".join(f'{name} = "{said}"\n' for name, said in table.items()))

    assert message.startswith(f"{file}: [photos] {key} = {value!r}: ")
    assert allowed in message


def test_a_folder_of_models_may_have_a_colon_in_its_name(file: Path) -> None:
    assert pipeline(file, "", model="./a:b").model == str(file.parent / "a:b")


def test_empty_images_are_refused(file: Path) -> None:
    assert "[photos] images = ''" in refusal(file, '[photos]\nimages = ""\nmodel = "m"\n')


@pytest.mark.parametrize(
    "cron",
    [
        "daily",
        "@once",
        "61 * * * *",
        "* * * *",
        "",
        "0 2 30 2 *",  # no February has 30 days
        "0 0 2 * * *",  # croniter reads the sixth field as seconds
    ],
)
def test_a_schedule_that_is_no_cron_expression_is_refused(file: Path, cron: str) -> None:
    message = refusal(file, f"[photos]\n{GOOD}schedule = '{cron}'\n")

    assert f"{file}: [photos] schedule = '{cron}'" in message
    assert '"0 2 * * *" or "@daily", or "none"' in message


@pytest.mark.parametrize("cron", ["0 2 * * *", "@daily", "@hourly", "*/15 6-18 * * mon-fri", "0 2 29 2 *"])
def test_cron_expressions_are_schedules(file: Path, cron: str) -> None:
    assert pipeline(file, f"schedule = '{cron}'").schedule == cron


@pytest.mark.parametrize("word", ["none", "None", " NONE "])
def test_none_is_no_schedule(file: Path, word: str) -> None:
    assert pipeline(file, f"schedule = '{word}'").schedule is None


@pytest.mark.parametrize("name", ["a b", "été", "a/b", "x" * 101])
def test_a_name_that_cannot_be_a_dag_id_is_refused(file: Path, name: str) -> None:
    message = refusal(file, f'["{name}"]\n{GOOD}')

    assert f"[{name}] name = {name!r}" in message


def test_a_value_outside_a_table_is_refused(file: Path) -> None:
    message = refusal(file, f"workers = 3\n[photos]\n{GOOD}")

    assert message.startswith(f"{file}: workers = 3 stands outside a table.")


def test_a_key_called_name_is_refused(file: Path) -> None:
    assert "[photos] has a key 'name'" in refusal(file, f"[photos]\n{GOOD}name = 'other'\n")


@pytest.mark.parametrize("text", ["[photos\n", f"[photos]\n{GOOD}[photos]\n{GOOD}", "a = \n"])
def test_bad_toml_is_told_with_file_and_line(file: Path, text: str) -> None:
    message = refusal(file, text)

    assert message.startswith(f"{file} is not valid TOML")
    assert "line" in message


def test_a_file_that_is_not_utf8_is_no_toml(file: Path) -> None:
    file.write_bytes(b"[caf\xe9]\n")

    with pytest.raises(ConfigurationError, match="is not valid TOML"):
        load_pipelines(file)


def test_a_missing_file_is_named_with_the_variable_that_points_to_it(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"{file} does not exist.*AFTERIMAGE_PIPELINES"):
        load_pipelines(file)


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"{tmp_path} cannot be read: Is a directory.*AFTERIMAGE_PIPELINES"):
        load_pipelines(tmp_path)


def test_an_empty_file_has_no_pipelines(file: Path) -> None:
    file.touch()

    assert load_pipelines(file) == {}
    with pytest.raises(ConfigurationError, match=r"no pipeline 'photos'\. It has: none"):
        find_pipeline(file, "photos")


def test_an_unknown_pipeline_is_told_with_those_that_exist(file: Path) -> None:
    file.write_text(f"[zebra]\n{GOOD}[ant]\n{GOOD}")

    assert find_pipeline(file, "ant").name == "ant"
    with pytest.raises(ConfigurationError, match=rf"{file} has no pipeline 'bee'. It has: zebra, ant"):
        find_pipeline(file, "bee")


def test_relative_paths_are_taken_from_the_folder_of_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))

    found = pipeline(file, images="data/../raw/{{ ds }}/", model="models/digits")

    assert found.images == f"{file.parent}/raw/{{{{ ds }}}}/"
    assert found.model == f"{file.parent}/models/digits"


def test_a_relative_file_of_weights_is_taken_from_the_folder_of_the_file(file: Path) -> None:
    assert pipeline(file, model="torchvision:resnet18?weights=models/w.safetensors").model == (
        f"torchvision:resnet18?weights={file.parent}/models/w.safetensors"
    )


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a//b?c#d%20/",
        "file:///data/x/",
        "/data/x",
        "torchvision:resnet18",
        "torchvision:resnet18?weights=random&seed=3",
        "torchvision:resnet18?weights=default",
        "torchvision:resnet18?weights=/data/w.safetensors",
    ],
)
def test_uris_and_absolute_paths_stay_as_they_are(file: Path, uri: str) -> None:
    assert pipeline(file, images="s3://bucket/", model=uri).model == uri


def with_thumbnails(images: str, thumbnails: str) -> str:
    return f'[photos]\nimages = "{images}"\nmodel = "torchvision:resnet18"\nthumbnails = "{thumbnails}"\n'


@pytest.mark.parametrize(
    ("images", "thumbnails"),
    [
        ("s3://bucket/photos/", "s3://bucket/small/"),
        ("s3://bucket/photos/", "s3://bucket/photos-small"),
        ("s3://bucket/", "s3://another/"),
        ("s3://bucket/", "small"),
        ("data", "data-small"),
        ("data/raw/{{ ds }}/", "data/small"),
    ],
)
def test_thumbnails_lie_apart_from_the_images(file: Path, images: str, thumbnails: str) -> None:
    file.write_text(with_thumbnails(images, thumbnails))
    assert load_pipelines(file)["photos"].thumbnails in (thumbnails, str(file.parent / thumbnails))


def test_without_a_word_there_are_no_thumbnails(file: Path) -> None:
    assert pipeline(file).thumbnails is None


@pytest.mark.parametrize(
    ("images", "thumbnails"),
    [
        ("s3://bucket/photos/", "s3://bucket/photos/"),
        ("s3://bucket/photos/", "s3://bucket/photos"),
        ("s3://bucket/photos/", "s3://bucket/photos/small/"),
        ("s3://bucket/photos/", "s3://bucket/"),
        ("s3://bucket/photos", "s3://bucket/photos-small/"),  # "photos" is what its key begins with, no folder
        ("s3://bucket/", "s3://bucket/small"),
        ("s3://bucket/{{ ds }}/", "s3://bucket/small/"),
        ("data", "data"),
        ("data", "data/../data/small/"),
        ("data/photos", "data"),
        ("data/raw/{{ ds }}/", "data/raw/small"),
        ("data", "{here}/data/small"),
        ("{here}/data", "data/small"),
    ],
)
def test_thumbnails_among_the_images_are_refused(file: Path, images: str, thumbnails: str) -> None:
    text = with_thumbnails(images, thumbnails).replace("{here}", str(file.parent))
    message = refusal(file, text)
    assert message.startswith(f"{file}: [photos] thumbnails = ")
    assert "at, under or above the images" in message


def test_thumbnails_among_the_images_of_another_pipeline_are_refused(file: Path) -> None:
    message = refusal(
        file, with_thumbnails("s3://bucket/a/", "s3://bucket/b/small") + f"[b]\n{GOOD}".replace("photos", "b")
    )
    assert "it lies under the images of [b]" in message
    assert find_pipeline(file, "b").name == "b"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("", "at least 1 character"),
        ("ftp://host/x", "which no store serves"),
        ("s3://", "names no bucket"),
        ("small/{{ ds }}/", "without a date"),
    ],
)
def test_thumbnails_need_a_place(file: Path, value: str, told: str) -> None:
    assert told in refusal(file, with_thumbnails("s3://bucket/photos/", value))


def test_a_path_may_begin_at_the_users_home(file: Path) -> None:
    assert pipeline(file, images="~/photos").images == str(Path.home() / "photos")


def test_the_environment_sets_what_the_installation_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFTERIMAGE_HOME", str(tmp_path))
    monkeypatch.setenv("AFTERIMAGE_BATCH_SIZE", "7")
    monkeypatch.setenv("AFTERIMAGE_DATABASE", "postgresql://me:secret@host/cache")
    monkeypatch.setenv("AFTERIMAGE_UNKNOWN", "x")

    found = load_settings()

    assert (found.home, found.batch_size) == (tmp_path, 7)
    assert found.database_url == "postgresql://me:secret@host/cache"
    assert (found.bundles, found.compiled) == (tmp_path / "bundles", tmp_path / "compiled")


def test_without_an_environment_the_cache_is_a_file_in_the_project() -> None:
    assert load_settings().database_url == f"sqlite:///{PROJECT / 'var' / 'afterimage.db'}"
    assert load_settings().pipelines == PROJECT / "pipelines.toml"


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERIMAGE_READERS", "4")

    assert load_settings(readers=5).readers == 5


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE", "S3_ENDPOINT", "S3_ACCESS_KEY", "BATCH_SIZE"):
        monkeypatch.setenv(f"AFTERIMAGE_{name}", "")

    found = load_settings()

    assert (found.database, found.s3_endpoint, found.s3_access_key, found.batch_size) == (None, None, None, None)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("BATCH_SIZE", "0", "greater than or equal to 1"),
        ("READERS", "many", "valid integer"),
        ("DECODERS", "-1", "greater than or equal to 1"),
        ("DEVICE", "tpu", "(auto|cpu|cuda("),
        ("DEVICE", "cuda:x", "(auto|cpu|cuda("),
        ("EXECUTOR", "dask", "'local', 'celery' or 'kubernetes'"),
    ],
)
def test_a_wrong_variable_is_told_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(f"AFTERIMAGE_{name}", value)

    with pytest.raises(ConfigurationError) as refused:
        load_settings()

    assert f"AFTERIMAGE_{name} is {value!r}" in str(refused.value)
    assert allowed in str(refused.value)


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERIMAGE_DATABASE", "postgresql://me:hunter2@host/cache")
    monkeypatch.setenv("AFTERIMAGE_S3_SECRET_KEY", "hunter2")

    found = load_settings()

    assert found.s3_secret_key is not None
    assert found.s3_secret_key.get_secret_value() == "hunter2"
    for shown in (repr(found), str(found), repr(found.model_dump()), found.model_dump_json()):
        assert "hunter2" not in shown


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().readers = 3  # type: ignore[misc]


def test_a_path_that_no_machine_has_is_refused_with_its_place(file: Path) -> None:
    for line in ('images = "a\\u0000b"', 'images = "s3://bucket/a\\u0000b"', 'images = "~nobody-has-this-name/x"'):
        message = refusal(file, f'[photos]\n{line}\nmodel = "torchvision:resnet18"\n')
        assert message.startswith(f"{file}: [photos] images = ")
    for model in ("a\\u0000b", "~nobody-has-this-name/x"):
        message = refusal(file, f'[photos]\nimages = "s3://bucket/"\nmodel = "{model}"\n')
        assert message.startswith(f"{file}: [photos] model = ")


def test_an_hour_costs_no_infinity_of_dollars() -> None:
    for value in ("inf", "nan"):
        with pytest.raises(ConfigurationError, match="AFTERIMAGE_COST_PER_HOUR is "):
            load_settings(cost_per_hour=value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://me:canary-4711@host:port/x", "not a database URL"),
        ("postgresql+nothing://me:canary-4711@host/x", "names 'postgresql\\+nothing'"),
        ("sqlite://me:canary-4711@host/x.db", "SQLite is a file"),
        ("sqlite:///a\0b", "cannot be made: embedded null byte"),
        ("sqlite:////proc/nowhere/x.db", "cannot be made: .*Name another one"),
    ],
)
def test_a_url_that_is_no_database_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        connect(url)
    assert "canary-4711" not in str(refused.value)
