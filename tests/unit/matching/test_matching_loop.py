"""The outer loop: replayable, resumable at any anchor, and stopped before numbers run away."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rayddl.methods.matching import loop as loops
from rayddl.methods.matching.gradient import StudentRun
from rayddl.methods.matching.loop import ANCHOR, Loop, Matcher
from rayddl.methods.matching.settings import Settings, WindowRule
from rayddl.methods.matching.state import State, first_state, load_state
from rayddl.methods.matching.windows import expert_at
from rayddl.methods.training.steps import make_steps
from rayddl.methods.trajectories.convex import SnapshotTrajectory, convexify
from rayddl.nets.build import flat, initial
from rayddl.nets.config import NetConfig
from rayddl.seeds import generator
from rayddl.stages.match.worker import MatchWorker
from tests.raising import raises

SHAPE, CLASSES = (1, 8, 8), 3
CONFIG = NetConfig(depth=1, width=4)
CPU = torch.device("cpu")
WINDOWS = WindowRule(max_start_epoch=2, expert_epochs=1)


def config(**changes: Any) -> Settings:
    base: dict[str, Any] = {
        "syn_steps": 3,
        "batch_syn": None,
        "lr_image": 5.0,
        "lr_lr": 1e-4,
        "lr_student": 0.05,
        "momentum": 0.5,
        "augment": "flip_color",
        "max_start_epoch": 2,
        "expert_epochs": 1,
    }
    return Settings(**{**base, **changes})


def snapshots(seed: int) -> Tensor:
    start = initial(CONFIG, SHAPE, CLASSES, seed=seed)
    steps = torch.randn(4, len(start), generator=torch.Generator().manual_seed(seed)) * 0.02
    return torch.cat([start[None], start + steps.cumsum(0)])


def matcher(settings: Settings) -> Matcher:
    net = flat(CONFIG, SHAPE, CLASSES)
    experts = [convexify(snapshots(i), net.sizes) for i in range(3)]
    steps = make_steps(net, compile_=False)
    return Matcher(steps, settings, experts, torch.arange(CLASSES).repeat_interleave(2), CLASSES, 11, CPU)


def begin(settings: Settings) -> Loop:
    images = torch.randn(2 * CLASSES, *SHAPE, generator=torch.Generator().manual_seed(0))
    logits = torch.eye(CLASSES).repeat_interleave(2, 0) * 3 if settings.labels == "learned" else None
    return Loop.begin(matcher(settings), first_state(images, logits, settings))


def run(loop: Loop, iterations: int) -> Loop:
    while loop.state.iteration < iterations:
        loop.step()
    return loop


def same(a: State, b: State) -> bool:
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.lr, b.lr)
        and torch.equal(a.shown, b.shown)
        and a.iteration == b.iteration
        and all(torch.equal(a.moments[k], b.moments[k]) for k in a.moments)
    )


VARIANTS: list[dict[str, Any]] = [
    {},
    {"labels": "learned", "lr_label": 1.0},
    {"labels": "expert"},
    {"gradient": "truncated"},
    {"gradient": "unrolled"},
    {"image_optimizer": "adam", "lr_image": 0.01, "image_decay": 0.01},
    {"lr_space": "log", "lr_lr": 1e-3},
    {"start_noise": 0.05},
    {"batch_syn": 2, "syn_steps": 5},
    {"workers": 3},
    {"clip": 1e-3},
    {"skip_layers": 1},
    {"image_ema": 0.9},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(c) or "published")
def test_resumed_from_bytes_equals_uninterrupted(changes: dict[str, Any]) -> None:
    """A state written at iteration 4 and read again leads to the same bits at iteration 8."""
    whole = run(begin(config(**changes)), 8)
    half = run(begin(config(**changes)), 4)
    state, more = load_state(half.state.dump(rows=torch.tensor(half.rows)), CPU)
    resumed = Loop.begin(half.matcher, state, half.start_rms)
    run(resumed, 8)

    assert more["rows"].shape == (4, 6)
    assert same(resumed.state, whole.state)
    if changes.get("labels") == "learned":
        assert resumed.state.logits is not None
        assert whole.state.logits is not None
        assert torch.equal(resumed.state.logits, whole.state.logits)


@pytest.mark.parametrize("labels", ["hard", "expert"])
def test_a_set_has_the_averaged_images(labels: str) -> None:
    """And the labels that experts give to them."""
    done = run(begin(config(image_ema=0.9, labels=labels)), 3)
    worker = MatchWorker.__new__(MatchWorker)
    job = SimpleNamespace(config=done.matcher.settings)
    vars(worker).update(_matcher=done.matcher, _job=job, _device=CPU)
    images, given, _ = worker._set_of(done.state)
    last = replace(done.state, averaged=None)
    wanted = worker._set_of(replace(last, images=done.state.shown))

    assert torch.equal(images, done.state.shown)
    assert not torch.equal(images, done.state.images)
    assert torch.equal(given, wanted[1])
    assert torch.equal(given, worker._set_of(last)[1]) == (labels == "hard")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_numbers_of_a_resumed_state_stay_on_the_cpu(optimizer: str) -> None:
    """Images and their moments go to the device; the rate, its momentum and Adam's count do not."""
    done = run(begin(config(image_optimizer=optimizer)), 2)
    state, _ = load_state(done.state.dump(), torch.device("meta"))
    devices = {name: moment.device.type for name, moment in state.moments.items()}

    assert state.images.device.type == "meta"
    assert state.lr.device.type == "cpu"
    assert devices == {name: "cpu" if name in ("lr", "images.count") else "meta" for name in devices}
    assert {"lr", "images" if optimizer == "sgd" else "images.first"} <= set(devices)


