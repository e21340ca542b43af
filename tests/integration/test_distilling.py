"""Distillation: a student learns without labels, a kill undoes nothing, and the command keeps what is good enough."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn
from typer.testing import CliRunner

from tasks import progress
from tasks.cli import app
from tasks.errors import ConfigurationError, ModelError
from tasks.models.architectures import build
from tasks.models.bundle import Bundle, ModelSpec, Preprocessing, read_bundle, write_bundle
from tasks.models.loading import Classifier, load_classifier, wrap
from tasks.models.runtimes import open_runtime
from tasks.optimisation.checkpoints import Checkpoints
from tasks.optimisation.choosing import Sample
from tasks.optimisation.distilling import Distillation, Step, _learn_mode, augment, distance, distil, learning_rate
from tasks.optimisation.pruning import Pruning, prune
from tasks.optimisation.recovering import Request, checkpoints_of, recover
from tasks.optimisation.sample import list_sample
from tasks.settings import Settings, load_settings
from tests.conftest import ROOT, outer_environment
from tests.pictures import LABELS

pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed: make extra-pruning")

IMAGES, CROP = 48, 16


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that what is learnt is the same every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coarse patches of colour, 24 x 24 pixels, which a small network sees differently."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        patches = np.random.default_rng(number).integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(patches).resize((24, 24), Image.Resampling.NEAREST).save(folder / f"{number:05d}.png")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", device="cpu")


@pytest.fixture
def original(tmp_path: Path, images: Path, settings: Settings) -> Bundle:
    """A random small_cnn of 32 and 64 channels, whose answers to the images are all labels alike."""
    torch.manual_seed(0)
    spec = ModelSpec(
        name="teacher",
        architecture="small_cnn",
        options={"width": 32},
        top_k=2,
        preprocessing=Preprocessing(resize=20, crop=CROP, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    )
    network = build(spec.architecture, len(LABELS), spec.options)
    network.get_submodule("classifier").weight.data *= 8.0
    folder = tmp_path / "original"
    folder.mkdir()
    write_bundle(folder, spec, LABELS, save(network.state_dict()))
    logits = answers(load_classifier(read_bundle(folder)), sample_of(images, settings), settings)
    network.get_submodule("classifier").bias.data -= logits.median(0).values
    write_bundle(folder, spec, LABELS, save(network.state_dict()))
    return read_bundle(folder)


def sample_of(images: Path, settings: Settings) -> Sample:
    return Sample(str(images), tuple(list_sample(str(images), settings)))


def answers(classifier: Classifier, sample: Sample, settings: Settings) -> torch.Tensor:
    """Logits of the images, cropped in the middle."""
    from tasks.optimisation.sample import read_crops

    preprocessing = Preprocessing(resize=20, crop=CROP, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    groups = [crops.pixels for crops in read_crops(sample.uri, sample.images, preprocessing, settings)]
    with torch.inference_mode():
        return classifier.eval()(torch.from_numpy(np.concatenate(groups)))


def narrowed(original: Bundle) -> tuple[Classifier, Classifier]:
    teacher = load_classifier(original)
    network = prune(teacher.network, Pruning(0.5, "layer"), CROP).network
    return teacher, wrap(network, original.spec)


def test_a_student_agrees_more_with_its_teacher_than_before(
    original: Bundle, images: Path, settings: Settings, tmp_path: Path
) -> None:
    teacher, student = narrowed(original)
    sample = sample_of(images, settings)
    wanted = answers(teacher, sample, settings).argmax(1)
    assert wanted.bincount(minlength=4).min() >= 3, "the teacher sees all labels"
    before = (answers(student, sample, settings).argmax(1) == wanted).sum()
    steps: list[Step] = []
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    with checkpoints.held():
        plan = Distillation(epochs=12, learning_rate=5e-3)
        losses = distil(
            teacher, student, sample, original.spec.preprocessing, plan, checkpoints, settings, steps.append
        )

    after = (answers(student, sample, settings).argmax(1) == wanted).sum()
    assert after >= before + 5
    assert losses[-1] < 0.5 * losses[0]
    assert len(losses) == 12
    assert [(step.epoch, step.images, step.of) for step in steps[:4]] == [
        (1, 16, 48),
        (1, 32, 48),
        (1, 48, 48),
        (2, 16, 48),
    ]


# Killed


VICTIM = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tasks.models.loading import load_classifier, wrap
from tasks.models.resolving import resolve_model
from tasks.optimisation.checkpoints import Checkpoints
from tasks.optimisation.choosing import Sample
from tasks.optimisation.distilling import Distillation, distil
from tasks.optimisation.pruning import Pruning, prune
from tasks.optimisation.sample import list_sample
from tasks.settings import load_settings
from dataclasses import replace

home, images, folder, fatal = sys.argv[1:]
torch.set_num_threads(1)
settings = load_settings(home=home, device="cpu")
bundle = resolve_model("torchvision:mobilenet_v3_small?weights=random&seed=0", settings)
preprocessing = replace(bundle.spec.preprocessing, resize=36, crop=32)
teacher = load_classifier(bundle)
student = wrap(prune(teacher.network, Pruning(0.3), 32).network, bundle.spec)
sample = Sample(images, tuple(list_sample(images, settings, 20)))
checkpoints = Checkpoints(Path(folder))

def on_step(step):
    print(step.epoch, flush=True)
    if step.epoch == int(fatal):
        os.kill(os.getpid(), signal.SIGKILL)

with checkpoints.held():
    distil(teacher, student, sample, preprocessing, Distillation(epochs=3), checkpoints, settings, on_step)
save_file(student.network.state_dict(), Path(folder) / "end.safetensors")
"""


