"""The same numbers on every device: on the CPU always, on a GPU where there is one."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
import torch
from torch import Tensor

from rayddl.data.config import AUGMENTATIONS
from rayddl.data.pixels import augment
from rayddl.errors import StageError
from rayddl.methods.matching.gradient import MODES, MetaGradient, StudentRun
from rayddl.methods.training.steps import make_steps, steps_for
from rayddl.methods.trajectories.expert import Images, Lanes, Training, training_steps
from rayddl.methods.trajectories.settings import ExpertSettings
from rayddl.nets.build import flat, initial
from rayddl.nets.config import NetConfig
from rayddl.stages.runtime import devices
from tests.experts import train_expert
from tests.raising import raises

SHAPE, CLASSES, COUNT = (3, 16, 16), 4, 8
NET = NetConfig(depth=2, width=8)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda", 0), marks=GPU)]


@pytest.fixture(autouse=True)
def exact_products() -> Generator[None]:
    """Products of a GPU are full float32 ones for the time of a test."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def problem_on(device: torch.device, dtype: torch.dtype, seed: int = 0) -> tuple[StudentRun, Tensor, Tensor]:
    """A student's run of six steps, its start and its target."""
    draws = torch.Generator().manual_seed(seed)
    start = initial(NET, SHAPE, CLASSES, seed=1 + seed).to(dtype)
    target = start + 0.05 * torch.randn(start.shape, generator=draws).to(dtype)
    picks = [torch.randperm(COUNT, generator=draws)[:4] for _ in range(6)]
    run = StudentRun(
        torch.randn(COUNT, *SHAPE, generator=draws).to(device, dtype),
        torch.randn(COUNT, CLASSES, generator=draws).softmax(1).to(device, dtype),
        torch.tensor(0.3, dtype=dtype, device=device),
        [p.to(device) for p in picks],
        [augment.draw(AUGMENTATIONS, (4, *SHAPE), draws) for _ in picks],
    )
    return run, start.to(device), target.to(device)


def gradient_on(device: torch.device, mode: str, dtype: torch.dtype) -> MetaGradient:
    """The meta-gradient of one problem, by uncompiled steps."""
    return MODES[mode](make_steps(flat(NET, SHAPE, CLASSES), compile_=False), *problem_on(device, dtype))


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_meta_gradients_agree_in_float64(mode: str, device: torch.device) -> None:
    """A device's meta-gradient is the CPU's to 9 digits."""
    here = gradient_on(torch.device("cpu"), mode, torch.float64)
    there = gradient_on(device, mode, torch.float64)

    for part in ("loss", "images", "labels", "lr"):
        torch.testing.assert_close(getattr(there, part).cpu(), getattr(here, part), rtol=1e-9, atol=1e-12)


def test_a_process_makes_steps_once() -> None:
    """Experts, which say whether they want graphs, and students, which do not, share what was compiled."""
    shared = steps_for(NET, SHAPE, CLASSES, "fp32", False)

    assert steps_for(NET, SHAPE, CLASSES, "fp32", False, False) is shared
    assert steps_for(NET, SHAPE, CLASSES, "fp32", False, True) is not shared