def test_matching_lowers_the_loss() -> None:
    """Towards a fixed window the loss falls: the updates go downhill."""
    fixed = config(
        augment="none", max_start_epoch=1, continuous=False, lr_image=20.0, syn_steps=8, lr_student=0.5
    )
    loop = begin(fixed)
    only = replace(loop.matcher, trajectories=[SnapshotTrajectory(snapshots(0))])
    loop = run(Loop.begin(only, loop.state), 40)

    assert loop.rows[-1][1] < loop.rows[0][1]


def test_rows_record_every_iteration() -> None:
    """A row per iteration, counted from 1, with the learning rate after the update."""
    loop = run(begin(config()), 5)

    assert [row[0] for row in loop.rows] == [1, 2, 3, 4, 5]
    assert loop.rows[-1][2] == float(loop.state.lr)
    assert all(0 <= row[3] <= 2 and 0 < row[5] < 3600 for row in loop.rows)


def test_a_rate_far_too_high_ends_as_diverged() -> None:
    """A thousand times lr_image is noticed at once, taken back three times, and named."""
    loop = begin(config(lr_image=5e10))
    with raises("matching-diverged"):
        run(loop, 5)

    assert torch.isfinite(loop.anchor.images).all()
    assert loop.anchor.iteration == 0


def test_a_rate_too_high_is_taken_back_and_goes_on() -> None:
    """One tenth of the rate is enough here: the run ends well and says that it was taken back."""
    calm = run(begin(config()), 3)
    scale = float((calm.state.images - begin(config()).state.images).abs().max())
    wild = run(begin(config(lr_image=5.0 * 100 / scale)), 3)

    assert wild.state.retries in (1, 2)
    assert wild.state.scale == pytest.approx(0.1**wild.state.retries)
    assert [row[0] for row in wild.rows] == [1, 2, 3]


def test_taken_back_to_the_last_anchor() -> None:
    """After the first anchor a run is taken back to it, not to its start."""
    loop = run(begin(config(syn_steps=1)), ANCHOR + 3)
    anchored = loop.anchor
    loop.matcher = replace(loop.matcher, settings=config(syn_steps=1, lr_image=1e12, retries=1))
    loop.step()

    assert anchored.iteration == ANCHOR
    assert loop.state.iteration == ANCHOR
    assert len(loop.rows) == ANCHOR
    assert torch.equal(loop.state.images, anchored.images)


def test_standing_experts_end_the_run_with_advice() -> None:
    """Experts that do not move are skipped, and an error when there are no others."""
    loop = begin(config(continuous=False))
    standing = SnapshotTrajectory(snapshots(0)[:1].expand(4, -1))
    all_still = Loop.begin(replace(loop.matcher, trajectories=[standing]), loop.state)
    with raises("experts-do-not-move"):
        all_still.step()
    some = Loop.begin(
        replace(loop.matcher, trajectories=[standing, SnapshotTrajectory(snapshots(1))]), loop.state
    )
    run(some, 4)

    assert some.state.skipped > 0
    assert {row[4] for row in some.rows} == {1}