def run_victim(home: Path, images: Path, folder: Path, fatal: int = 0) -> tuple[int, list[str]]:
    """How it ended, and the epochs of its steps."""
    command = [sys.executable, "-c", VICTIM, str(home), str(images), str(folder), str(fatal)]
    environment = outer_environment(OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.split()


def test_a_killed_distillation_ends_as_an_undisturbed_one(images: Path, tmp_path: Path) -> None:
    """With BatchNorm, whose statistics are learnt too, and a last batch that is smaller."""
    home, killed, whole = tmp_path / "home", tmp_path / "killed", tmp_path / "whole"

    assert run_victim(home, images, killed, fatal=2) == (-signal.SIGKILL, ["1", "1", "2"])
    assert [path.name for path in killed.glob("epoch-*")] == ["epoch-00001"]
    (killed / ".writing-left").mkdir()  # as a kill in the middle of a write leaves it
    assert run_victim(home, images, killed) == (0, ["2", "2", "3", "3"])
    assert run_victim(home, images, whole) == (0, ["1", "1", "2", "2", "3", "3"])

    found, expected = load_file(killed / "end.safetensors"), load_file(whole / "end.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name].double(), tensor.double(), rtol=0.0, atol=1e-6), name
    assert not list(killed.glob(".writing-*"))
    assert [path.name for path in killed.glob("epoch-*")] == ["epoch-00003"]


def test_two_processes_do_not_distil_in_one_place(tmp_path: Path) -> None:
    there = Checkpoints(tmp_path / "a")
    with there.held(), pytest.raises(ConfigurationError, match="Another process distils in"), there.held():
        pass


@pytest.mark.parametrize("name", ["student.safetensors", "optimiser.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(
    original: Bundle, images: Path, settings: Settings, tmp_path: Path, name: str
) -> None:
    teacher, student = narrowed(original)
    sample, checkpoints = sample_of(images, settings), Checkpoints(tmp_path / "checkpoints")
    preprocessing = original.spec.preprocessing
    with checkpoints.held():
        distil(teacher, student, sample, preprocessing, Distillation(1), checkpoints, settings, lambda step: None)
        (checkpoints.there()[0] / name).write_bytes(b"{")

        with pytest.raises(ModelError, match=r"epoch-00001 cannot be read: .* Remove .*checkpoints, and"):
            distil(teacher, student, sample, preprocessing, Distillation(2), checkpoints, settings, lambda step: None)


def test_a_checkpoint_belongs_to_teacher_pruning_images_and_seed_and_to_any_number_of_epochs(
    original: Bundle, images: Path, settings: Settings
) -> None:
    sample, pruning, plan = sample_of(images, settings), Pruning(0.3), Distillation()
    other = replace(original, spec=replace(original.spec, top_k=1))

    def folder(bundle: Bundle, pruning: Pruning, plan: Distillation, sample: Sample) -> Path:
        return checkpoints_of(bundle, pruning, plan, sample, settings.home).folder

    first = folder(original, pruning, plan, sample)
    assert first.parent == settings.home / "distilling"
    assert folder(original, pruning, replace(plan, epochs=99), sample) == first
    others = [
        folder(other, pruning, plan, sample),
        folder(original, Pruning(0.4), plan, sample),
        folder(original, Pruning(0.3, "layer"), plan, sample),
        folder(original, pruning, replace(plan, seed=1), sample),
        folder(original, pruning, plan, replace(sample, images=sample.images[1:])),
    ]
    assert len({first, *others}) == 6


# How it learns


def test_crops_and_mirrors_come_from_the_images_alone_and_from_the_seed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 10, 10, 3), np.uint8)

    found = augment(pixels, 8, np.random.default_rng(1))

    assert np.array_equal(found, augment(pixels, 8, np.random.default_rng(1)))
    seen = set()
    for image, crop in zip(pixels, found, strict=True):
        places = [(top, left, step) for top in range(3) for left in range(3) for step in (1, -1)]
        seen |= {at for at in places if np.array_equal(image[at[0] : at[0] + 8, at[1] : at[1] + 8][:, :: at[2]], crop)}
    assert len(seen) > 9
    assert {step for _, _, step in seen} == {1, -1}


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(Distillation(epochs=10), step, 10) for step in range(100)]

    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(5e-5, rel=0.01)
    assert rates.index(max(rates)) in range(3, 6)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 1e-6