@pytest.mark.parametrize(
    ("device", "mode"),
    [
        (torch.device("cpu"), "exact"),
        *(pytest.param(torch.device("cuda", 0), mode, marks=GPU) for mode in ("exact", "truncated")),
    ],
    ids=str,
)
def test_graphs_change_nothing(mode: str, device: torch.device) -> None:
    """The call that compiles, the one that is recorded, and those that are replayed, with inputs of their own, give
    what compiled steps give, and no result is written over.
    """
    plain, replayed = (
        make_steps(flat(NET, SHAPE, CLASSES), compile_=True, graphs=graphs) for graphs in (False, True)
    )
    problems = [problem_on(device, torch.float32, seed) for seed in range(4)]
    found = [MODES[mode](replayed, *problem) for problem in problems]

    for problem, got in zip(problems, found, strict=True):
        expected = MODES[mode](plain, *problem)
        for part in ("loss", "images", "labels", "lr"):
            torch.testing.assert_close(getattr(got, part), getattr(expected, part), rtol=1e-4, atol=1e-6)


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A worker's settings of CUDA, undone afterwards."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    fills = torch.utils.deterministic.fill_uninitialized_memory
    devices.repeatable()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_device_repeats_its_bits(repeatable: None, mode: str, device: torch.device) -> None:
    """The same meta-gradient three times over, augmentation included."""
    first, *again = (gradient_on(device, mode, torch.float32) for _ in range(3))

    assert all(torch.equal(one.images, first.images) and torch.equal(one.lr, first.lr) for one in again)


def test_a_worker_on_a_gpu_is_repeatable(repeatable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's choices are fixed before the device is used; a worker on a CPU leaves torch as it is."""
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "assigned", lambda: ())
    assert devices.enter(torch.get_num_threads()) == torch.device("cpu")
    assert not torch.are_deterministic_algorithms_enabled()

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.delenv(devices.LOGICAL, raising=False)
    monkeypatch.setattr(devices, "assigned", lambda: ("0",))
    assert devices.enter(torch.get_num_threads()) == torch.device("cuda", 0)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_worker_of_a_team_is_on_the_gpu_that_ray_train_chose(
    repeatable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees those of its team on its node; the first would be all workers' choice."""
    monkeypatch.delenv(devices.LOGICAL, raising=False)
    monkeypatch.setattr(devices, "assigned", lambda: ("3",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert devices.enter(torch.get_num_threads()) == torch.device("cuda", 3)


def test_a_gpu_that_torch_cannot_see_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed on the CPU in a GPU's place, except where logical GPUs are switched on."""
    monkeypatch.setattr(devices, "assigned", lambda: ("3",))
    monkeypatch.setattr(devices, "_node", lambda: "abc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "__version__", "2.15.0")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.delenv(devices.LOGICAL, raising=False)
    with raises("torch-sees-no-gpu") as caught:
        devices.enter(torch.get_num_threads(), unit="expert 1")

    assert str(caught.value).startswith(
        "Ray assigned GPU 3 of node abc to expert 1, and torch sees no GPU there"
    )
    assert isinstance(caught.value, StageError)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_experts_in_turns_are_those_alone(device: torch.device) -> None:
    """Experts trained in turns have the bits that each has by itself, and all their epochs are told."""
    draws = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, *SHAPE, generator=draws), torch.randint(CLASSES, (40,), generator=draws)
    train, test = Images(x.to(device), y.to(device)), Images(x[:10].to(device), y[:10].to(device))
    steps = make_steps(flat(NET, SHAPE, CLASSES), compile_=False)
    settings = ExpertSettings(epochs=3, lr=0.05, momentum=0.9, weight_decay=5e-4, batch=16)
    starts = [initial(NET, SHAPE, CLASSES, seed=i) for i in range(3)]
    told: list[int] = []

    def going(place: int) -> Generator[None, None, Training]:
        longer = settings.model_copy(update={"epochs": 3 + place})
        return training_steps(
            steps, longer, starts[place], train, test, CLASSES, place, lambda _: told.append(place)
        )

    lanes: Lanes[Training] = Lanes([going(place) for place in range(3)], device)
    together: dict[int, Training] = {}
    while lanes:
        together |= dict(lanes.turn())
    alone = [
        train_expert(steps, settings.model_copy(update={"epochs": 3 + i}), starts[i], train, test, CLASSES, i)
        for i in range(3)
    ]

    def bits(training: Training) -> Tensor:
        return torch.stack(training.snapshots)

    assert all(torch.equal(bits(together[i]), bits(alone[i])) for i in range(3))
    assert [told.count(place) for place in range(3)] == [3, 4, 5]
