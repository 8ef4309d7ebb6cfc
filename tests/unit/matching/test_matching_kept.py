"""Steps that keep convolutions for the way back: the derivative is that of steps that compute them again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rayddl.methods.matching import gradient
from rayddl.methods.matching.gradient import MODES
from rayddl.methods.training import steps as steps_module
from rayddl.methods.training import sweeps
from rayddl.methods.training.steps import Steps, make_steps
from rayddl.stages.match import measure
from tests.unit.matching.test_matching_gradient import CLASSES, PARTS, SHAPE, problem

IMAGE = 2 * 8 * (SHAPE[1] // 2) * (SHAPE[2] // 2) * 8
"""Bytes of an image's second convolution and of its derivative, of 8 channels in float64."""


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled stays as it is, so that it can be called in float64 and without a compiler."""
    monkeypatch.delenv("RAYDDL_COMPILE", raising=False)
    for module in (steps_module, sweeps):
        monkeypatch.setattr(module, "compiled", lambda function, **_: function)


def watched(steps: Steps) -> tuple[Steps, list[int]]:
    """The steps, and a list that gets the bytes that each keeps."""
    found: list[int] = []

    def ahead(*given: Any) -> Any:
        path, kept = steps.ahead(*given)
        found.extend(sum(tensor.nbytes for tensor in some) for some in kept)
        return path, kept

    return replace(steps, ahead=ahead), found


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("mode", ["exact", "truncated"])
@pytest.mark.parametrize(("less", "expected"), [(0, [5, 5, 5, 2]), (1, [0, 0, 0, 2])])
def test_the_derivative_is_the_same(
    mode: str, less: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps, the last of fewer images: those that fit if all are like them keep theirs."""
    steps, run, start, target = problem(batch=5, count=4, augmentations=("flip", "scale"))
    drawn = run.draws[3]
    assert drawn is not None
    run = replace(
        run, picks=[*run.picks[:3], run.picks[3][:2]], draws=[*run.draws[:3], drawn.of(slice(0, 2))]
    )
    monkeypatch.setattr(gradient, "KEPT", 4 * 5 * IMAGE - less)
    keeping, kept = watched(make_steps(steps.net))
    found, alone = (MODES[mode](which, run, start, target) for which in (keeping, steps))

    assert kept == [count * IMAGE for count in expected]
    for part in PARTS:
        torch.testing.assert_close(getattr(found, part), getattr(alone, part), rtol=1e-9, atol=1e-12)


def test_uncompiled_steps_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would have to be traced; also where the environment turns compilation off."""
    steps, run, start, target = problem(batch=5, count=2, augmentations=())
    uncompiled, kept = watched(steps)
    MODES["exact"](uncompiled, run, start, target)
    monkeypatch.setenv("RAYDDL_COMPILE", "0")
    switched_off, also_kept = watched(make_steps(steps.net))
    MODES["exact"](switched_off, run, start, target)

    assert kept == also_kept == [0, 0]


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("mode", "expected"), [("exact", IMAGE), ("unrolled", 0)])
def test_a_trial_of_a_step_tells_what_it_keeps(mode: Any, expected: int) -> None:
    """For each image of its batch; in float32, half of what float64 takes."""
    steps, _, start, _ = problem(batch=5, count=1, augmentations=())
    job = measure.MeasureTask(
        net={}, shape=SHAPE, classes=CLASSES, images=8, batches=(4, 8), steps=1, precision="fp32", gradient=mode,
        augment=(), compile=True, work=1, gpu=False, threads=1,
    )  # fmt: skip

    assert measure._kept(job, make_steps(steps.net), start.float()) == expected // 2


@pytest.mark.usefixtures("traced")
def test_iterations_use_the_same_memory() -> None:
    """What a step keeps stays as it is until it was read; then the next iteration's steps write over it."""
    steps, run, start, target = problem(batch=5, count=3, augmentations=())
    places: list[list[int]] = []
    keeping = make_steps(steps.net)

    def ahead(*given: Any) -> Any:
        path, kept = keeping.ahead(*given)
        places.append([tensor.data_ptr() for some in kept for tensor in some])
        return path, kept

    watching = replace(keeping, ahead=ahead)
    first = MODES["exact"](watching, run, start, target)
    second = MODES["exact"](watching, run, start + 0.1, target)
    again = MODES["exact"](watching, run, start, target)

    used = [{place for step in places[k : k + 3] for place in step} for k in (0, 3, 6)]
    assert len(used[0]) == 3 * 2
    assert used[0] == used[1] == used[2]
    for part in PARTS:
        assert torch.equal(getattr(first, part), getattr(again, part))
        assert not torch.equal(getattr(first, part), getattr(second, part))


@pytest.mark.usefixtures("traced")
def test_the_way_back_can_be_taken_twice() -> None:
    """The second time, steps keep nothing any more, and compute again."""
    steps, run, start, _ = problem(batch=5, count=1, augmentations=())
    keeping = make_steps(steps.net)
    x, y = [run.images[:5]], [run.labels[:5]]
    (*path, _), kept = keeping.ahead(start, run.lr, x, y, IMAGE * 5)
    assert kept[0]
    ways = [keeping.back(start, run.lr, run.lr, path, x, y, kept) for _ in range(2)]

    assert kept == [[]]
    torch.testing.assert_close(ways[0], ways[1], rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("traced")
def test_steps_made_for_cuda_graphs_keep_as_well_on_a_cpu() -> None:
    """Where nothing is recorded."""
    steps, run, start, _ = problem(batch=5, count=1, augmentations=())
    keeping = make_steps(steps.net, graphs=True)
    x, y = [run.images[:5]], [run.labels[:5]]

    assert keeping.ahead(start, run.lr, x, y, IMAGE * 5)[1][0]
    assert keeping.bytes_kept(start, *x, *y) == IMAGE * 5
