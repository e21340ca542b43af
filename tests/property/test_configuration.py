"""Whatever stands in pipelines.toml, model.toml or the environment: it works, or it is refused with its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.cache.database import connect
from tasks.location import parse_location
from tasks.models.bundle import Bundle, read_bundle
from tasks.pipelines import Pipeline, load_pipelines
from tasks.settings import Settings, load_settings
from tasks.uris import without_secrets
from tests.pictures import write_small_bundle
from tests.property.values import NUMBERS, ODD_TEXT, SCALARS, TEXT, TOML, attempt, table, written

PIPELINE = {"images": "s3://bucket/raw/", "model": "torchvision:resnet18"}
PIPELINE_KEYS = [name for name in Pipeline.model_fields if name != "name"]


@given(st.sampled_from(PIPELINE_KEYS), TOML)
@example("images", "a\0b")
@example("images", "~nobody-has-this-name/x")
@example("images", "s3://bucket/{{ ds }}/a\0b")
@example("model", "a\0b")
@example("model", ["~nobody-has-this-name/x", "b"])
@example("cascade_margin", float("nan"))
@example("shard_seconds", 10**400)
@example("max_shards", float("inf"))
@example("schedule", "\0 * * * *")
@example("include", ["[" * 200])
def test_any_value_in_any_key_of_a_pipeline(tmp_path: Path, key: str, value: Any) -> None:
    file = tmp_path / "pipelines.toml"
    file.write_text("[photos]\n" + table({**PIPELINE, key: value}), encoding="utf-8")
    found, refusal = attempt(load_pipelines, file)
    if found is None:
        assert str(file) in refusal
        assert "[photos]" in refusal
        # A list of models is right, and lacks its margin.
        assert key in refusal or (key == "model" and "'cascade_margin'" in refusal)
    else:
        parse_location(found["photos"].images)


@given(TEXT | ODD_TEXT, TOML)
def test_any_name_of_a_table_and_any_value_outside_one(tmp_path: Path, name: str, value: Any) -> None:
    file = tmp_path / "pipelines.toml"
    for text in (f"[{written(name)}]\n{table(PIPELINE)}", f"{written(name)} = {written(value)}\n"):
        file.write_text(text, encoding="utf-8")
        found, refusal = attempt(load_pipelines, file)
        assert found is not None or str(file) in refusal


@given(st.binary(max_size=60) | TEXT.map(str.encode))
def test_any_bytes_as_a_file(tmp_path: Path, data: bytes) -> None:
    for file, read in ((tmp_path / "pipelines.toml", load_pipelines), (tmp_path / "model.toml", _bundle_of)):
        file.write_bytes(data)
        found, refusal = attempt(read, file)
        assert found is not None or str(file) in refusal


def _bundle_of(file: Path) -> Bundle:
    return read_bundle(file.parent)


MANIFEST: dict[str, Any] = {"name": "small", "architecture": "small_cnn", "top_k": 2}
PREPROCESSING: dict[str, Any] = {"resize": 16, "crop": 16, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
MANIFEST_KEYS = [
    "name",
    "version",
    "architecture",
    "weights",
    "labels",
    "precision",
    "top_k",
    "preprocessing",
    "options",
]
MANIFEST_KEYS += ["network", "pruned", "trusted", "files", "provenance"]
FILE_NAMES = st.sampled_from(["a\0b", "..", ".", "", "labels.txt", "x" * 300, "\n", "weights.safetensors"])


def manifest(top: dict[str, Any], preprocessing: dict[str, Any]) -> str:
    inner = "" if "preprocessing" in top else f"[preprocessing]\n{table(preprocessing)}"
    return table(top) + inner


@given(st.sampled_from(MANIFEST_KEYS), TOML | FILE_NAMES)
@example("weights", "a\0b")
@example("labels", "..")
@example("labels", "x" * 300)
@example("files", {"labels.txt": "0" * 64})
@example("options", {"width": 10**400})
@example("options", {"a": float("nan")})
def test_any_value_in_any_key_of_a_bundle(home: Path, key: str, value: Any) -> None:
    check(bundle(home), manifest({**MANIFEST, key: value}, PREPROCESSING), key)


@given(st.sampled_from([*PREPROCESSING, "decode", "interpolation"]), TOML | st.lists(NUMBERS, min_size=3, max_size=3))
@example("std", [float("nan"), 1, 1])
@example("mean", [float("inf"), 1, 1])
@example("mean", [10**400, 1, 1])
@example("std", [5e-324, 1, 1])
def test_any_value_in_preprocessing(home: Path, key: str, value: Any) -> None:
    check(bundle(home), manifest(MANIFEST, {**PREPROCESSING, key: value}), key)


def bundle(home: Path) -> Path:
    """A bundle that is right; its model.toml is written anew each time."""
    folder = home / "any-value"
    return folder if folder.exists() else write_small_bundle(folder)


def check(folder: Path, text: str, key: str) -> None:
    (folder / "model.toml").write_text(text, encoding="utf-8")
    found, refusal = attempt(lambda: read_bundle(folder).model_id)
    # A file that is missing or differs is named itself.
    assert found is not None or ("model.toml" in refusal and key in refusal) or str(folder) in refusal


@given(st.sampled_from(list(Settings.model_fields)), (SCALARS | ODD_TEXT).map(str))
@example("s3_endpoint", "http://[")
@example("cost_per_hour", "nan")
@example("cost_per_hour", "inf")
@example("home", "~nobody-has-this-name")
def test_any_value_in_the_environment(name: str, value: str) -> None:
    value = value.replace("\0", "")
    variable = f"AFTERIMAGE_{name.upper()}"
    with patch.dict(os.environ, {variable: value}):
        found, refusal = attempt(load_settings)
    if found is None:
        assert refusal.startswith(f"{variable} is ")
        return
    assert value == "" or name in found.model_fields_set
    assert found.cost_per_hour is None or 0 <= found.cost_per_hour < float("inf")


SCHEMES = st.sampled_from(
    ["sqlite", "postgresql", "postgres", "postgresql+psycopg2", "postgresql+x", "mysql", "", "x y"]
)


@given(st.builds("{}://{}".format, SCHEMES, TEXT) | TEXT | ODD_TEXT)
@example("postgresql://[")
@example("postgresql://host:port/x")
@example("postgresql+x://host/x")
@example("sqlite:///a\0b")
@example("sqlite:///~nobody/x.db")
@example("sqlite:////proc/nowhere/x.db")
@example("postgresql://u:secret@h:99999999999/x")
def test_any_url_of_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    found, refusal = attempt(connect, url)
    assert found is not None or "AFTERIMAGE_DATABASE" in refusal
    assert "secret" not in refusal


@given(TEXT | ODD_TEXT | st.builds("{}://{}".format, st.sampled_from(["s3", "file", "gs", ""]), TEXT))
@example("a\0b")
@example("s3://a/b\0")
@example("~nobody-has-this-name/x")
@example("://@")
def test_any_uri_of_images(uri: str) -> None:
    found, refusal = attempt(parse_location, uri)
    if found is None:
        # What looks like a secret is not shown.
        named = repr(uri) in refusal or f"{without_secrets(uri)!r} starts with" in refusal
        assert named or "images" in refusal.lower() or refusal.startswith("The address holds a key")
        return
    assert found.root
    assert "\0" not in found.root
