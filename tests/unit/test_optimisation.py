"""Which images teach and judge, what their labels are, what a comparison says, and how the report tells it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.errors import ConfigurationError
from tasks.optimisation import report
from tasks.optimisation.benching import _dollars, _is_best
from tasks.optimisation.charts import draw_frontier
from tasks.optimisation.choosing import choose_samples
from tasks.optimisation.comparing import NO_ANSWER, Answers, Comparison, _answers
from tasks.optimisation.figures import Figures, Gate, figures_of
from tasks.optimisation.making import choose_maker
from tasks.optimisation.measuring import Speed, ratio
from tasks.optimisation.optimising import gate_of, name_of
from tasks.optimisation.sample import list_sample
from tasks.optimisation.truth import read_truth
from tasks.settings import Settings, load_settings
from tests.pictures import LABELS, write_pictures


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", device="cpu")


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as refused:
        call(*arguments)
    return str(refused.value)


# Which images


def keys(sample: Any) -> list[str]:
    return [image.key for image in sample.images]


def test_images_that_are_drawn_by_lot_teach_and_the_others_judge(tmp_path: Path, settings: Settings) -> None:
    """Sorted by class, the first half of the keys would teach some classes, and the others judge."""
    everything = [f"{label}/{key}" for label in "ab" for key in write_pictures(tmp_path / "images" / label, 15)]
    uri = str(tmp_path / "images")

    taught, judged = choose_samples(uri, f"{uri}/", settings, count=10)

    assert sorted(keys(taught) + keys(judged)) == everything
    assert keys(taught) == sorted(keys(taught))
    assert {key[0] for key in keys(taught)} == {key[0] for key in keys(judged)} == {"a", "b"}
    assert choose_samples(uri, uri, settings, count=10) == (taught, judged), "the same every time"
    assert [len(half.images) for half in choose_samples(uri, uri, settings)] == [15, 15]
    some = choose_samples(uri, uri, settings, count=10, limit=3)
    assert some[0] == taught
    assert set(keys(some[1])) < set(keys(judged))
    assert len(keys(some[1])) == 3


def test_a_sample_of_a_folder_is_the_same_however_it_lists(tmp_path: Path, settings: Settings) -> None:
    for number in range(40):
        (tmp_path / "images" / str(number % 4)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / str(number % 4) / f"{number}.png").touch()
    uri = str(tmp_path / "images")

    some = [image.key for image in list_sample(uri, settings, 12)]

    assert some == sorted(some)
    assert {key[0] for key in some} == set("0123"), "of every class"
    assert set(some) < {image.key for image in list_sample(uri, settings, 13)}


@pytest.mark.parametrize("count", [4, 5])
def test_where_no_image_is_left_to_judge_that_is_said(tmp_path: Path, settings: Settings, count: int) -> None:
    write_pictures(tmp_path / "images", 4)
    uri = str(tmp_path / "images")

    message = refusal(choose_samples, uri, uri, settings, count)
    assert f"There are 4 images under {uri}, and {count} of them make the model" in message


def test_a_folder_within_the_other_is_no_other_place(tmp_path: Path, settings: Settings) -> None:
    write_pictures(tmp_path / "images" / "inner", 3)
    write_pictures(tmp_path / "images" / "beside", 2)
    outer, inner, beside = (str(tmp_path / "images" / name) for name in ("", "inner", "beside"))

    message = refusal(choose_samples, inner, outer, settings)
    assert "3 of the images under" in message
    assert f"such as file://{tmp_path}/images/inner/00000.png" in message
    assert len(choose_samples(inner, beside, settings)[1].images) == 2, "equal keys in two folders are two images"


# Labels


def write_csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_are_names_or_indices_and_keys_are_whole_or_unique_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "label,key,note\nred,a/1.png,x\n2,2.png,\n3,3.png,\n dark ,gone.png,\n")
    judged = ["a/1.png", "b/2.png", "a/3.png", "b/3.png", "c/4.png"]

    assert read_truth(path, LABELS, judged) == {"a/1.png": 1, "b/2.png": 2}


def test_a_name_that_is_taken_twice_across_both_samples_is_not_unique(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "key,label\n1.png,red\n2.png,red\n")

    assert read_truth(path, LABELS, ["a/1.png", "a/2.png"], also=["b/1.png"]) == {"a/2.png": 1}
    assert read_truth(path, LABELS, ["a/2.png"], also=["b/1.png"]) == {"a/2.png": 1, "b/1.png": 1}


def test_a_label_that_is_a_number_is_a_name_first(tmp_path: Path) -> None:
    assert read_truth(write_csv(tmp_path, "key,label\na,1\n"), ("1", "0"), ["a"]) == {"a": 0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("key,name\na,red\n", "lacks the column 'label'; it has key, name"),
        ("", "lacks the column 'key'; it has none"),
        ("key,label\na,red\nb,pink\n", "line 3: 'pink' is no label of the model"),
        (
            "key,label\na,4\n",
            "line 2: '4' is no label of the model. Expected one of its 4 labels, such as 'dark', or an index",
        ),
        ("key,label\na,-1\n", "'-1' is no label"),
        ("key,label\na\n", "'' is no label"),
        ("key,label\na,red\na,blue\n", "line 3: 'a' has two labels, 'red' and 'blue'"),
        ("key,label\nb,red\n", "a label for none of the 1 images that judge: it has 'b', and the first image is 'a'"),
        ("key,label\n", "it has no row"),
    ],
)
def test_a_csv_that_says_nothing_of_the_images_is_refused(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(read_truth, write_csv(tmp_path, text), LABELS, ["a"])


def test_a_csv_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(read_truth, tmp_path / "none.csv", LABELS, ["a"])
    (tmp_path / "latin.csv").write_bytes(b"key,label\n\xe9,red\n")
    assert "is no CSV in UTF-8" in refusal(read_truth, tmp_path / "latin.csv", LABELS, ["a"])
    twice = write_csv(tmp_path, "key,label\na,crane\n")
    assert "'crane' stands for two outputs of the model: write its index" in refusal(
        read_truth, twice, ("crane", "crane"), ["a"]
    )


# Figures and gate


def answers(*best: int) -> Answers:
    labels = np.array(best, np.int32)[:, None]
    return Answers(labels, np.full(labels.shape, 0.5, np.float32))


def figures(original: list[int], new: list[int], truth: dict[str, int] | None = None) -> Figures:
    names = tuple("abcdefgh"[: len(original)])
    return figures_of(Comparison(names, (answers(*original), answers(*new)), 0), LABELS, truth or {})


def test_agreement_accuracy_and_losses() -> None:
    found = figures([0, 1, 1, 2, 3], [0, 1, 2, 2, 1], {"a": 0, "b": 1, "c": 1, "d": 0, "zz": 3})

    assert (found.agreement.count, found.agreement.images) == (3, 5)
    assert found.accuracy is not None
    assert [(each.count, each.images) for each in found.accuracy] == [(3, 4), (2, 4)]
    assert found.drop == 0.25
    assert [(each.label, each.images, each.original, each.new) for each in found.losses] == [("red", 2, 2, 1)]
    assert [(each.key, each.original, each.new, each.truth) for each in found.disagreements] == [
        ("c", "red", "green", "red"),
        ("e", "blue", "red", None),
    ]


def test_without_labels_the_classes_are_those_that_the_original_sees() -> None:
    found = figures([0, 1, 1, 2], [0, 1, 2, 3])

    assert (found.accuracy, found.drop) == (None, None)
    assert [(each.label, each.images, each.new) for each in found.classes] == [
        ("dark", 1, 1),
        ("red", 2, 1),
        ("green", 1, 0),
    ]
    assert [each.label for each in found.losses] == ["red", "green"]


def test_output_that_is_not_finite_agrees_with_nothing() -> None:
    logits = np.array([[1, 2, 3], [np.nan, 0, 0], [5, 5, 0]], np.float32)
    found = _answers(logits, top_k=2)

    assert found.labels.tolist() == [[2, 1], [NO_ANSWER, NO_ANSWER], [0, 1]]
    assert np.isfinite(found.scores).all()
    both = figures([0, NO_ANSWER], [0, NO_ANSWER], {"a": 0, "b": 1})
    assert both.agreement.count == 1
    assert [(each.key, each.original, each.new) for each in both.disagreements] == [("b", None, None)]


def test_a_share_that_is_exactly_at_the_bound_passes() -> None:
    """0.63 - 0.61 is a little more than 0.02."""
    truth = {f"{number:03d}": 0 for number in range(100)}
    right = [[0] * count + [1] * (100 - count) for count in (63, 61, 60)]
    compared = [
        figures_of(Comparison(tuple(truth), (answers(*right[0]), answers(*other)), 0), LABELS, truth)
        for other in right[1:]
    ]

    assert Gate(max_accuracy_drop=0.02, min_agreement=0.98).misses(compared[0]) == []
    missed = Gate(max_accuracy_drop=0.02, min_agreement=0.98).misses(compared[1])
    assert missed == [
        "the accuracy falls from 63.00% to 60.00% of 100 images, by 3.00 points, and 2.00 are allowed",
        "it agrees with the original on 97 of 100 images, 97.00%, and 98.00% are asked for",
    ]


def test_labels_of_images_that_nobody_could_read_open_no_gate() -> None:
    assert "needs labels of images that can be read" in refusal(Gate(0.02).misses, figures([0], [0], {"zz": 1}))


def test_the_gate_is_the_accuracy_with_labels_and_the_agreement_without() -> None:
    assert gate_of(True, None, None) == Gate(0.02, None)
    assert gate_of(False, None, None) == Gate(None, 0.98)
    assert gate_of(True, 0.9, 0.0) == Gate(0.0, 0.9)
    assert gate_of(False, 0.0, None) == Gate(None, 0.0)
    assert "--max-accuracy-drop needs labels" in refusal(gate_of, False, None, 0.1)


def test_names_and_makers_that_there_are_not() -> None:
    assert name_of(None, "old-int8") == "old-int8"
    for name in ("../up", ".hidden", "", "a b"):
        assert "is no name for a bundle" in refusal(name_of, name, "x")
    assert choose_maker("int8").runtime == "openvino"
    assert "Nothing here makes int4. There is: int8 for openvino" in refusal(choose_maker, "int4")
    assert "Nothing here makes bf16 for openvino" in refusal(choose_maker, "bf16", "openvino")


def test_what_was_tried_is_not_advised_again() -> None:
    assert "--accuracy-aware, or a looser gate" in choose_maker("int8").advises(False)
    assert choose_maker("int8").advises(True) == "more calibration images (--calibrate-images), or a looser gate"


# Speed, price and pictures


def test_speeds_are_medians_and_compared_round_by_round() -> None:
    original, new = Speed("cpu", "a", (10.0, 100.0, 20.0), None), Speed("cpu", "b", (30.0, 200.0, 40.0), None)

    assert (original.images_per_second, new.images_per_second) == (20.0, 40.0)
    assert ratio(original, new) == 2.0


def test_a_million_images_are_decoded_and_predicted() -> None:
    row = {"images_per_second": 1_000.0, "decoded_per_second": 500.0, "device": "cpu"}

    assert _dollars(row, 3.6) == pytest.approx(3.0), "0.003 s an image on a CPU"
    assert _dollars({**row, "device": "NVIDIA"}, 3.6) == pytest.approx(2.0), "the slower of both beside a GPU"
    assert _dollars(row, None) is None


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    points = [(10, 0.9), (20, 0.8), (15, 0.8), (20, 0.7), (20, 0.8)]
    rows: list[dict[str, Any]] = [{"images_per_second": speed, "share": share} for speed, share in points]

    assert [_is_best(row, rows) for row in rows] == [True, True, False, False, True]


def test_the_plot_has_a_line_for_every_model_and_cuts_no_name(tmp_path: Path) -> None:
    names = ["_odd $\\frac$", "W" * 150, *("n" * 60 for _ in range(10))]
    rows = [
        {"name": name, "images_per_second": 10.0 + number, "share": 0.5, "on_frontier": number == 11}
        for number, name in enumerate(names)
    ]
    for count in (1, 12):
        draw_frontier(rows[:count], "accuracy", tmp_path / f"{count}.png")

    pixels = [np.asarray(Image.open(tmp_path / f"{count}.png").convert("L")) for count in (1, 12)]
    assert pixels[1].shape[0] > pixels[0].shape[0] + 200, "each line of the legend has room of its own"
    for drawn in pixels:
        border = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
        assert (border == 255).all(), "nothing reaches the edge"
        assert (drawn[-60:, :400] < 128).any(), "the legend is there"
    draw_frontier([{**row, "name": "short"} for row in rows], "accuracy", tmp_path / "short.png")
    short = np.asarray(Image.open(tmp_path / "short.png").convert("L"))
    assert (short[-200:, 300:] == 255).all(), "the legend stands below the axes"


# The report


def content(**changes: Any) -> dict[str, Any]:
    model = {"name": "old", "model_id": "1" * 64, "precision": "fp32", "size_bytes": 2_000, "device": "cpu"}
    speed = {"runtime": "openvino", "images_per_second": 100.0, "rounds": [100.0], "peak_bytes": None}
    return {
        "original": {**model, **speed},
        "new": {**model, **speed, "name": "new", "precision": "int8", "size_bytes": 500},
        "folder": "/models/new",
        "gate": {
            "max_accuracy_drop": None,
            "min_agreement": 0.98,
            "passed": True,
            "misses": [],
            "advice": "a looser gate",
        },
        "judged": {"uri": "/images", "images": 100, "left_out": 2},
        "agreement": {"count": 98, "images": 98, "share": 1.0},
        "accuracy": None,
        "losses": [],
        "disagreements": [],
        "machine": "a machine",
        "times_faster": 1.5,
        "making": {},
        "provenance": {"made_from": "1" * 64},
        **changes,
    }


def test_long_lists_are_cut_in_the_markdown_and_odd_keys_break_no_table(tmp_path: Path) -> None:
    rows = [
        {
            "key": f"{number}|\n<b>",
            "original": "a",
            "original_score": 0.5,
            "new": None,
            "new_score": 0.25,
            "truth": None,
        }
        for number in range(45)
    ]
    told = content(disagreements=rows, making={"agreement before recovery": 0.4125})

    report.write(told, tmp_path / "report")

    text = (tmp_path / "report" / "report.md").read_text()
    assert "20 of 45 images are shown; report.json has all of them." in text
    assert r"| 19\|\n&lt;b> | a | 0.5000 | - | 0.2500 | - |" in text
    assert r"| 20\|" not in text
    assert "- agreement before recovery: 0.4125" in text
    assert "2 left out because they could not be read" in text
    assert "None: every class is seen as before." in text
    assert Image.open(tmp_path / "report" / "report.png").size == (1080, 384)
    shutil.rmtree(tmp_path / "report")


def test_a_missed_gate_is_told_with_what_to_try(tmp_path: Path) -> None:
    gate = {
        "max_accuracy_drop": 0.02,
        "min_agreement": None,
        "passed": False,
        "misses": ["x falls"],
        "advice": "more images",
    }

    assert report.verdict(content(gate=gate)) == "It missed the gate and was not kept: x falls. Try more images."
    assert "(agreement of at least 98.00%) and lies in /models/new" in report.verdict(content())
