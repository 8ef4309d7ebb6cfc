"""Windows: drawn from the right range, on the right experts, replayable."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayddl.methods.matching.settings import Settings, WindowRule
from rayddl.methods.matching.windows import Window, cut, expert_at
from rayddl.methods.trajectories.convex import SnapshotTrajectory, convexify
from rayddl.seeds import generator
from tests.raising import refused

LEAST: dict[str, Any] = {"syn_steps": 1, "expert_epochs": 1, "max_start_epoch": 1}
"""What a definition has to say."""
SNAPSHOTS = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).cumsum(0)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), high=st.integers(1, 20), low=st.integers(0, 5))
def test_whole_starts_lie_in_the_half_open_range(seed: int, high: int, low: int) -> None:
    """MTT draws whole epochs from {T-, …, T+ - 1}."""
    rule = WindowRule(max_start_epoch=low + high, expert_epochs=2, continuous=False, min_start_epoch=low)
    start = rule.start(0, generator(seed))

    assert start == int(start)
    assert low <= start <= low + high - 1


def test_every_whole_start_occurs() -> None:
    """All epochs below max_start_epoch are drawn, none is favoured."""
    rule = WindowRule(max_start_epoch=4, expert_epochs=2, continuous=False)
    counts = torch.bincount(
        torch.tensor([int(rule.start(0, generator(1, i))) for i in range(4000)]), minlength=4
    )

    assert len(counts) == 4
    assert (counts - 1000).abs().max() < 120


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_continuous_starts_lie_in_the_closed_interval(seed: int) -> None:
    """MCT draws real epochs from [0, T+]."""
    assert (
        0
        <= WindowRule(max_start_epoch=3.5, expert_epochs=2, continuous=True).start(0, generator(seed))
        <= 3.5
    )


def test_range_grows_with_the_iterations() -> None:
    """The upper end goes linearly from its first value to T+ and stays there."""
    rule = WindowRule(
        max_start_epoch=10, expert_epochs=2, continuous=True, first_start_epoch=2, grow_iterations=100
    )

    assert [rule.upper(i) for i in (0, 50, 100, 1000)] == [2, 6, 10, 10]
    assert WindowRule(max_start_epoch=10, expert_epochs=2, continuous=True).upper(0) == 10
    # Without iterations to grow in, or without a first value, the range is the whole one.
    assert rule.model_copy(update={"grow_iterations": 0}).upper(0) == 10
    assert rule.model_copy(update={"first_start_epoch": None}).upper(50) == 10


def test_target_is_clipped_to_the_end() -> None:
    """A window that would reach beyond E ends at E."""
    trajectory = convexify(SNAPSHOTS, (4, 2))
    window = cut(
        trajectory,
        0,
        WindowRule(max_start_epoch=8, expert_epochs=6, continuous=True, min_start_epoch=7),
        0,
        generator(0),
    )

    assert window.epoch >= 7
    assert torch.equal(window.target_P, SNAPSHOTS[-1])


def test_snapshots_window() -> None:
    """MTT's start and target are the snapshots themselves."""
    window = cut(
        SnapshotTrajectory(SNAPSHOTS),
        3,
        WindowRule(max_start_epoch=5, expert_epochs=2, continuous=False),
        0,
        generator(0),
    )

    assert window.expert == 3
    assert torch.equal(window.start_P, SNAPSHOTS[int(window.epoch)])
    assert torch.equal(window.target_P, SNAPSHOTS[int(window.epoch) + 2])
    assert not window.still


def test_a_standing_expert_is_still() -> None:
    """Where start and target are the same point there is nothing to match."""
    standing = SNAPSHOTS[:1].expand(9, -1)

    assert cut(
        SnapshotTrajectory(standing),
        0,
        WindowRule(max_start_epoch=5, expert_epochs=2, continuous=False),
        0,
        generator(0),
    ).still


def test_every_pass_uses_every_expert_once() -> None:
    """Each pass over the experts is a permutation, and passes differ."""
    passes = [[expert_at(p * 7 + i, 7, seed=3) for i in range(7)] for p in range(4)]

    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) > 1
    assert [passes[1][i] for i in range(7)] == torch.randperm(7, generator=generator(3, "pass", 1)).tolist()


@pytest.mark.parametrize("trajectory", ["convex", "snapshots"])
def test_starts_are_shares_of_the_range(trajectory: Literal["convex", "snapshots"]) -> None:
    """One uniform number is brought to the range at that iteration: real for ``convex``, whole for ``snapshots``."""
    rule = WindowRule(
        trajectory=trajectory, min_start_epoch=2, max_start_epoch=9, first_start_epoch=4, grow_iterations=10,
        expert_epochs=2,
    )  # fmt: skip
    for seed in range(20):
        share = float(torch.rand((), generator=generator(seed), dtype=torch.float64))
        expected = 2 + share * (6.5 - 2) if trajectory == "convex" else 2 + math.floor(share * 4)
        assert rule.start(5, generator(seed)) == pytest.approx(expected)