def students(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> list[StudentRun]:
    """The runs of the students of three iterations, in order; nothing is updated."""
    seen: list[StudentRun] = []

    def look(steps: Any, run: StudentRun, start_P: Tensor, target_P: Tensor) -> Any:
        seen.append(run)

    monkeypatch.setitem(loops.MODES, "exact", look)
    for iteration in range(3):
        loop._here(loop.state, iteration)
    return seen


def test_every_student_draws_by_iteration_and_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a student sees follows from the seed, the iteration and the worker, and no two see the same."""
    seen = students(begin(config(batch_syn=4, syn_steps=3, workers=3)), monkeypatch)
    expected = [
        [torch.randperm(6, generator=draws)[:4].tolist() for _ in range(3)]
        for draws in (generator(11, "student", slot) for slot in range(9))
    ]

    assert [[p.tolist() for p in run.picks] for run in seen] == expected
    assert len({str(picks) for picks in expected}) == 9


@pytest.mark.parametrize(("batch", "size", "steps"), [(None, 6, 5), (2, 2, 8), (4, 4, 3), (100, 6, 3)])
def test_a_pass_shows_no_image_twice(
    batch: int | None, size: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step has ``batch_syn`` images, or all there are; within a pass over the set none comes again."""
    seen = students(begin(config(batch_syn=batch, syn_steps=steps)), monkeypatch)
    for run in seen:
        assert [len(p) for p in run.picks] == [size] * steps
        a_pass = 6 // size
        for start in range(0, steps, a_pass):
            shown = torch.cat(list(run.picks[start : start + a_pass])).tolist()
            assert len(set(shown)) == len(shown)
            assert set(shown) <= set(range(6))
        assert len({str(p.tolist()) for p in run.picks}) > 1
        assert len(run.draws) == steps


def test_the_remainder_of_a_pass_is_its_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As published, where a list of batches, the smaller one last, is emptied from its end."""
    kept = config(batch_syn=4, syn_steps=5, keep_remainder=True, labels="learned")
    run_on = begin(kept)
    run_on.step()
    assert torch.isfinite(run_on.state.images).all()
    seen = students(begin(kept), monkeypatch)
    for run in seen:
        assert [len(p) for p in run.picks] == [2, 4, 2, 4, 2]
        assert sorted(torch.cat(list(run.picks[:2])).tolist()) == list(range(6))
        assert [len(d.params[0]) for d in run.draws if d and d.params] == [2, 4, 2, 4, 2]
    # A batch that divides the set leaves none, and the batches are those of a run without the setting.
    whole = [
        [p.tolist() for p in students(begin(config(batch_syn=3, keep_remainder=keep)), monkeypatch)[0].picks]
        for keep in (True, False)
    ]
    assert whole[0] == whole[1]


def test_students_are_taught_the_labels_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their classes; the softmax of the learned logits; or what the expert at the window's end says of the images."""
    (hard, *_), (learned, *_), (expert, *_) = (
        students(begin(config(labels=labels)), monkeypatch) for labels in ("hard", "learned", "expert")
    )
    loop = begin(config(labels="expert"))
    target = loop.matcher.window(0)[0].target_P
    said = loop.matcher.steps.net(target, loop.state.images).softmax(1)

    assert hard.labels.tolist() == torch.eye(3).repeat_interleave(2, 0).tolist()
    torch.testing.assert_close(learned.labels, (3 * torch.eye(3)).repeat_interleave(2, 0).softmax(1))
    torch.testing.assert_close(expert.labels, said)
    assert torch.equal(loop.matcher.probabilities(loop.state), hard.labels)


def test_windows_follow_from_seed_iteration_and_worker() -> None:
    """Every worker of every iteration has its own window, drawn anew where the expert stands still."""
    loop = begin(config(workers=2))
    moving = loop.matcher.trajectories
    found = [loop.matcher.window(i, w) for i in range(3) for w in range(2)]
    starts = [WINDOWS.start(0, generator(11, "window", slot, 0)) for slot in range(6)]
    experts = [expert_at(slot, 3, 11) for slot in range(6)]
    assert [(f.expert, f.start, f.skipped) for _, f in found] == [
        (e, s, 0) for e, s in zip(experts, starts, strict=True)
    ]
    still = convexify(snapshots(0)[:1].expand(4, -1), loop.matcher.steps.net.sizes)
    mixed = replace(loop.matcher, trajectories=[still, moving[1], still])
    for slot in range(4):
        order = [expert_at(slot + attempt, 3, 11) for attempt in range(9)]
        _, facts = mixed.window(slot // 2, slot % 2)
        assert facts.skipped == order.index(1)
        assert facts.start == WINDOWS.start(0, generator(11, "window", slot, facts.skipped))


def test_noise_on_the_start_is_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    """``start_noise`` moves each parameter by its own size times a normal number; the target stays."""
    starts: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setitem(
        loops.MODES, "exact", lambda steps, run, start, target: starts.append((start, target))
    )
    loop = begin(config(start_noise=0.25))
    loop.matcher.gradient(loop.state, 0)
    window = loop.matcher.window(0)[0]
    noise = torch.randn(window.start_P.shape, generator=generator(11, "student", 0))

    torch.testing.assert_close(starts[0][0], window.start_P + 0.25 * window.start_P.abs() * noise)
    assert torch.equal(starts[0][1], window.target_P)


def test_a_loop_compares_only_the_layers_that_are_not_skipped() -> None:
    """Its loss is the ratio of distances beyond the first layer's parameters; two of two layers leave none."""
    loop = begin(config(skip_layers=1, batch_syn=None))
    whole = begin(config())
    (found, _), (plain, _) = (each.matcher.gradient(each.state, 0) for each in (loop, whole))

    window, _ = whole.matcher.window(0)
    assert float(found.loss) != float(plain.loss)
    sizes = whole.matcher.steps.net.sizes
    moved = (window.start_P - window.target_P)[sum(sizes[:-2]) :].square().sum()
    left = (window.start_P - window.target_P).square().sum() * float(plain.loss)
    # The whole squared distance at the end is that of the first layer and that of the others.
    assert 0 < float(found.loss * moved) < float(left)
    with raises("too-few-layers-to-skip"):
        begin(config(skip_layers=2)).step()


def test_a_loop_leaves_out_a_share_of_the_parameters() -> None:
    """``depth_ratio`` counts parameters from the input, as PAD's code does, and may end within a layer."""
    whole, loop = begin(config(batch_syn=None)), begin(config(depth_ratio=0.3, batch_syn=None))
    (found, _), (plain, _) = (each.matcher.gradient(each.state, 0) for each in (loop, whole))
    window, _ = whole.matcher.window(0)
    count = len(window.start_P)
    assert loop.matcher._skipped == int(0.3 * count)
    assert loop.matcher._skipped not in {whole.matcher.steps.net.before_layer(k) for k in (0, 1)}

    moved = (window.start_P - window.target_P).square()
    ends = float(found.loss * moved[int(0.3 * count) :].sum()), float(plain.loss * moved.sum())
    assert 0 < ends[0] < ends[1]


@pytest.mark.parametrize("changes", [{}, {"image_ema": 0.9}, {"workers": 2}], ids=str)
def test_iterations_above_the_threshold_change_nothing(changes: dict[str, Any]) -> None:
    """They count, and the others are those of a run without it."""
    plain = run(begin(config(lr_image=1e-3, lr_lr=0, **changes)), 6)
    losses = [row[1] for row in plain.rows]
    least = min(losses)
    assert least < max(losses)
    none, all_ = (
        run(begin(config(lr_image=1e-3, lr_lr=0, threshold=most, **changes)), 6)
        for most in (0.5 * least, 2 * max(losses))
    )
    assert same(all_.state, plain.state)
    assert all_.rows[-1][1] == plain.rows[-1][1]
    assert none.state.iteration == 6
    assert none.state.moments == {}
    first = begin(config(lr_image=1e-3, lr_lr=0, **changes)).state
    assert torch.equal(none.state.images, first.images)
    assert torch.equal(none.state.lr, first.lr)


def test_a_loss_that_is_not_a_number_is_above_no_threshold() -> None:
    """A run that diverges ends as diverged, with a threshold, too."""
    for bad in (math.nan, math.inf):
        loop = begin(config(threshold=1.0, retries=1))
        (gradient, facts), *_ = loop._here(loop.state, 0)
        found = [(replace(gradient, loss=torch.tensor(bad)), facts)]
        loop.gradients = lambda state, iteration, found=found: found
        loop.step()
        assert loop.state.retries == 1
