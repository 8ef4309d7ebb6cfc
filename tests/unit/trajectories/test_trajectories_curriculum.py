"""PAD's order of images, written out class by class, and the training that follows it."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from rayddl.methods.training.steps import make_steps, one_hot, sgd
from rayddl.methods.trajectories.curriculum import el2n, ranks, shown
from rayddl.methods.trajectories.expert import Images
from rayddl.methods.trajectories.settings import Curriculum, ExpertSettings
from rayddl.nets.build import flat, initial
from rayddl.nets.config import NetConfig
from rayddl.seeds import generator
from rayddl.stages.experts.settings import ExpertsConfig
from tests.experts import train_expert

SIZES = (40, 25, 7)
DRAWS = torch.Generator().manual_seed(0)
LABELS = torch.cat([torch.full((n,), k) for k, n in enumerate(SIZES)])[
    torch.randperm(sum(SIZES), generator=DRAWS)
]
SCORES = torch.rand(len(LABELS), generator=DRAWS)


def test_scores_are_the_distance_of_probabilities_from_the_label() -> None:
    """Image by image, in plain arithmetic."""
    logits = [[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]
    for row, label, found in zip(
        logits, (0, 1), el2n(torch.tensor(logits), torch.tensor([0, 1])).tolist(), strict=True
    ):
        total = sum(math.exp(v) for v in row)
        parts = [math.exp(v) / total - (k == label) for k, v in enumerate(row)]
        assert found == pytest.approx(math.sqrt(sum(p * p for p in parts)), rel=1e-5)


@pytest.mark.parametrize("epoch", [0, 5, 20, 21, 40, 41, 60, 61, 99])
def test_every_epoch_has_its_share_of_each_class(epoch: int) -> None:
    """Growing from the easiest 75 % to all by epoch 20; after 40 without the easiest tenth, after 60 the fifth."""
    found = set(shown(Curriculum(), epoch, *ranks(SCORES, LABELS)).tolist())
    expected = set()
    for k, size in enumerate(SIZES):
        rising = sorted((i for i in range(len(LABELS)) if LABELS[i] == k), key=lambda i: float(SCORES[i]))
        if epoch <= 20:
            share = min(1.0, 0.75 + 0.25 * epoch / 20)
            expected |= set(rising[: int(share * size)])
        else:
            expected |= set(rising[int((0.2 if epoch > 60 else 0.1 if epoch > 40 else 0.0) * size) :])
    assert found == expected


def test_experts_see_only_the_images_of_their_epoch() -> None:
    """In random order, with the loss averaged over them."""
    config, shape = NetConfig(depth=1, width=4), (1, 8, 8)
    curriculum = Curriculum(first=0.3, complete=2, drop=((2, 0.5),))
    settings = ExpertSettings(epochs=4, lr=0.1, batch=16, augment="none", curriculum=curriculum)
    steps = make_steps(flat(config, shape, 3), compile_=False)
    x = torch.randn(len(LABELS), *shape, generator=torch.Generator().manual_seed(1))
    start, data = initial(config, shape, 3, seed=1), Images(x, LABELS)
    trained = train_expert(steps, settings, start, data, data, 3, 7, scores=SCORES)

    theta = start.clone()
    for epoch in range(1, 5):
        seen, draws, total = (
            shown(curriculum, epoch - 1, *ranks(SCORES, LABELS)),
            generator(7, "epoch", epoch),
            0.0,
        )
        for picked in seen[torch.randperm(len(seen), generator=draws)].split(16):
            g, value, _ = steps.training(theta, None, x[picked], one_hot(LABELS[picked], 3), usual=True)
            sgd(theta, g, None, lr=0.1, momentum=0.0, weight_decay=0.0)
            total += float(value) * len(picked)
        assert trained.history[epoch].train_loss == pytest.approx(total / len(seen), rel=1e-5)
    torch.testing.assert_close(trained.snapshots[-1], theta)


def test_a_curriculum_and_its_scores_belong_together() -> None:
    """One without the other is refused, and so are epochs that do not rise."""
    base = {"kind": "experts"}
    for given in ({"curriculum": {}}, {"scores": "teacher"}):
        with pytest.raises(ValidationError, match="curriculum and scores belong together"):
            ExpertsConfig.model_validate({**base, **given})
    with pytest.raises(ValidationError, match="rising epochs, none before complete"):
        Curriculum(complete=50)
    whole = ExpertsConfig.model_validate({**base, "curriculum": {"drop": [[30, 0.2]]}, "scores": "t"})
    assert whole.curriculum is not None
    assert whole.curriculum.range_in(31) == (0.2, 1.0)