def test_a_range_of_less_than_an_epoch_starts_at_its_beginning() -> None:
    """Whole epochs from 3 up to 3.5: only 3."""
    rule = WindowRule(min_start_epoch=3, max_start_epoch=3.5, expert_epochs=1, continuous=False)
    assert {rule.start(0, generator(seed)) for seed in range(20)} == {3.0}


def test_still_is_a_ten_thousandth_of_the_norm() -> None:
    """An expert that moves by less than 1e-4 of its parameters' norm is still, as is one that is zero throughout."""
    start = torch.full((16,), 2.0, dtype=torch.float64)
    way = torch.eye(16, dtype=torch.float64)[3] * float(start.norm()) * 1e-4
    assert Window(0, 0.0, start, start + 0.99 * way).still
    assert not Window(0, 0.0, start, start + 1.01 * way).still
    assert Window(0, 0.0, torch.zeros(4), torch.zeros(4)).still


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("min_start_epoch", 0), ("grow_iterations", 0), ("syn_steps", 1), ("batch_syn", 1), ("lr_lr", 0),
        ("momentum", 0), ("start_noise", 0), ("image_decay", 0), ("workers", 1), ("retries", 0),
    ],
)  # fmt: skip
def test_least_values_of_settings(name: str, least: int) -> None:
    """The least value is taken, and what is below it is refused."""
    assert getattr(Settings.model_validate({**LEAST, name: least}), name) == least
    assert refused(Settings, **{**LEAST, name: least - 1}) == {("value-out-of-range", name)}


@pytest.mark.parametrize(
    "name",
    ["expert_epochs", "max_start_epoch", "first_start_epoch", "lr_image", "lr_student", "lr_label", "clip"],
)
def test_settings_that_must_be_above_zero(name: str) -> None:
    """Any positive number is taken, zero is refused."""
    assert getattr(Settings.model_validate({**LEAST, name: 0.01}), name) == 0.01
    assert refused(Settings, **{**LEAST, name: 0}) == {("value-out-of-range", name)}


def test_momentum_stays_below_one() -> None:
    """A momentum of 1 never forgets, and is refused."""
    assert Settings.model_validate({**LEAST, "momentum": 0.99}).momentum == 0.99
    assert refused(Settings, **{**LEAST, "momentum": 1}) == {("value-out-of-range", "momentum")}


def test_defaults_are_the_published_numbers() -> None:
    """What a definition leaves out is what MTT's and MCT's papers use."""
    found = Settings.model_validate(LEAST).model_dump(exclude=set(LEAST), exclude_none=True)
    assert found == {
        "trajectory": "convex", "continuous": True, "min_start_epoch": 0.0, "grow_iterations": 0,
        "augment": "color_crop_cutout_flip_scale_rotate", "lr_image": 1000.0, "lr_lr": 1e-5, "momentum": 0.5,
        "gradient": "exact", "labels": "hard", "lr_label": 1.0, "start_noise": 0.0, "image_optimizer": "sgd",
        "image_decay": 0.0, "lr_space": "linear", "workers": 1, "retries": 3, "keep_remainder": False,
        "skip_layers": 0, "depth_ratio": 0.0,
    }  # fmt: skip
    assert Settings.model_validate(LEAST).first_lr == 0.01
    assert Settings.model_validate({**LEAST, "lr_student": 0.5}).first_lr == 0.5


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"trajectory": "snapshots"}, "MTT"),
        ({"trajectory": "snapshots", "gradient": "unrolled", "labels": "hard"}, "MTT"),
        ({"trajectory": "snapshots", "labels": "expert"}, "TESLA"),
        ({"trajectory": "snapshots", "gradient": "truncated"}, "TESLA"),
        ({"trajectory": "snapshots", "labels": "learned", "gradient": "truncated"}, "DATM"),
        ({"trajectory": "snapshots", "first_start_epoch": 1, "grow_iterations": 9}, "DATM"),
        ({}, "MCT"),
        ({"first_start_epoch": 1, "grow_iterations": 9}, "MCT"),
        ({"labels": "learned"}, "MCT+DATM"),
        ({"gradient": "truncated"}, "MCT"),
        ({"labels": "expert"}, "MCT+TESLA"),
        ({"trajectory": "snapshots", "labels": "learned", "skip_layers": 1}, "PAD"),
        ({"labels": "learned", "skip_layers": 1}, "MCT+PAD"),
        ({"trajectory": "snapshots", "labels": "learned", "depth_ratio": 0.5}, "PAD"),
        ({"trajectory": "snapshots", "skip_layers": 1}, "MTT"),
    ],
)
def test_settings_have_their_methods_name(given: dict[str, Any], name: str) -> None:
    """Those of TESLA, DATM and PAD are not called MTT."""
    assert Settings.model_validate(LEAST | given).method_name() == name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"trajectory": "snapshots"}, "FTD"),
        ({}, "MCT+FTD"),
        ({"trajectory": "snapshots", "labels": "learned"}, "DATM"),
        ({"trajectory": "snapshots", "gradient": "truncated"}, "TESLA"),
    ],
)
def test_matching_of_flat_experts_is_called_ftd(given: dict[str, Any], name: str) -> None:
    """Unless it is a method that uses such experts, or is known by more than them."""
    assert Settings.model_validate(LEAST | given).method_name(flat=True) == name
