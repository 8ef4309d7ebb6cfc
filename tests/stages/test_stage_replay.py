"""Experts imported from buffers of the published code, through the stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.raising import raises

pytestmark = pytest.mark.ray


def buffer(stages, snapshots: Tensor) -> list[list[Tensor]]:
    """An expert in the published layout: per snapshot, the list of the network's tensors."""
    net = stages.steps.net
    return [list(net.unflatten(row).values()) for row in snapshots]


@pytest.fixture
def buffers(stages, whole, tmp_path: Path) -> Path:
    """The three experts of ``whole`` in two files, as the published code would have saved them."""
    experts = [buffer(stages, whole.expert(i)["snapshots"]) for i in range(3)]
    folder = tmp_path / "buffers"
    folder.mkdir()
    torch.save(experts[:2], folder / "replay_buffer_0.pt")
    torch.save(experts[2:], folder / "replay_buffer_1.pt")
    return folder


def test_imported_experts_are_the_ones_saved(stages, whole, buffers, tmp_path):
    """Every snapshot comes in bit for bit, and the last one's accuracy is measured."""
    made = stages.experts(tmp_path / "in", keep="all", replay=str(buffers))

    for i in range(3):
        assert torch.equal(made.expert(i)["snapshots"], whole.expert(i)["snapshots"])
    assert made.summary["count"] == 3
    assert made.summary["epochs"] == whole.summary["epochs"]
    assert made.summary["test_accuracy"] == pytest.approx(whole.summary["test_accuracy"])


def test_imported_experts_are_matched_like_trained_ones(stages, whole, buffers, tmp_path):
    """Matching imported experts gives the set that matching the original ones gives."""
    imported = stages.experts(tmp_path / "in", keep="all", replay=str(buffers))
    ours = stages.match(whole, tmp_path / "a", trajectory="snapshots")
    theirs = stages.match(imported, tmp_path / "b", trajectory="snapshots")

    assert torch.equal(ours.distilled.images, theirs.distilled.images)


def test_fewer_experts_and_epochs_on_request(stages, buffers, tmp_path):
    """count and epochs take the first of what is there, and convexify it."""
    made = stages.experts(tmp_path / "in", replay=str(buffers), count=2, epochs=3)

    assert made.summary["count"] == 2
    assert made.summary["epochs"] == 3
    assert made.summary["waypoints"] == [0, 3]


def test_more_epochs_than_there_are(stages, buffers, tmp_path):
    """Asking for more epochs than were saved names both numbers."""
    with raises("buffer-too-short"):
        stages.experts(tmp_path / "in", replay=str(buffers), epochs=9)


def test_experts_that_only_guess_are_refused(stages, tmp_path):
    """Experts of other images or another pixel space are noticed by what they get right."""
    draws = torch.Generator().manual_seed(0)
    shuffled = torch.randn(6, sum(stages.steps.net.sizes), generator=draws) * 0.01
    torch.save([buffer(stages, shuffled)], tmp_path / "replay_buffer_0.pt")
    with raises("buffer-guesses"):
        stages.experts(tmp_path / "in", replay=str(tmp_path))


def test_waypoints_beyond_imported_experts(stages, buffers, tmp_path):
    """How long imported experts are shows when they are read: waypoints that end elsewhere are refused then."""
    imported = stages.experts(tmp_path / "in", replay=str(buffers), epochs=5, keep="all")
    with raises("waypoints-do-not-fit"):
        stages.match(imported, tmp_path / "out", waypoints=[0, 9])


def test_windows_beyond_imported_experts(stages, buffers, tmp_path):
    """Windows that reach beyond the imported experts' end are refused with both numbers."""
    imported = stages.experts(tmp_path / "in", replay=str(buffers), epochs=3)
    with raises("experts-too-short"):
        stages.match(imported, tmp_path / "out")
