"""A cascade as a value: what it is, what pipelines.toml and a descriptor say of it, and how its batches are filled."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.cache.outcome import Finished
from tasks.errors import ConfigurationError, ModelError
from tasks.inference import batching
from tasks.inference.batching import batches
from tasks.inference.meters import Meters
from tasks.inference.reading import Work
from tasks.inference.stages import Buffered, Room
from tasks.models.bundle import Bundle, read_bundle
from tasks.models.cascade import Model, pixels_key, resolve_models
from tasks.pipelines import Pipeline, load_pipelines, make_pipeline
from tasks.plan import ShardDescriptor
from tasks.settings import load_settings
from tasks.stage_times import PROCESSOR, StageTimes, held_back_by, ordered, summary
from tasks.storage.base import ImageObject
from tests.pictures import write_small_bundle


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path / "small"))


@pytest.fixture
def large(tmp_path: Path) -> Bundle:
    return read_bundle(write_small_bundle(tmp_path / "large", seed=1, name="large"))


def test_one_bundle_alone_is_what_it_always_was(small: Bundle) -> None:
    model = Model((small,))
    assert model.model_id == small.model_id
    assert model.identity() == small.identity()
    assert (model.name, model.version, model.top_k, model.labels) == ("small", "1", 2, small.labels)


def test_a_cascades_model_id_is_a_hash_of_what_decides_its_answers(small: Bundle, large: Bundle) -> None:
    model = Model((small, large), (0.4,))
    content = {"scheme": 1, "stages": [small.model_id, large.model_id], "margins": [0.4]}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert model.model_id == hashlib.sha256(canonical.encode()).hexdigest()
    others = [
        Model((small, large), (0.5,)),
        Model((large, small), (0.4,)),
        Model((small, replace(large, spec=replace(large.spec, top_k=3))), (0.4,)),
        Model((small, small, large), (0.4, 0.4)),
        Model((small,)),
        Model((large,)),
    ]
    assert len({model.model_id, *(other.model_id for other in others)}) == 7


def test_the_row_of_a_cascade_names_its_stages_and_stays_short(small: Bundle, large: Bundle) -> None:
    model = Model((small, large), (0.4,))
    identity = json.loads(json.dumps(model.identity()))
    assert [stage["name"] for stage in identity["stages"]] == ["small", "large"]
    assert [stage["model_id"] for stage in identity["stages"]] == [small.model_id, large.model_id]
    assert identity["margins"] == [0.4]
    assert not any("labels" in stage for stage in identity["stages"])
    assert (model.name, model.version) == ("small+large", "1+1")


def test_other_labels_are_refused_and_the_first_that_differs_is_named(tmp_path: Path, small: Bundle) -> None:
    other = read_bundle(write_small_bundle(tmp_path / "other", labels=("dark", "red", "blue", "green"), name="other"))
    with pytest.raises(ModelError, match=r"output 2 is 'green' in small .* and 'blue' in other"):
        Model((small, other), (0.4,))
    fewer = read_bundle(write_small_bundle(tmp_path / "fewer", labels=("dark", "red"), name="fewer"))
    with pytest.raises(ModelError, match=r"output 2 is 'green' in small .* and missing in fewer"):
        Model((small, fewer), (0.4,))


def test_uris_are_resolved_in_their_order(tmp_path: Path, small: Bundle, large: Bundle) -> None:
    settings = load_settings(home=tmp_path / "home")
    found = resolve_models([str(small.folder), str(large.folder)], [0.25], settings)
    assert found.model_id == Model((small, large), (0.25,)).model_id
    with pytest.raises(ModelError, match="2 models and 0 margins"):
        resolve_models([str(small.folder), str(large.folder)], [], settings)


def test_pixels_differ_by_what_is_decoded_and_not_by_how_it_is_normalised(small: Bundle) -> None:
    preprocessing = small.spec.preprocessing
    assert pixels_key(preprocessing) == pixels_key(replace(preprocessing, mean=(0, 0, 0), std=(1, 1, 1)))
    for change in ({"crop": 8}, {"resize": 20}, {"decode": "fast-1"}, {"interpolation": "bicubic"}):
        assert pixels_key(preprocessing) != pixels_key(replace(preprocessing, **change)), change


# pipelines.toml


def table(tmp_path: Path, text: str) -> Pipeline:
    file = tmp_path / "pipelines.toml"
    file.write_text(f'[photos]\nimages = "in"\n{text}\n')
    return load_pipelines(file)["photos"]


def test_one_margin_stands_for_all_and_paths_are_taken_from_the_file(tmp_path: Path) -> None:
    found = table(
        tmp_path, 'model = ["a", "s3://b/c/", "torchvision:resnet18?weights=w.safetensors"]\ncascade_margin = 0.5'
    )
    assert found.models == (
        str(tmp_path / "a"),
        "s3://b/c/",
        f"torchvision:resnet18?weights={tmp_path}/w.safetensors",
    )
    assert found.margins == (0.5, 0.5)
    assert table(tmp_path, 'model = ["a", "b", "c"]\ncascade_margin = [0.5, 1]').margins == (0.5, 1.0)
    alone = table(tmp_path, 'model = "a"')
    assert (alone.models, alone.margins) == ((str(tmp_path / "a"),), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'model = ["a"]\ncascade_margin = 0.4',
            "model = ['a']: expected a model, or for a cascade a list of two or more",
        ),
        ("model = []\ncascade_margin = 0.4", "model = []: expected a model"),
        ('model = ["a", 3]\ncascade_margin = 0.4', "model = ['a', 3]: expected a model"),
        ('model = ["a", "gs://b"]\ncascade_margin = 0.4', "gs: is no scheme of a model"),
        ('model = ["a", ""]\ncascade_margin = 0.4', "and it is empty"),
        ('model = ["a", "b"]', "lacks the key 'cascade_margin': a cascade needs the margin"),
        ('model = "a"\ncascade_margin = 0.4', "cascade_margin = 0.4: it belongs to a cascade"),
        ('model = ["a", "b"]\ncascade_margin = 0', "cascade_margin = 0: expected a number above 0 and at most 1"),
        ('model = ["a", "b"]\ncascade_margin = 1.01', "cascade_margin = 1.01: expected a number above 0"),
        ('model = ["a", "b"]\ncascade_margin = nan', "cascade_margin = nan: expected a number above 0"),
        ('model = ["a", "b"]\ncascade_margin = true', "cascade_margin = True: expected a number above 0"),
        ('model = ["a", "b"]\ncascade_margin = "0.4"', "cascade_margin = '0.4': expected a number above 0"),
        ('model = ["a", "b"]\ncascade_margin = [0.4, 0.5]', "expected one number, or a list of 1"),
        ('model = ["a", "b", "c"]\ncascade_margin = [0.4, 2]', "cascade_margin = [0.4, 2]: expected a number above 0"),
    ],
)
def test_what_is_no_cascade_is_refused_with_its_table_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        table(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path / 'pipelines.toml'}: [photos] ")
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_options_are_checked_like_a_table() -> None:
    with pytest.raises(ConfigurationError, match="photos with these options cascade_margin = 3: expected"):
        make_pipeline(
            {"name": "photos", "images": "in", "model": ("a", "b"), "cascade_margin": 3}, "photos with these options"
        )


def test_a_descriptor_goes_through_json_unchanged() -> None:
    one = ShardDescriptor(1, 1, 0, 1, 9, "in", "file:///in", ("a", "b"), (0.4,), "f" * 64, 1, 2_000, False, "cache")
    values = one.to_dict()
    assert (values["models"], values["margins"]) == (["a", "b"], [0.4])
    assert ShardDescriptor.from_dict(json.loads(json.dumps(values))) == one
    small = replace(one, thumbnails="s3://bucket/small")
    assert ShardDescriptor.from_dict(json.loads(json.dumps(small.to_dict()))) == small


def test_a_descriptor_from_before_there_were_thumbnails_has_none() -> None:
    values = ShardDescriptor(
        1, 1, 0, 1, 9, "in", "file:///in", ("a",), (), "f" * 64, 1, 2_000, False, "cache"
    ).to_dict()
    del values["thumbnails"]
    assert ShardDescriptor.from_dict(values).thumbnails is None


# Batches


def open_image(number: int, data: bytes | None = None) -> Work:
    return Work(ImageObject(str(number), "etag", 1, None), data=data)  # type: ignore[arg-type]


def finished_image(number: int) -> Work:
    return Work(ImageObject(str(number), "etag", 1, None), finished=Finished(str(number)))  # type: ignore[arg-type]


def groups_of(works: Iterator[Work], size: int, most_bytes: int = 2**20) -> list[tuple[int, int]]:
    """(finished, others) of each group."""
    source = Buffered(works, Room(1_000))
    return [
        (sum(work.finished is not None for work in group), sum(work.finished is None for work in group))
        for group in batches(source, size, most_bytes)
    ]


def test_finished_images_do_not_flush_a_batch_that_is_not_full() -> None:
    """Each tenth image goes on: batches of 8 must come out full although hundreds of others go past."""
    works = (open_image(number) if number % 10 == 0 else finished_image(number) for number in range(1_600))
    groups = groups_of(works, 8)
    assert [others for _, others in groups if others] == [8] * 20
    assert sum(finished for finished, _ in groups) == 1_440
    assert max(finished for finished, _ in groups) <= batching.GROUP


def test_finished_images_go_on_while_others_wait() -> None:
    seen = threading.Event()

    def works() -> Iterator[Work]:
        yield open_image(0)
        for number in range(1, batching.GROUP + 1):
            yield finished_image(number)
        seen.wait()

    found = batches(Buffered(works(), Room(1_000)), 8, 2**20)
    assert [work.finished is None for work in next(found)] == [False] * batching.GROUP
    seen.set()
    assert [[work.listed.key for work in group] for group in found] == [["0"]]


def test_an_idle_source_and_its_end_flush_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "IDLE_SECONDS", 0.02)

    def works() -> Iterator[Work]:
        yield from (open_image(number) for number in range(11))
        time.sleep(0.2)
        yield from (open_image(number) for number in range(11, 14))

    assert groups_of(works(), 8) == [(0, 8), (0, 3), (0, 3)]


def test_nothing_waits_for_ever_in_a_steady_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 0.05)

    def works() -> Iterator[Work]:
        yield open_image(0)
        for number in range(1, 40):
            time.sleep(0.01)
            yield finished_image(number)

    groups = groups_of(works(), 8)
    assert groups[0][1] == 1
    assert groups[0][0] < 39


def test_files_that_are_kept_bound_a_batch_in_bytes() -> None:
    works = (open_image(number, b"x" * 400) for number in range(10))
    assert groups_of(works, 8, 1_000) == [(0, 3), (0, 3), (0, 3), (0, 1)]


# What stages say


def test_stages_of_a_cascade_stand_in_the_order_of_its_images() -> None:
    names = ["commit", "forward_2", "read", "decode_2", "forward", PROCESSOR, "decode", "look_up", "forward_10"]
    assert ordered(names) == [
        *("read", "look_up", "decode", "forward", "decode_2", "forward_2", "forward_10", "commit"),
    ]


def test_a_later_forward_pass_is_named_in_words_and_in_the_summary() -> None:
    times = {name: StageTimes(100, 0, 2.0, 10.0) for name in ("read", "decode", "forward", "commit")}
    times["forward_2"] = StageTimes(30, 0, 9.5, 10.0)
    assert held_back_by(times) == "the forward pass of model 2 was busy 95% of the time"
    assert summary(times)["forward_2"]["items"] == 30
    times[PROCESSOR] = StageTimes(busy=9.5, capacity=10.0)
    assert "most of it for forward_2 (61%) and decode (13%)" in (held_back_by(times) or "")
    del times[PROCESSOR], times["forward_2"]
    times["decode_2"] = StageTimes(30, 0, 9.5, 10.0)
    assert held_back_by(times) == "decoding of model 2 was busy 95% of the time"


def test_images_that_go_past_a_later_stage_are_checked_and_not_counted_as_its_own() -> None:
    workers = dict.fromkeys(("read", "look_up", "decode", "forward", "forward_2", "commit"), 1)
    meters = Meters(workers, 2)
    for stage in ("read", "look_up", "decode", "forward", "commit"):
        meters[stage].pass_on(10)
    meters["forward_2"].pass_on(7)
    with meters["forward_2"].work(3):
        pass
    meters.check("shard 1/1", 10)
    assert meters["forward_2"].times().items == 3
    meters["forward_2"].went_by -= 1
    with pytest.raises(Exception, match="10 images left forward and 9 reached forward_2"):
        meters.check("shard 1/1", 10)
