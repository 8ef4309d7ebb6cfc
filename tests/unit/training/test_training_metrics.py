"""Figures of a student's answers, and scores made of them, against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score

from rayddl.methods.training import scores
from rayddl.methods.training.metrics import Score, accuracy, scored
from rayddl.methods.training.steps import make_steps
from rayddl.nets.build import flat, initial
from rayddl.nets.config import NetConfig


def test_a_score_equals_the_one_counted_by_hand() -> None:
    """Four images of three classes: two right, each mistake in its place, and no top-5 of three classes."""
    score = Score(3)
    score.add(torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 1]))
    score.add(torch.tensor([[0.0, 5.0, 1.0], [3.0, 0.0, 1.0]]), torch.tensor([1, 1]))

    assert score.confusion.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert (score.accuracy, score.top5) == (0.5, None)
    entries = score.confused()
    assert list(zip(entries.true, entries.predicted, entries.count, strict=True)) == [
        (0, 0, 1), (1, 0, 1), (1, 1, 1), (1, 2, 1),
    ]  # fmt: skip
    assert entries.per_class(3) == [1.0, pytest.approx(1 / 3), None]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(6, 9), st.integers(12, 40), st.integers(1, 40))
def test_figures_equal_scikit_learns(seed: int, classes: int, count: int, batch: int) -> None:
    """Whatever the batches: top-1, top-5, recall per class and the confusion matrix are scikit-learn's."""
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=draws)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (count - classes,), generator=draws)])
    score = Score(classes)
    for part, right in zip(logits.split(batch), labels.split(batch), strict=True):
        score.add(part, right)

    answers, names = logits.argmax(1).numpy(), np.arange(classes)
    assert score.confusion.tolist() == confusion_matrix(labels, answers, labels=names).tolist()
    assert score.top5 == pytest.approx(top_k_accuracy_score(labels, logits.numpy(), k=5, labels=names))
    recalls = recall_score(labels, answers, labels=names, average=None)
    assert score.confused().per_class(classes) == pytest.approx(recalls.tolist())


def test_what_is_not_a_number_is_no_hit_by_default() -> None:
    """A student that ran away answers the same to all, and scores no better than that."""
    score = Score(10)
    score.add(torch.full((20, 10), math.nan), torch.arange(20) % 10)

    assert score.accuracy == 0.1
    assert score.top5 == 0.5
    assert score.unanswered == 20
    score.add(torch.tensor([[0.0] * 9 + [math.inf], [0.0] * 10]), torch.tensor([9, 0]))
    assert score.unanswered == 21


def test_scored_agrees_with_accuracy_over_any_batches() -> None:
    """600 images, not a multiple of the batch: both ways of testing count the same hits."""
    config, shape, draws = NetConfig(depth=1, width=4), (1, 8, 8), torch.Generator().manual_seed(0)
    steps = make_steps(flat(config, shape, 3), compile_=False)
    x, y = torch.randn(600, *shape, generator=draws), torch.randint(3, (600,), generator=draws)
    theta = initial(config, shape, 3, seed=1)

    found = scored(steps, theta, x, y, 3)
    assert found.accuracy == accuracy(steps, theta, x, y)
    assert int(found.confusion.sum()) == 600


def test_normalised_scores_at_hand() -> None:
    """0 at -1, 1 at 1, and 1 / (1 + e) in the middle, since (1 - 1/e) / (e - 1/e) = 1 / (e + 1)."""
    assert scores.normalised(-1.0) == 0.0
    assert scores.normalised(1.0) == 1.0
    assert scores.normalised(0.0) == pytest.approx(1 / (1 + math.e), rel=1e-12)
    # w IOR - (1 - w) HLR = 0.5 x 0.3 - 0.5 x 0.3 = 0, and 0.25 x 0.3 - 0.75 x 0.3 = -0.15.
    assert scores.label_robust(0.3, 0.3) == pytest.approx(1 / (1 + math.e))
    assert scores.label_robust(0.3, 0.3, 0.25) == pytest.approx((math.exp(-0.15) - math.exp(-1)) / 2.3504024)
    assert scores.augmentation_robust(0.2, -0.2) == pytest.approx(1 / (1 + math.e))


HARD = {
    "distilled": [0.5, 0.6],
    "random": [0.3, 0.2],
    "whole": [0.9, 0.8],
    "distilled-bare": [0.4, 0.4],
    "random-bare": [0.3, 0.2],
}


def test_scores_of_hard_labels_seed_by_seed() -> None:
    """Each figure's mean and deviation over two seeds, worked out on paper."""
    found = scores.scores(HARD, soft=False)

    assert found["over_random"] == pytest.approx({"mean": 0.3, "std": 0.1})
    assert found["of_whole"] == pytest.approx({"mean": (5 / 9 + 3 / 4) / 2, "std": (3 / 4 - 5 / 9) / 2})
    assert found["hlr"] == pytest.approx({"mean": 0.3, "std": 0.1})
    assert found["over_random_bare"] == pytest.approx({"mean": 0.15, "std": 0.05})
    # alphas: (0.2 - 0.4) / 2 = -0.1 and (0.4 - 0.2) / 2 = 0.1; betas: (0.2 + 0.1) / 2 and (0.4 + 0.2) / 2.
    span = math.e - 1 / math.e
    assert found["lrs"]["mean"] == pytest.approx((math.cosh(0.1) - math.exp(-1)) / span)
    assert found["ars"]["mean"] == pytest.approx(((math.exp(0.15) + math.exp(0.3)) / 2 - math.exp(-1)) / span)
    assert "slr" not in found


def test_scores_of_soft_labels_take_hard_lessons_for_the_recovery() -> None:
    """The improvement is that of the soft labels, the recovery that of the hard ones; both sides are shown."""
    more: dict[str, Any] = {"distilled-hard": [0.4, 0.4], "whole-hard": [0.9, 0.8]}
    found = scores.scores({**HARD, **more}, soft=True)

    assert found["hlr"]["mean"] == pytest.approx(0.45)
    assert found["slr"]["mean"] == pytest.approx(0.3)
    assert found["lrs"]["mean"] == pytest.approx(
        (scores.label_robust(0.2, 0.5) + scores.label_robust(0.4, 0.4)) / 2
    )


def test_scores_that_lack_a_lesson_are_left_out() -> None:
    """Nothing is made up: without the whole data there is neither recovery nor label-robust score."""
    assert set(scores.scores({"distilled": [0.5], "random": [0.4]}, soft=False)) == {"over_random"}
    assert scores.scores({"distilled": [0.5]}, soft=False) == {}


def test_no_share_of_a_whole_that_learned_nothing() -> None:
    """A seed whose whole data give an accuracy of 0 has no share, and leaves the others'."""
    found = {"distilled": [0.5, 0.4], "whole": [0.0, 0.8]}
    assert scores.scores(found, soft=False)["of_whole"] == {"mean": 0.5, "std": 0.0}
    assert "of_whole" not in scores.scores({"distilled": [0.5], "whole": [0.0]}, soft=False)