def test_the_distance_is_the_divergence_of_softened_scores() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    soft, target = (student / 2.0).softmax(1), (teacher / 2.0).softmax(1)
    expected = 4.0 * (target * (target / soft).log()).sum(1).mean()

    assert distance(student, teacher, 2.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance(teacher, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_a_student_has_no_noise_and_its_batchnorm_follows_the_images() -> None:
    student = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    _learn_mode(student)

    assert [module.training for module in student] == [True, False]


# The command


def test_the_command_judges_before_and_after_and_goes_on_where_it_ended(
    original: Bundle, images: Path, settings: Settings, tmp_path: Path
) -> None:
    request = Request(
        model=str(original.folder),
        pruning=Pruning(0.5),
        distil=str(images),
        judge=str(images),
        plan=Distillation(epochs=1),
        min_agreement=1.0,
        rounds=1,
    )
    steps: list[Step] = []

    missed = recover(request, settings, steps.append)

    assert missed.folder is None
    assert not (settings.models / "teacher-pruned").exists()
    assert "the same command with a higher number goes on" in (missed.report / "report.md").read_text()
    making = missed.content["making"]
    assert making["multiply-accumulates of an image after"] < making["multiply-accumulates of an image before"]
    assert making["parameters after"] < making["parameters before"]
    assert 0.0 <= making["agreement before recovery"] <= 1.0
    assert making["images that taught"] == IMAGES // 2
    assert missed.content["judged"]["images"] == IMAGES // 2
    assert {step.epoch for step in steps} == {1}

    steps.clear()
    passed = recover(replace(request, plan=Distillation(epochs=3), min_agreement=0.0), settings, steps.append)

    assert {step.epoch for step in steps} == {2, 3}
    assert passed.folder == settings.models / "teacher-pruned"
    bundle = read_bundle(passed.folder)
    assert bundle.spec.pruned
    assert bundle.spec.provenance["made_from"] == original.model_id
    assert bundle.model_id != original.model_id
    pixels = np.random.default_rng(0).integers(0, 256, (4, CROP, CROP, 3), np.uint8)
    with torch.inference_mode():
        expected = load_classifier(bundle)(torch.from_numpy(pixels)).numpy()
    with closing(open_runtime(bundle, settings)) as runtime:
        np.testing.assert_allclose(runtime.predict(pixels), expected, atol=1e-4)

    steps.clear()
    again = recover(replace(request, min_agreement=0.0, name="again"), settings, steps.append)
    assert steps == []
    assert again.folder is not None
    assert read_bundle(again.folder).model_id == bundle.model_id


def test_the_command_line_prunes_without_images_to_learn_from(
    original: Bundle, images: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERIMAGE_HOME", str(settings.home))
    monkeypatch.setenv("AFTERIMAGE_DEVICE", "cpu")
    command = [
        "models",
        "prune",
        str(original.folder),
        "--channels",
        "0.4",
        "--judge",
        str(images),
        "--judge-images",
        "8",
    ]

    done = CliRunner().invoke(app, [*command, "--min-agreement", "0", "--json"])

    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["folder"] == str(settings.models / "teacher-pruned")
    assert "epochs" not in content["making"]
    load_classifier(read_bundle(settings.models / "teacher-pruned"))


def test_a_network_that_is_a_file_is_refused(
    original: Bundle, images: Path, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "file"
    folder.mkdir()
    write_bundle(folder, replace(original.spec, architecture="onnx", weights="a.onnx", options={}), LABELS, b"onnx")
    request = Request(model=str(folder), pruning=Pruning(0.5), judge=str(images))

    with pytest.raises(ModelError, match="Prune the bundle that it was made from"):
        recover(request, settings, lambda step: None)


def test_progress_elsewhere_than_on_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.training(quiet=False) as bar:
        for images in (16, 32, 48):
            bar.advance(Step(2, 2, images, 48, 0.25))

    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("epoch 2 of 2 · 32 of 48 images · ")
    assert lines[-1].startswith("epoch 2 of 2 · 48 of 48 images · ")
    assert lines[-1].endswith(" images/s · loss 0.2500 · 0 s left")
