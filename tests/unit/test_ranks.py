"""What a process of `./afterimage predict --workers N` takes for itself: a device and its part of the processors."""

from __future__ import annotations

import os

import pytest
import torch

from tasks.engines.rank import on_own_device, plain, share_cores
from tasks.observation import Observation
from tasks.settings import environment_of, load_settings


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [
        ("auto", 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda", 4, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", 0, ["auto"] * 3),
        ("cpu", 2, ["cpu"] * 3),
        ("cuda:1", 2, ["cuda:1"] * 3),
    ],
)
def test_every_worker_has_a_gpu_of_its_own_as_long_as_there_are_any(
    device: str, gpus: int, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    settings = load_settings(device=device)

    assert [on_own_device(settings, rank).device for rank in range(3)] == found


@pytest.mark.parametrize(
    ("cores", "workers", "shares"), [({0, 1, 2, 3, 4}, 2, [{0, 2, 4}, {1, 3}]), ({7}, 2, [{7}, None])]
)
def test_workers_share_the_processors(
    cores: set[int], workers: int, shares: list[set[int] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    for rank, share in enumerate(shares):
        given: list[set[int]] = []
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
        monkeypatch.setattr(os, "sched_setaffinity", lambda _, mine: given.append(set(mine)))  # noqa: B023
        share_cores(rank, workers)
        assert given == ([] if share is None else [share])
        assert os.environ["OMP_NUM_THREADS"] == str(len(share or {1}))


def test_an_observation_survives_json() -> None:
    seen = Observation("cpu", {"predicted": 3}, {"read": 0.5}, {"read": 0.1}, {"decode": 1.0})

    assert Observation(**plain(seen)) == seen


def test_another_process_gets_the_same_settings_with_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERIMAGE_READERS", "3")
    given = load_settings(database="postgresql://user:secret@host/name", batch_size=7)

    assert environment_of(given) == {
        "AFTERIMAGE_READERS": "3",
        "AFTERIMAGE_BATCH_SIZE": "7",
        "AFTERIMAGE_DATABASE": "postgresql://user:secret@host/name",
    }
